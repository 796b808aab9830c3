"""Hostile runs and data sets, in output_dir, in a report, in a push: success, or one printable line."""

import shutil
from pathlib import Path

import pytest
from hostile.cases import Case, apply, parameters
from hostile.runs import run_cases
from hostile.test_cases import check


@pytest.mark.parametrize("case", parameters(run_cases()))
def test_runs(limited, valid, hub, tmp_path, case: Case):
    folder = Path(shutil.copytree(valid["run"], tmp_path / "folder"))
    apply(folder, case.files)
    check(limited.run(list(case.command), folder, case.seconds), case)
