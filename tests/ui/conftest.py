import pytest
import torch
from app_server import AppServer, export_tiny, tiny_pipeline

from ddpm_hf.ui.runs import Engine


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Networks this small are fastest with one thread, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shapes():
    """A tiny conditional model."""
    return tiny_pipeline(conditional=True)


@pytest.fixture(scope="session")
def colors():
    """A tiny unconditional RGB model."""
    return tiny_pipeline(conditional=False)


@pytest.fixture
def engine(shapes) -> Engine:
    """A tiny conditional model, in this process, with nothing in its cache."""
    engine = Engine(shapes)
    yield engine
    engine.close()


@pytest.fixture
def computed(engine, monkeypatch) -> list[int]:
    """The first seeds of the tasks of ``engine`` in the order in which they are computed.

    Not the order in which visitors see their ends: each looks again at a time of its own.
    """
    seeds, compute = [], engine.worker._compute

    def watched(model, tasks):
        seeds.extend(task.settings.seeds[0] for task in tasks)
        return compute(model, tasks)

    monkeypatch.setattr(engine.worker, "_compute", watched)
    return seeds


@pytest.fixture
def plain_engine(colors) -> Engine:
    """A tiny unconditional RGB model, in this process, with nothing in its cache."""
    engine = Engine(colors)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The app as a process, on a tiny conditional model."""
    model = export_tiny(tmp_path_factory.mktemp("models") / "shapes", conditional=True)
    server = AppServer(model, tmp_path_factory.mktemp("scratch"))
    yield server
    assert server.stop() == 0
