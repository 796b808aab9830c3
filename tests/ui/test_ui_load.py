"""The load of honest and hostile clients, for one minute and ten; benchmarks/space_load.py does it for hours."""

import pytest
from app_server import export_tiny

from benchmarks import space_load
from benchmarks.abuse import Seen, Target


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_minute_of_everything(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = export_tiny(tmp_path / "shapes", conditional=True)
    result = space_load.measure(str(model), minutes=1, clients=32, honest=16)
    space_load.report(result)
    # caches are still filling: only the long form can tell growth from that
    assert space_load.failures(result, max_growth=0.15) == []
    assert "refused with the right message" in capsys.readouterr().out
    assert result["kinds"] >= 30


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_minutes_of_everything_with_the_embedded_model():
    result = space_load.measure(None, minutes=10, clients=32, honest=16)
    space_load.report(result)
    assert space_load.failures(result) == []
    assert result["kinds"] >= 60


def test_failures_are_told():
    good = {"crashes": 0, "log": [], "faults": [], "stuck": 0, "after": "done", "exit": 0, "served": 5, "refused": 5}
    good |= {"files": 0, "growth": 0.01}
    assert space_load.failures(good) == []
    bad = {"crashes": 1, "faults": ["x"], "stuck": 1, "after": "closed", "exit": None, "served": 0, "refused": 0}
    for name, value in {**bad, "files": 3, "growth": 0.06}.items():
        assert len(space_load.failures({**good, name: value})) == 1


def test_growth_leaves_the_first_quarter_out():
    assert space_load.growth([1, 2, 100, 100, 100, 100, 110, 110]) == pytest.approx(0.1)
    assert space_load.growth([100.0]) == 0


def test_abuse_is_for_a_server_of_ones_own():
    for url in ("http://example.org", "http://10.0.0.1:80", "http://localhost.example.org"):
        with pytest.raises(ValueError, match=r"127\.0\.0\.1"):
            Target(url)


def test_a_fault_is_found():
    kind = space_load.ABUSES[0]
    assert kind.fault(Seen("done")) and kind.fault(Seen("error", "something else")) and kind.fault(Seen(200))
    leak = "Steps must be a whole number, says /home/me/app.py"
    assert kind.fault(Seen("error", leak)) and kind.fault(Seen("error", "Steps must be a whole number.")) is None
