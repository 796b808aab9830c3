"""What the package shows to people, editors and type checkers, and what installing it leaves behind."""

import ast
import os
import subprocess
import sys

import pytest
from clean_room import bare_environment, make_environment
from helpers import ROOT, tiny_pipeline

import ddpm_hf
from ddpm_hf.hub import export_pipeline

NAMED = ("Trainer", "TrainConfig", "evaluate", "samplers", "with_sampler", "load_pipeline", "export_pipeline", "push")
BUILD = "from setuptools import build_meta; print(build_meta.build_wheel({!r}))"


def test_dir_shows_what_the_docs_name():
    assert {*NAMED, "deploy_space", "MyUNet", "__version__"} <= set(dir(ddpm_hf))
    assert ddpm_hf.samplers.SAMPLERS and callable(ddpm_hf.evaluate) and callable(ddpm_hf.deploy_space)


def test_type_checkers_see_the_same_names_at_the_same_places():
    tree = ast.parse((ROOT / "ddpm_hf" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {}
    for statement in block.body:
        for alias in statement.names:
            assert alias.name == alias.asname  # the form that marks an export
            seen[alias.name] = statement.module.removeprefix("ddpm_hf").lstrip(".") or alias.name
    assert seen == ddpm_hf._HOME_OF
    assert (ROOT / "ddpm_hf" / "py.typed").is_file()


def test_installing_leaves_git_status_clean():
    made = ["build/x", "dist/x.whl", "ddpm_hf.egg-info/PKG-INFO", "env/bin/python", ".venv/bin/python"]
    ignored = subprocess.run(["git", "check-ignore", *made], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if ignored.returncode == 128:
        pytest.skip("this is no checkout")
    assert ignored.stdout.split() == made


@pytest.mark.slow
def test_the_wheel_in_a_fresh_environment(tmp_path):
    """With the command, the types, the template and the page, and without the checkout."""
    import shutil

    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
    source = tmp_path / "source"
    for name in filter(None, os.fsdecode(tracked).split("\0")):
        if not name.startswith(("tests/", "docs/", "pretrained/", "data/", "benchmarks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    built = [sys.executable, "-c", BUILD.format(str(tmp_path))]
    done = subprocess.run(built, cwd=source, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    wheel = tmp_path / done.stdout.split()[-1]
    names = [
        line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    ]
    python = make_environment(tmp_path / "env", *filter(None, names))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, timeout=200)

    environment = bare_environment(tmp_path / "home")
    model = export_pipeline(tmp_path / "model", tiny_pipeline())

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    for command in ([python.parent / "ddpm-hf"], [python, "-m", "ddpm_hf"]):
        assert "sample" in run(*command, "--help")
    run(python.parent / "ddpm-hf", "sample", model, "--num-images", "1", "--output", tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()
    script = "import ddpm_hf, pathlib; f = pathlib.Path(ddpm_hf.__file__).parent; print(f)\n"
    script += "for name in dir(ddpm_hf): getattr(ddpm_hf, name)\n"
    script += "for p in ('py.typed', 'report.html.jinja', 'hub/model_card.md', 'ui/static'): assert (f / p).exists(), p"
    assert str(tmp_path / "env") in run(python, "-c", script)
