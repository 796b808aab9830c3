"""Hostile answers to a push, and to what loads or shows a model of the Hub: success, or one printable line in time."""

import shutil
from pathlib import Path

import pytest
from hostile.answers import COMMIT, TAGGED, TREE, Answered, answer_cases
from hostile.cases import parameters
from hostile.test_cases import check
from huggingface_hub import HfApi


@pytest.mark.parametrize("case", parameters(answer_cases()))
def test_answers(limited, valid, hub, tmp_path, case: Answered):
    folder = Path(shutil.copytree(valid["model"], tmp_path / "folder"))
    if "alice/there" in case.command:
        HfApi().create_repo("alice/there")
        HfApi().upload_folder(repo_id="alice/there", folder_path=folder / "model")
    hub.fault(*case.request, times=10_000, raw=case.raw, more=case.more, pause=case.pause)
    result = limited.run(list(case.command), folder, case.seconds)
    hub.faults.clear()
    check(result, case)
    made = hub.repos.get(("model", "alice/m"))
    may_commit = case.words is None or case.request in (TREE, COMMIT, TAGGED)  # what is asked after it, too
    assert may_commit or made is None or len(made.commits) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]
