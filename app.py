"""The Space's entry: ``python app.py [--model PATH_OR_ID] [--port P]`` serves the page for one model."""

import argparse
import functools
import os
import signal
import sys
import threading

from ddpm_hf.errors import Parser, UserError, run_command


def main(argv: list[str]) -> int:
    """Serve the page until interrupted; 0 after that, 2 for a mistake of the user's, told in one line."""

    def run():
        arguments = _parse(argv)
        _serve(arguments)

    try:
        return run_command(run)
    except KeyboardInterrupt:  # while loading; once it serves, an interrupt is an orderly end
        return 130


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="app.py", description="Watch a diffusion model turn noise into pictures, in a browser.")
    parser.add_argument("--model", help="folder or Hub id of a pipeline (default: $MODEL_ID, or the embedded model)")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id (default: $MODEL_REVISION)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that a foreign model brings")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    arguments = parser.parse_args(argv)
    if arguments.port is not None and not 1 <= arguments.port <= 65535:
        raise UserError(f"--port must lie in [1, 65535], got {arguments.port}.")
    return arguments


def _serve(arguments: argparse.Namespace):
    if os.environ.get("SPACES_ZERO_GPU"):
        import spaces  # noqa: F401  # before torch, which it makes believe in a GPU

    from ddpm_hf.devices import best_device, best_dtype
    from ddpm_hf.hub import load_allowed
    from ddpm_hf.ui.models import memory_from_environment, models_from_environment

    (model, *others), port = models_from_environment(arguments.model), arguments.port
    revision, device = arguments.revision or os.environ.get("MODEL_REVISION") or None, best_device()
    trust = arguments.trust_remote_code
    pipeline = load_allowed(model, revision=revision, trust_remote_code=trust, device=device, dtype=best_dtype(device))

    # after the model, so that a wrong one is told at once: this takes seconds
    from ddpm_hf.ui.look import launch_options
    from ddpm_hf.ui.page import build_page, model_name
    from ddpm_hf.ui.runs import Engine

    load = functools.partial(load_allowed, trust_remote_code=trust, device=device, dtype=best_dtype(device))
    engine = Engine(pipeline, model, others, load, max_memory=memory_from_environment())
    page = build_page(engine, model_name(model))
    host = "0.0.0.0" if os.environ.get("SPACE_ID") else None
    try:
        _, url, _ = page.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, **launch_options()
        )
    except OSError:
        taken = f"port {port} is" if port else "ports 7860 to 7959 are"
        raise UserError(f"{taken} in use: choose another with --port.") from None
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    print(f"open {url}", flush=True)
    stopped.wait()
    page.close(verbose=False)
    engine.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
