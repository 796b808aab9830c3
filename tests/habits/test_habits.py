"""The table of habits: every case ends with ours, and with a stock pipeline, as habit_cases.py says."""

import copy

import diffusers
import pytest
from habit_cases import CASES, LINE, PIPELINES, outcome
from packaging.version import Version


@pytest.mark.parametrize("whose", PIPELINES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_habit_ends_as_the_table_says(case, whose, tmp_path):
    if Version(diffusers.__version__) < Version(case.since):
        pytest.skip(f"diffusers {case.since} does so")
    ended, said = outcome(case.do, copy.deepcopy(PIPELINES[whose]()), tmp_path)
    assert ended == getattr(case, whose), said
    if whose == "ours" and (ended == LINE or case.theirs):
        assert case.says and case.says in said


def test_names_of_cases_differ():
    assert len({case.name for case in CASES}) == len(CASES)
