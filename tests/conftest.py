"""Fixtures of all tests. The Hub double starts here, before anything imports huggingface_hub, which freezes its
endpoint at import; so no test can reach another Hub than the one on loopback."""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "ui"))
sys.path.insert(0, str(Path(__file__).parent / "hub"))
from casdouble import XetHub

HUB = XetHub(tempfile.mkdtemp()).start()
HUB.add_user("hf_write", "alice", ["acme"])
HUB.add_user("hf_read", "bob", role="read")
os.environ.update(
    HF_ENDPOINT=HUB.endpoint,
    HF_TOKEN="hf_write",
    HF_HOME=tempfile.mkdtemp(),
    NO_PROXY="127.0.0.1,localhost",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_XET_CLIENT_RETRY_MAX_ATTEMPTS="2",
    HF_XET_CLIENT_RETRY_BASE_DELAY="50ms",
    HF_XET_TELEMETRY_ENABLED="0",
    HF_XET_CLIENT_RECONSTRUCTION_API_VERSION="1",
    HF_XET_CLIENT_SHARD_API_VERSION="1",
    HF_XET_CLIENT_LEGACY_DIRECT_XORB_UPLOAD="1",
    GRADIO_ANALYTICS_ENABLED="0",
)
os.environ.pop("HF_HUB_OFFLINE", None)

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from helpers import ROOT, upload_here  # noqa: E402

hypothesis.settings.register_profile("few", max_examples=10)
hypothesis.settings.register_profile("many", max_examples=40)  # CI's: --hypothesis-profile many
hypothesis.settings.load_profile("few")

torch.set_num_threads(1)  # the models are tiny: a second thread only waits


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """A process has one precision; the next test, or a fixture that it is the first to ask for, may want another."""
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(True)


@pytest.fixture
def hub(request, monkeypatch):
    """An empty Hub double; HUB.endpoint is its address. The client stores by LFS, or as the test's parameter says."""
    import huggingface_hub.constants as constants

    storage = getattr(request, "param", "lfs")
    if storage == "xet":
        pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", storage == "lfs")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1" if storage == "lfs" else "0")  # for processes
    HUB.faults.clear()
    HUB.log.clear()
    HUB.repos.clear()
    HUB.storage = storage
    yield HUB
    unrouted = [entry for entry in HUB.log if entry.get("unrouted")]
    assert not [entry for entry in unrouted if "agent-harness" not in entry["p"] and "telemetry" not in entry["p"]]


@pytest.fixture
def uploads_here(monkeypatch):
    """Uploads are made in this process: a process for each, which most tests are not about, takes long."""
    monkeypatch.setattr("ddpm_hf.hub.upload.Sending", upload_here())


@pytest.fixture
def root() -> Path:
    """The folder of the checkout."""
    return ROOT
