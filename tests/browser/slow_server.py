"""The app on a tiny model whose network takes 50 ms a call; prints when every frame had been computed."""

import sys
import threading
import time

from app_server import tiny_pipeline

from ddpm_hf.ui.attendance import Attendance
from ddpm_hf.ui.guard import Gate
from ddpm_hf.ui.jobs import Job
from ddpm_hf.ui.journal import Journal
from ddpm_hf.ui.runs import Engine
from ddpm_hf.ui.server import build_server, launch_options

STEP_SECONDS = 0.05


def main(port: int):
    pipeline = tiny_pipeline(conditional=True)
    pipeline.unet.register_forward_hook(lambda *_: time.sleep(STEP_SECONDS))
    add = Job.add

    def add_and_tell(job, frame):
        print(f"computed {job.id} {frame.index} {1000 * time.time()}", flush=True)
        add(job, frame)

    Job.add = add_and_tell
    engine = Engine(pipeline)
    gate = Gate(Attendance(engine.worker.cancel_session), Journal())
    build_server(engine, "a slow model", gate).launch(
        server_port=port, quiet=True, prevent_thread_lock=True, **launch_options()
    )
    print(f"open http://127.0.0.1:{port}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(int(sys.argv[1]))
