"""The app on a tiny model whose network takes 50 ms a call; prints when every frame had been computed."""

import sys
import time

from app_server import tiny_pipeline

from ddpm_hf.ui.jobs import Job
from ddpm_hf.ui.look import launch_options
from ddpm_hf.ui.page import build_page
from ddpm_hf.ui.runs import Engine

STEP_SECONDS = 0.05


def main(port: int):
    pipeline = tiny_pipeline(conditional=True)
    pipeline.unet.register_forward_hook(lambda *_: time.sleep(STEP_SECONDS))
    add = Job.add

    def add_and_tell(job, frame):
        print(f"computed {job.id} {frame.index} {1000 * time.time()}", flush=True)
        add(job, frame)

    Job.add = add_and_tell
    page = build_page(Engine(pipeline), "a slow model")
    page.launch(server_port=port, quiet=True, prevent_thread_lock=True, **launch_options())
    print(f"open http://127.0.0.1:{port}", flush=True)
    page.block_thread()


if __name__ == "__main__":
    main(int(sys.argv[1]))
