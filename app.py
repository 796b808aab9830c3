"""The Space's entry: ``python app.py [--model PATH_OR_ID] [--port P]`` serves the page for one model."""

import argparse
import atexit
import contextlib
import functools
import os
import shutil
import signal
import sys
import tempfile
import threading
import time

from ddpm_hf.errors import Parser, UserError, run_command

GOODBYE_SECONDS = 1.0  # for visitors to be told that their run was stopped
END_SECONDS = 10.0  # a Space is killed some time after it is asked to stop


def main(argv: list[str]) -> int:
    """Serve the page until interrupted; 0 after that, 2 for a mistake of the user's, told in one line."""

    def run():
        arguments = _parse(argv)
        with _own_folder():
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


@contextlib.contextmanager
def _own_folder():
    """A folder for what visitors send, gone at the end; unless GRADIO_TEMP_DIR names one."""
    if os.environ.get("GRADIO_TEMP_DIR"):
        yield
        return
    folder = os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="ddpm_hf-")
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _serve(arguments: argparse.Namespace):
    if os.environ.get("SPACES_ZERO_GPU"):
        import spaces  # noqa: F401  # before torch, which it makes believe in a GPU

    from ddpm_hf.devices import best_device, best_dtype, leave_cores
    from ddpm_hf.hub import load_allowed
    from ddpm_hf.ui.models import memory_from_environment, models_from_environment

    (model, *others), port = models_from_environment(arguments.model), arguments.port
    revision, device = arguments.revision or os.environ.get("MODEL_REVISION") or None, best_device()
    trust, cores = arguments.trust_remote_code, leave_cores()
    pipeline = load_allowed(model, revision=revision, trust_remote_code=trust, device=device, dtype=best_dtype(device))

    # after the model, so that a wrong one is told at once: this takes seconds
    from ddpm_hf.ui.attendance import AttendedQueue
    from ddpm_hf.ui.connections import tighten
    from ddpm_hf.ui.guard import Gate
    from ddpm_hf.ui.journal import Journal, log_to_stdout
    from ddpm_hf.ui.look import launch_options
    from ddpm_hf.ui.page import build_page, model_name
    from ddpm_hf.ui.runs import Engine

    load = functools.partial(load_allowed, trust_remote_code=trust, device=device, dtype=best_dtype(device))
    engine = Engine(pipeline, model, others, load, max_memory=memory_from_environment(), cores=cores)
    page = build_page(engine, model_name(model))
    journal = Journal()
    gate = Gate(AttendedQueue.take_over(page, journal), journal)
    log_to_stdout()
    host = "0.0.0.0" if os.environ.get("SPACE_ID") else None
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            **launch_options(),
            **gate.launch_options(),
        )
    except OSError:
        taken = f"port {port} is" if port else "ports 7860 to 7959 are"
        raise UserError(f"{taken} in use: choose another with --port.") from None
    tighten(page.server)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    print(f"open {url}", flush=True)
    stopped.wait()
    _end(page, engine, gate)


def _end(page, engine, gate):
    """Refuse new jobs, end the runs, tell those who watch them, close the server: within ``END_SECONDS``."""
    last_resort = threading.Timer(END_SECONDS, _give_up)  # in a step that takes longer than that
    last_resort.daemon = True
    last_resort.start()
    gate.close()
    engine.close()
    told = time.monotonic() + GOODBYE_SECONDS
    while gate.queue.jobs() and time.monotonic() < told:
        time.sleep(0.05)
    page.close(verbose=False)
    last_resort.cancel()


def _give_up():
    print(f"something did not end within {END_SECONDS:g} s; leaving all the same", flush=True)
    os._exit(0)


def leave(status: int):
    """End the process, with all that asked to be told of it, but without Python taking apart what is in memory: with
    torch that takes seconds, during which a server that was asked to stop seems to hang."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
