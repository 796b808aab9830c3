"""Stands in for the package of ZeroGPU Spaces: as it does, it pickles what goes in and comes out, and drains ahead."""

import inspect
import pickle
import queue
import threading
from functools import partial, wraps

import gradio as gr
from gradio.context import LocalContext

calls: list[dict] = []
quota_used_up = False


def GPU(task=None, *, duration=None):
    if task is None:
        return partial(GPU, duration=duration)
    assert inspect.isgeneratorfunction(task)

    @wraps(task)
    def handler(*args):
        seconds = duration(*args) if callable(duration) else duration
        calls.append({"seconds": seconds, "visitor": LocalContext.request.get(None), "made": 0, "ended": False})
        call = calls[-1]
        if quota_used_up:
            raise gr.Error("You have exceeded your GPU quota.")
        results, stop = queue.Queue(), threading.Event()
        sent = pickle.dumps(args)

        def iterate():
            try:
                for item in task(*pickle.loads(sent)):
                    if stop.is_set():
                        break
                    call["made"] += 1
                    results.put(pickle.dumps(item))
            except Exception as error:
                results.put(error)
            call["ended"] = True
            results.put(None)

        thread = threading.Thread(target=iterate)
        thread.start()
        try:
            while (result := results.get()) is not None:
                if isinstance(result, Exception):
                    raise gr.Error(type(result).__name__)
                yield pickle.loads(result)
        finally:
            stop.set()
            thread.join()

    return handler
