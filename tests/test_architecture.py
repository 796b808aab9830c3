"""Dependencies point one way, uploaded files stand alone, and importing has no side effects."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGE = ROOT / "ddpm_hf"
UPLOADED = ("unet", "scheduler", "pipeline")
LEAVES = (*UPLOADED, "errors", "devices", "files", "reading", "stopping")
ANYWHERE = {"reading"}  # may be imported

# module -> the modules of ours it may import
ALLOWED = {
    **{name: set() for name in LEAVES},
    "source": {"errors"},
    "data": {"data", "errors", "files", "hub", "memory", "source"},  # of hub the retries alone
    "config": {"errors", "files", "source"},
    "ownership": {"errors", "reading"},
    "figures": {"errors"},
    "samplers": {"errors", "scheduler"},
    "checkpoints": {"errors", "files", "ownership"},
    "run": {"checkpoints", "errors", "files", "ownership"},
    "hub": {
        "checkpoints",
        "config",
        "errors",
        "evaluation",
        "files",
        "hub",
        "memory",
        "ownership",
        "run",
        "text_encoders",
        *UPLOADED,
    },
    "memory": {"errors"},
    "text_encoders": {"errors", "memory"},
    "sampling": {"errors", "figures", "memory", "pipeline", "samplers", "scheduler"},
    "image_sets": {"data", "devices", "errors", "pipeline", "sampling"},
    "evaluation": {"data", "devices", "errors", "evaluation", "image_sets", "ownership"},
    "commands": {
        "checkpoints",
        "commands",
        "config",
        "data",
        "devices",
        "errors",
        "evaluation",
        "figures",
        "files",
        "hub",
        "image_sets",
        "ownership",
        "report",
        "run",
        "samplers",
        "sampling",
        "scheduler",
        "stopping",
        "training",
    },
    "report": {"config", "errors", "figures", "files", "run"},
    "training": {
        "checkpoints",
        "config",
        "data",
        "devices",
        "errors",
        "evaluation",
        "figures",
        "files",
        "hub",
        "memory",
        "ownership",
        "report",
        "run",
        "samplers",
        "sampling",
        "source",
        "stopping",
        "text_encoders",
        "training",
        *UPLOADED,
    },
    "ui": {
        "data",
        "devices",
        "errors",
        "evaluation",
        "figures",
        "hub",
        "memory",
        "pipeline",
        "run",
        "samplers",
        "sampling",
        "ui",
    },
    "__init__": {"config", "errors", "evaluation", "hub", "samplers", "sampling", "training", *UPLOADED},
    "__main__": {"commands", "errors"},
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


def test_text_is_printed_through_errors_alone():
    """``echo`` makes a printable line of text that others wrote; a JSON answer is one by itself."""
    for path in [*PACKAGE.rglob("*.py"), ROOT / "app.py", ROOT / "train.py"]:
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = [call.id if isinstance(call, ast.Name) else getattr(call, "attr", "") for call in calls]
        allowed = {"errors.py": 2, "upload.py": 1}.get(path.name, 0)
        assert names.count("print") == allowed, f"{path}: use ddpm_hf.errors.echo"


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies_point_one_way(path):
    ours = {name.split(".")[1] for name in imported_modules(path) if name.startswith("ddpm_hf.")}
    modules = {part_of(file) for file in PACKAGE.rglob("*.py")}
    assert ours & modules <= ALLOWED[part_of(path)] | ANYWHERE


@pytest.mark.parametrize("name", UPLOADED)
def test_uploaded_files_need_only_torch_and_diffusers(name):
    packages = {module.split(".")[0] for module in imported_modules(PACKAGE / f"{name}.py")}
    assert packages - set(sys.stdlib_module_names) <= {"torch", "diffusers"}


# what ddpm_hf/ui and app.py take from Gradio: public names, documented at gradio.app/docs
OF_GRADIO = {"Error", "Request", "Server", "close_all"}


def test_nothing_private_of_gradio_is_used():
    """A release of Gradio may change everything else, and would break the Space."""
    import gradio

    used = set()
    for path in [*PACKAGE.rglob("*.py"), ROOT / "app.py"]:
        tree = ast.parse(path.read_text())
        of_gradio = {name for name in imported_modules(path) if name.split(".")[0] == "gradio"}
        assert of_gradio <= {"gradio"}, f"{path}: import gradio as gr, and take public names from it"
        attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        used |= {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "gr"}
    assert used <= OF_GRADIO <= set(gradio.__all__), used


def test_importing_the_package_and_the_entries_is_light_and_silent():
    script = (
        "import sys, ddpm_hf, ddpm_hf.__main__, app, train\n"
        "heavy = {'torch', 'diffusers', 'gradio', 'datasets', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_every_public_name_can_be_imported():
    import ddpm_hf

    for name in ddpm_hf.__all__:
        assert getattr(ddpm_hf, name).__doc__
