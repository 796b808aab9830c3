"""SIGTERM and SIGINT: at any moment, on any rank, nothing is lost."""

import os
import signal
import time

import pytest
from accelerate.state import AcceleratorState
from helpers import moments_file
from tiny_runs import assert_same_weights, metrics, tiny_run, tiny_trainer, untimed

from ddpm_hf.stopping import StopRequested, StopSignal


class StopAt(StopSignal):
    """Asks for a stop at the n-th check, wherever in the run that falls."""

    def __init__(self, check: int):
        super().__init__()
        self.left = check

    def agreed(self) -> bool:
        self.left -= 1
        self.reason = "SIGTERM" if self.left < 0 else None
        return self.left < 0


def test_a_stop_at_any_check_is_resumed_to_the_bit(tmp_path, real_grids, capsys):
    """Checks lie between steps, in the validation, the sampling and the score; a run is ended at ever later ones."""
    folder = tmp_path / "whole"
    stop = StopAt(10**6)
    score = {"score_features": moments_file(tmp_path / "features.pt"), "score_steps": 6, "score_images": 10}
    score |= {"max_images": 200}
    tiny_run(folder, stop, **score)
    checks = 10**6 - stop.left
    run, stops = tmp_path / "run", 0
    where = set()
    while True:
        AcceleratorState._reset_state(True)
        trainer = tiny_run(run, StopAt(3 + 4 * stops), **score)
        if trainer.state.step == 12 and (run / "pipeline").exists():
            break
        stops += 1
        where.add(trainer.state.step)
        output = capsys.readouterr().out
        assert f"stopped at step {trainer.state.step} of 12 (SIGTERM); the state is saved in" in output
        assert (run / "checkpoints" / f"step-{trainer.state.step}" / "manifest.json").exists()
    assert checks > 50
    assert stops >= 5
    assert len(where) >= 3
    assert_same_weights(folder, run)
    assert untimed(metrics(folder)) == untimed(metrics(run))
    for grid in (folder / "samples").iterdir():
        assert grid.read_bytes() == (run / "samples" / grid.name).read_bytes()


def test_signals_raise_before_the_work_begins_and_are_noted_after():
    before = signal.getsignal(signal.SIGINT)  # ignored, where a shell started the tests in the background
    with StopSignal() as stop, pytest.raises(StopRequested):
        os.kill(os.getpid(), signal.SIGTERM)
    with StopSignal() as stop:
        stop.begin()
        assert not stop.agreed()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed()
        assert stop.reason == "SIGINT"
        with pytest.raises(StopRequested):
            stop.check()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_during_an_import_waits_for_its_end(tmp_path, monkeypatch):
    """An exception inside an import may be dropped by C code, and the module be imported a second time."""
    (tmp_path / "slow_module.py").write_text(
        "import os, signal, time\n"
        "for _ in range(2):\n"  # Ctrl-C reaches a process twice where a launcher forwards it
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(0.3)\n"
        "whole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    start = time.monotonic()
    with StopSignal() as stop:
        with pytest.raises(StopRequested):
            import slow_module

            time.sleep(60)  # it wakes up
        time.sleep(0.3)
        assert time.monotonic() - start < 50
        assert stop.reason == "SIGINT"
    assert slow_module.whole


def test_a_second_interrupt_ends_at_once_but_not_its_echo(monkeypatch):
    import ddpm_hf.stopping as stopping

    now = 100.0
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now)
    with StopSignal() as stop:
        stop.begin()
        os.kill(os.getpid(), signal.SIGINT)
        now += 0.5
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed()
        now += 10
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_whose_launcher_died_stops(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    stop = StopSignal()
    stop.begin()
    assert not stop.agreed()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert stop.agreed()
    assert stop.reason == "its launcher ended"
    monkeypatch.undo()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    alone = StopSignal()
    monkeypatch.setattr(os, "getppid", lambda: 1)  # nohup, or a closed shell
    assert not alone.agreed()


def test_a_stop_while_the_loss_is_bad_keeps_the_last_good_state(tmp_path, capsys):
    """The weights may be what is wrong: they must not take the place of the last good ones."""
    trainer = tiny_trainer(tmp_path, StopAt(9), checkpoints_total_limit=1, validation_split=None, sample_steps=100)
    step = trainer.train_step

    def spoil():
        if trainer.state.step == 5:
            for parameter in trainer.state.unet.parameters():
                parameter.data.fill_(float("nan"))
        step()

    trainer.train_step = spoil
    trainer.train()
    assert (trainer.state.step, trainer.state.progress.bad_steps) == (8, 3)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-4"]
    assert f"the state is saved in {tmp_path / 'checkpoints' / 'step-4'}" in capsys.readouterr().out


def test_one_of_several_ranks_does_not_leave_early(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed()


def test_a_hangup_is_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.agreed()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopSignal(), pytest.raises(StopRequested):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
