"""Hostile models and settings: each ends in time and within 2 GiB, in success or in one printable line."""

import re
import shutil
from pathlib import Path

import pytest
from hostile.cases import Case, apply, model_cases, parameters, settings_cases

LONGEST = 600  # characters of a line


def check(result: dict, case: Case):
    """Success, or one printable line that says what is wrong; in time and in memory."""
    assert result["status"] is not None, f"it had not ended after {result['seconds']:.0f} s: {result['err'][-2000:]}"
    text = result["out"] + result["err"]
    assert "Traceback" not in text, text[-3000:]
    assert all(line.isprintable() for line in result["out"].splitlines()), ascii(text[-3000:])
    assert result["memory"] < case.memory
    if case.words is None:
        assert result["status"] == 0, text[-3000:]
        return
    assert result["status"] == 2, text[-3000:]
    line = result["err"].rstrip("\n").splitlines()[-1]
    assert line.startswith("error: ") and line.isprintable() and len(line) < LONGEST, ascii(line[:2000])
    assert re.search(case.words, line), ascii(line)


@pytest.mark.parametrize("case", parameters(model_cases()))
def test_models(limited, valid, tmp_path, case: Case):
    folder = Path(shutil.copytree(valid[case.base], tmp_path / "folder"))
    apply(folder / "model", case.files)
    check(limited.run(list(case.command), folder, case.seconds), case)
    assert (folder / "x.png").exists() == (case.words is None)
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize("case", parameters(settings_cases()))
def test_settings(limited, valid, tmp_path, case: Case):
    folder = Path(shutil.copytree(valid[case.base], tmp_path / "folder"))
    apply(folder, case.files)
    check(limited.run(list(case.command), folder, case.seconds), case)
    assert not (folder / "run").exists() and not list(tmp_path.rglob("ran"))
