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
from pathlib import Path

from ddpm_hf.errors import Parser, UserError, echo, run_command

GOODBYE_SECONDS = 1.0  # to tell visitors that their run was stopped
END_SECONDS = 10.0  # a Space is killed some time after it is asked to stop


def main(argv: list[str]) -> int:
    """Serve the page until interrupted; returns 0, or 2 after a one-line error for a user's mistake."""

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
    """A new folder for Gradio, inside GRADIO_TEMP_DIR if that is set, and deleted at the end.

    Gradio makes folders there. Nothing else is deleted: others may keep their files in GRADIO_TEMP_DIR.
    """
    given = os.environ.get("GRADIO_TEMP_DIR", "")
    parent = os.path.abspath(given or tempfile.gettempdir())
    try:
        os.makedirs(parent, exist_ok=True)
        folder = tempfile.mkdtemp(prefix="ddpm_hf-", dir=parent)
    except OSError as error:
        raise UserError(f"cannot create a folder in {parent}: {error.strerror}; set GRADIO_TEMP_DIR.") from None
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        yield Path(folder)
    finally:
        os.environ["GRADIO_TEMP_DIR"] = given  # empty is the same as not set
        shutil.rmtree(folder, ignore_errors=True)


def _serve(arguments: argparse.Namespace):
    if os.environ.get("SPACES_ZERO_GPU"):
        import spaces  # noqa: F401  # before torch, which it makes believe in a GPU

    from ddpm_hf.devices import best_device, best_dtype, leave_cores
    from ddpm_hf.hub import load_allowed
    from ddpm_hf.memory import memory_from_environment
    from ddpm_hf.ui.addresses import trusted_proxies
    from ddpm_hf.ui.models import MAX_MEMORY, models_from_environment

    trusted_proxies()  # reports a mistake in it now
    (model, *others), port = models_from_environment(arguments.model), arguments.port
    revision, device = arguments.revision or os.environ.get("MODEL_REVISION") or None, best_device()
    trust, cores = arguments.trust_remote_code, leave_cores()
    pipeline = load_allowed(model, revision=revision, trust_remote_code=trust, device=device, dtype=best_dtype(device))

    # after the model, so that a wrong one is reported at once: this takes seconds
    from ddpm_hf.ui.attendance import Attendance
    from ddpm_hf.ui.connections import tighten
    from ddpm_hf.ui.guard import Gate
    from ddpm_hf.ui.journal import Journal, log_to_stdout
    from ddpm_hf.ui.models import shown_name
    from ddpm_hf.ui.runs import Engine
    from ddpm_hf.ui.server import build_server, launch_options, read_endpoints

    load = functools.partial(load_allowed, trust_remote_code=trust, device=device, dtype=best_dtype(device))
    engine = Engine(pipeline, model, others, load, max_memory=memory_from_environment() or MAX_MEMORY, cores=cores)
    gate = Gate(Attendance(engine.worker.cancel_session), Journal())
    server = build_server(engine, shown_name(model), gate)
    log_to_stdout()
    host = "0.0.0.0" if os.environ.get("SPACE_ID") else None
    try:
        _, url, _ = server.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, **launch_options()
        )
    except OSError:
        taken = f"port {port} is" if port else "ports 7860 to 7959 are"
        raise UserError(f"{taken} in use: choose another with --port.") from None
    gate.endpoints.update(read_endpoints(url))
    tighten(server.get_blocks().server)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    echo(f"open {url}")
    while not stopped.wait(1):  # on Windows, Ctrl-C does not end a wait without a limit
        pass
    _end(engine, gate)


def _end(engine, gate):
    """Refuse new jobs, end the runs, tell those who watch them, close the server: within ``END_SECONDS``."""
    import gradio as gr

    last_resort = threading.Timer(END_SECONDS, _give_up)  # in a step that takes longer than that
    last_resort.daemon = True
    last_resort.start()
    gate.close()
    engine.close()
    told = time.monotonic() + GOODBYE_SECONDS
    while (gate.streams or gate.attendance.calls) and time.monotonic() < told:
        time.sleep(0.05)
    gr.close_all(verbose=False)
    last_resort.cancel()


def _give_up():
    echo(f"something did not end within {END_SECONDS:g} s; leaving all the same")
    os._exit(0)


def leave(status: int):
    """End the process, with all that asked to be told of it, but without Python taking apart what is in memory: with
    torch that takes seconds, during which a server that was asked to stop seems to hang."""
    last_resort = threading.Timer(END_SECONDS, os._exit, [status])  # one of these may wait for another thread
    last_resort.daemon = True
    last_resort.start()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
