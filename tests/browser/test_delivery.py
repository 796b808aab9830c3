"""From computed to drawn: every frame of a run at 50 ms a step, timed on both sides by the same clock."""

import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import app_server
import helpers
import numpy as np
import pytest
from driving import PATIENCE, STAGE, finish, generate, set_number

STEPS = 100
P95_MS = 150
ATTEMPTS = 4
BUSY_MS = 70  # a step of 50 ms that takes longer tells that the machine is busy with something else

# Remembers when every step was drawn, in ms since 1970. A run begins with nothing shown: what was there before it, the
# last step of the run before, is none of its own.
RECORD = """(selector) => {
  const stage = document.querySelector(selector);
  new MutationObserver(() => {
    if (stage.dataset.shown === "-1") window.drawn = {};
    else window.drawn[stage.dataset.shown] ??= Date.now();
  }).observe(stage, { attributes: true, attributeFilter: ["data-shown"] });
}"""


@pytest.fixture
def slow_server(tmp_path):
    """(url, {run: {index: ms since 1970 when it was computed}})."""
    port, computed, opened = app_server.free_port(), defaultdict(dict), threading.Event()
    here = Path(__file__).resolve().parent
    paths = [str(helpers.ROOT), *(str(here.parent / part) for part in ("", "ui"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    environment["GRADIO_TEMP_DIR"] = str(tmp_path)
    command = [sys.executable, str(here / "slow_server.py"), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    def read():
        for line in process.stdout:
            words = line.split()
            if words[:1] == ["computed"]:
                # the start comes again, with its x_0
                computed[words[1]].setdefault(int(words[2]), float(words[3]))
            elif words[:1] == ["open"]:
                opened.set()

    threading.Thread(target=read, daemon=True).start()
    assert opened.wait(app_server.START_SECONDS)
    yield f"http://127.0.0.1:{port}", computed
    process.terminate()
    process.wait(120)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_frames_are_drawn_soon_and_none_is_missing(browser, slow_server):
    url, computed = slow_server
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    page.wait_for_selector("html[data-ready]", state="attached")
    set_number(page, "Steps", STEPS)
    set_number(page, "Guidance", 1)  # one call a step, so one wait of 50 ms
    page.evaluate(RECORD, STAGE)
    judged = []
    for attempt in range(ATTEMPTS):
        set_number(page, "Seed", attempt)  # a run that is remembered would be no test
        generate(page)
        finish(page, STEPS)
        # all are there to be scrubbed through, also those that a busy browser had no time to draw
        page.wait_for_function(f"document.querySelector('{STAGE}').dataset.frames === '{STEPS + 1}'")
        made = computed[page.evaluate("ddpm.parts.stage.run.run")]
        until = time.monotonic() + PATIENCE / 1000
        while len(made) < STEPS + 1 and time.monotonic() < until:
            time.sleep(0.05)  # the server's lines come by a pipe of their own
        assert sorted(made) == list(range(STEPS + 1))
        drawn = {int(index): at for index, at in page.evaluate("window.drawn").items()}
        assert list(drawn.values()) == sorted(drawn.values())
        late = [drawn[index] - made[index] for index in drawn]
        p50, p95 = np.percentile(late, [50, 95])
        a_step = np.median(np.diff([made[index] for index in range(STEPS + 1)]))
        print(
            f"{len(drawn)} of {STEPS + 1} frames drawn, a step in {a_step:.0f} ms, late p50 {p50:.0f}, p95 {p95:.0f} ms"
        )
        if a_step <= BUSY_MS:
            judged.append((p95, len(drawn)))
            if p95 <= P95_MS:
                break
    page.close()
    if not judged:
        pytest.skip("all frames came; how late is not judged, for this machine is busy: its steps take far over 50 ms")
    p95, count = min(judged)
    assert p95 <= P95_MS and count > 0.9 * STEPS, judged
