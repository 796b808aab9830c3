"""What is installed without the checkout: the wheel has all that a push needs."""

import os
import shutil
import subprocess
import sys
import zipfile

from example_runs import card_of
from helpers import ROOT, tiny_pipeline

from ddpm_hf.hub import export_pipeline

PARTS = (
    "ddpm_hf",
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "requirements.txt",
    "README.md",
    "LICENSE",
    "model_card.md",
)
BUILD = "from setuptools import build_meta; print(build_meta.build_wheel('built'))"


def test_a_push_of_the_installed_package_makes_the_card(hub, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    built = subprocess.run([sys.executable, "-c", BUILD], cwd=source, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-2000:]
    with zipfile.ZipFile(source / "built" / built.stdout.split()[-1]) as wheel:
        wheel.extractall(tmp_path / "installed")
    assert not (tmp_path / "model_card.md").exists()
    model = export_pipeline(tmp_path / "model", tiny_pipeline())
    command = [sys.executable, "-m", "ddpm_hf", "push", str(model), "--repo-id", "alice/m", "--license", "mit"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert card_of(hub).data.license == "mit"
    for copied, top in (("ddpm_hf/hub/model_card.md", "model_card.md"), ("ddpm_hf/hub/card.py", "ddpm_hf/hub/card.py")):
        assert (tmp_path / "installed" / copied).read_bytes() == (ROOT / top).read_bytes()
