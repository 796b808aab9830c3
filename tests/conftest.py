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

import pytest  # noqa: E402
import torch  # noqa: E402
from helpers import ROOT  # noqa: E402

torch.set_num_threads(1)  # the models are tiny: a second thread only waits


@pytest.fixture(params=["lfs", "xet"])
def hub(request, monkeypatch):
    """An empty Hub double, with the storage of the client chosen; HUB.endpoint is its address."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1" if request.param == "lfs" else "0")  # for processes
    HUB.faults.clear()
    HUB.log.clear()
    HUB.repos.clear()
    HUB.storage = request.param
    yield HUB
    unrouted = [entry for entry in HUB.log if entry.get("unrouted")]
    assert not [entry for entry in unrouted if "agent-harness" not in entry["p"] and "telemetry" not in entry["p"]]


@pytest.fixture
def root() -> Path:
    """The folder of the checkout."""
    return ROOT
