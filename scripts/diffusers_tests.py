"""diffusers' own common tests of schedulers, models and pipelines, on ours.

    python -m scripts.diffusers_tests CHECKOUT [pytest's options]

CHECKOUT is a clone of diffusers, best at the tag of the installed version; nothing is written there.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(argv: list[str]) -> int:
    checkout = Path(argv[0]).resolve() if argv else None
    if checkout is None or not (checkout / "tests" / "schedulers" / "test_schedulers.py").is_file():
        print("give the folder of a clone of diffusers.", file=sys.stderr)
        return 2
    # before ours, whose tests are no package
    path = filter(None, (str(checkout), str(ROOT), os.environ.get("PYTHONPATH")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
    return subprocess.run([*command, str(ROOT / "scripts" / "common_tests.py"), *argv[1:]], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
