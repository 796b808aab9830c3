"""Dependencies point one way, uploaded files stand alone, and importing has no side effects."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGE = ROOT / "ddpm_hf"
UPLOADED = ("unet", "scheduler", "pipeline")
LEAVES = (*UPLOADED, "errors", "devices", "files", "stopping")

# module -> the modules of ours it may import
ALLOWED = {
    **{name: set() for name in LEAVES},
    "data": {"data", "errors", "files", "hub"},  # of hub the retries alone
    "config": {"errors", "files"},
    "figures": {"errors"},
    "samplers": {"errors", "scheduler"},
    "checkpoints": {"files"},
    "hub": {"checkpoints", "errors", "hub", *UPLOADED},
    "sampling": {"errors", "figures", "pipeline", "samplers"},
    "classifier": {"data", "devices"},
    "features": {"classifier", "errors"},
    "metrics": {"errors"},
    "image_sets": {"data", "devices", "errors", "pipeline", "sampling"},
    "evaluation": {"devices", "errors", "features", "image_sets", "metrics"},
    "commands": {
        *("checkpoints", "classifier", "commands", "config", "data", "devices", "errors", "evaluation", "features"),
        *("figures", "files", "hub", "image_sets", "metrics", "samplers", "sampling", "scheduler", "training"),
    },
    "report": {"errors", "figures", "files"},
    "training": {
        *("checkpoints", "config", "data", "devices", "errors", "features", "figures", "files", "hub", "metrics"),
        *("report", "samplers", "stopping", "training", *UPLOADED),
    },
    "ui": {"data", "devices", "errors", "figures", "hub", "pipeline", "samplers", "sampling", "ui"},
    "__init__": {"config", "errors", "hub", *UPLOADED},
    "__main__": {
        *("commands", "config", "devices", "errors", "figures", "files", "hub", "report", "samplers", "sampling"),
        "training",
    },
}


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not found when the file is uploaded"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies_point_one_way(path):
    ours = {name.split(".")[1] for name in imported_modules(path) if name.startswith("ddpm_hf.")}
    modules = {part_of(file) for file in PACKAGE.rglob("*.py")}
    assert ours & modules <= ALLOWED[part_of(path)]


@pytest.mark.parametrize("name", UPLOADED)
def test_uploaded_files_need_only_torch_and_diffusers(name):
    packages = {module.split(".")[0] for module in imported_modules(PACKAGE / f"{name}.py")}
    assert packages - set(sys.stdlib_module_names) <= {"torch", "diffusers"}


def test_importing_the_package_and_the_entries_is_light_and_silent():
    script = (
        "import sys, ddpm_hf, ddpm_hf.__main__, app, train\n"
        "heavy = {'torch', 'diffusers', 'gradio', 'datasets', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_every_public_name_can_be_imported():
    import ddpm_hf

    for name in ddpm_hf.__all__:
        assert getattr(ddpm_hf, name).__doc__
