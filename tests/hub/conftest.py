import re
from pathlib import Path

import pytest
from clean_room import make_environment

from ddpm_hf.hub.space import space_requirements


@pytest.fixture(scope="session")
def space_python(tmp_path_factory) -> Path:
    """An interpreter with what a Space installs."""
    names = [re.match(r"[\w.-]+", line)[0] for line in space_requirements().splitlines()]
    return make_environment(tmp_path_factory.mktemp("space-python"), *names)


@pytest.fixture(scope="session")
def diffusers_python(tmp_path_factory) -> Path:
    """An interpreter with diffusers and torch alone."""
    return make_environment(tmp_path_factory.mktemp("diffusers-python"), "diffusers", "torch", "safetensors")
