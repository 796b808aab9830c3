"""The server deletes nothing, wherever GRADIO_TEMP_DIR points, and leaves nothing behind."""

import base64
import os
import time

import pytest
from app_server import AppServer, export_tiny
from helpers import ROOT

import app
from benchmarks.abuse import Target, png
from ddpm_hf.errors import UserError

# in the server: time flies, so that whatever happens every some minutes happens at once
HASTY = """\
import asyncio
sleep = asyncio.sleep
asyncio.sleep = lambda seconds, *rest: sleep(0.1 if 30 <= seconds < 1e6 else seconds, *rest)
"""


def test_files_of_others_in_the_temporary_folder_stay(tmp_path):
    scratch = tmp_path / "scratch"
    (scratch / "photos" / "empty").mkdir(parents=True)
    foreign = [scratch / "photos" / "cat.png", scratch / "thesis.tex", scratch / ".hidden", scratch / "ddpm_hf-1"]
    for path in foreign:
        path.write_text("years of work")
    for path in scratch.rglob("*"):
        os.utime(path, (1, 1))
    before = sorted(scratch.rglob("*"))
    (tmp_path / "hasty").mkdir()
    (tmp_path / "hasty" / "sitecustomize.py").write_text(HASTY)
    model = export_tiny(tmp_path / "shapes", conditional=True)
    server = AppServer(model, scratch, PYTHONPATH=os.pathsep.join((str(ROOT), str(tmp_path / "hasty"))))
    try:
        target = Target(server.url).look()
        picture = "data:image/png;base64," + base64.b64encode(png(4, 4, bytes(20))).decode()
        assert target.call("generate", num_images=1, steps=1).how == "done"
        assert target.call("noise", t=1, image=picture).how == "done"
        assert target.press("generate", {"image": picture, "t": 1, "steps": 2, "num_images": 1}).how == "done"
        settings = {"num_images": 1, "steps": 2}
        for kind in ("png", "gif", "webp", "mp4"):
            assert target.ask("export", {"settings": settings, "kind": kind}).how == 200
        time.sleep(1)
        assert server.stop() == 0
    finally:
        server.process.kill()
    assert [path.read_text() for path in foreign] == ["years of work"] * 4
    assert sorted(scratch.rglob("*")) == before


def test_a_temporary_folder_that_is_not_there_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "new" / "folder"))
    with app._own_folder() as uploads:
        assert uploads.parent == tmp_path / "new" / "folder" and uploads.is_dir()
        assert os.environ["GRADIO_TEMP_DIR"] == str(uploads)
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path / "new" / "folder") and not uploads.exists()


def test_the_folder_of_the_app_is_gone_at_its_end_and_nothing_else(tmp_path, monkeypatch):
    """Where GRADIO_TEMP_DIR is not set, it is in the system's folder for temporary files."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "thesis.tex").write_text("years of work")
    with app._own_folder() as uploads:
        assert uploads.parent == tmp_path
        (uploads / "a.png").write_bytes(b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_temporary_folder_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "file"))
    with (
        pytest.raises(UserError, match=r"cannot create a folder in .*file: .*; set GRADIO_TEMP_DIR"),
        app._own_folder(),
    ):
        pass
