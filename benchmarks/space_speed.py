"""How fast the Space is: the first frame, a whole run, what streaming costs, and memory.

    python -m benchmarks.space_speed [--num-images 16] [--steps 20] [--repeats 5] [--model PATH_OR_ID]

"Engine" is in this process: the same images without frames, straight from the pipeline, and through the stage's stream,
in turn, each time from other seeds, so that nothing comes from the cache; the best of the repeats counts. "Server" is
``python app.py`` as a process of its own, asked over HTTP as the page asks; the median counts. The server's memory is
that of its process, after the start, after the first run, and after the last.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import torch

from ddpm_hf.devices import best_device, best_dtype, leave_cores
from ddpm_hf.hub import load_pipeline
from ddpm_hf.samplers import DEFAULT_SAMPLER
from ddpm_hf.sampling import generate, with_sampler
from ddpm_hf.ui.runs import Engine, stream_to_stage

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 300


def main(argv: list[str] | None = None):
    arguments = _parser().parse_args(argv)
    device, cores = best_device(), leave_cores()
    pipeline = load_pipeline(arguments.model, device=device, dtype=best_dtype(device))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {cores} threads")
    print(f"{arguments.num_images} images, {arguments.steps} steps of {DEFAULT_SAMPLER}, {pipeline.unet.dtype}")

    plain, first, streamed = engine_seconds(Engine(pipeline, arguments.model, cores=cores), cores, arguments)
    print(f"engine   without frames  {plain:7.3f} s")
    print(f"         streamed        {streamed:7.3f} s   streaming costs {100 * (streamed / plain - 1):.1f} %")
    print(f"         first frame     {first:7.3f} s")
    del pipeline
    served = server_seconds(arguments)
    print(f"server   first frame     {served['first']:7.3f} s")
    print(f"         whole run       {served['whole']:7.3f} s")
    print(f"         again, cached   {served['cached']:7.3f} s")
    started, one, last = (f"{size / 2**20:.0f} MB" for size in served["memory"])
    print(f"         memory          {started} started, {one} after one run, {last} after {arguments.repeats + 1}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.space_speed", description=__doc__.split("\n")[0])
    parser.add_argument("--num-images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", help="folder or Hub id; the embedded model when left out")
    return parser


# ---- in this process


def engine_seconds(engine: Engine, cores: int, arguments) -> tuple[float, float, float]:
    """(all without frames, the first frame, all frames), the best of the repeats after one that does not count."""
    plain, first, streamed = [], [], []
    for repeat in range(1 + arguments.repeats):
        request = {"num_images": arguments.num_images, "steps": arguments.steps, "seed": 1000 * repeat}
        own = engine.limits.own  # what the page asks for
        request |= {"guidance_scale": own.guidance_scale, "guidance_interval": own.guidance_interval}
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=[cores]) as thread:  # as the engine's
            plain.append(thread.submit(_plain_seconds, engine, request).result())
        seen = asyncio.run(_stream_seconds(engine, request))
        first.append(seen[0])
        streamed.append(seen[1])
    engine.close()
    return min(plain[1:]), min(first[1:]), min(streamed[1:])


def _plain_seconds(engine: Engine, request: dict) -> float:
    began = time.perf_counter()
    generate(with_sampler(engine.pipeline, DEFAULT_SAMPLER), **request, progress=False)
    return time.perf_counter() - began


async def _stream_seconds(engine: Engine, request: dict) -> tuple[float, float]:
    began, first = time.perf_counter(), None
    async for value in stream_to_stage(engine, request):
        if first is None and value["frames"]:
            first = time.perf_counter() - began
    if value["state"] != "done" or value["cached"]:
        raise RuntimeError(f"the run is {value['state']}, cached {value['cached']}.")
    return first, time.perf_counter() - began


# ---- over HTTP


def server_seconds(arguments) -> dict:
    """Medians of the first frame and of the whole run, one run from the cache, and memory in bytes at three moments."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    chosen = [] if arguments.model is None else ["--model", arguments.model]
    command = [sys.executable, "app.py", *chosen, "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        try:
            return _measured(f"http://127.0.0.1:{port}", psutil.Process(process.pid), arguments)
        finally:
            process.terminate()


def _measured(url: str, process: psutil.Process, arguments) -> dict:
    _wait(url, process)
    memory, seconds = [process.memory_info().rss], []
    for repeat in range(1 + arguments.repeats):
        request = {"num_images": arguments.num_images, "steps": arguments.steps, "seed": 1000 * repeat}
        seconds.append(_run_seconds(url, request))
        if repeat == 0:
            memory.append(process.memory_info().rss)
    memory.append(process.memory_info().rss)
    _, cached = _run_seconds(url, request)
    first, whole = (statistics.median(times) for times in zip(*seconds[1:]))
    return {"first": first, "whole": whole, "cached": cached, "memory": memory}


def _wait(url: str, process: psutil.Process):
    """Until the server answers."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        try:
            httpx.get(f"{url}/healthz", timeout=60).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise SystemExit("the app did not start.")


def _run_seconds(url: str, request: dict) -> tuple[float, float]:
    """Seconds from the press of the button to the first frame, and to the end."""
    first, began = None, time.perf_counter()
    body = {"what": "generate", "values": request, "session": uuid.uuid4().hex}
    with httpx.stream("POST", f"{url}/page/run", json=body, timeout=600) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if first is None and "data:image" in line:
                first = time.perf_counter() - began
            event = json.loads(line.removeprefix("data: ") or "{}")
            if "error" in event:
                raise SystemExit(f"the run failed: {event['error']}")
            if event.get("state") == "done":
                return first, time.perf_counter() - began
    raise SystemExit("the stream ended before the run did.")


if __name__ == "__main__":
    main()
