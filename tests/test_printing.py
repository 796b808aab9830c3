"""Text that others wrote reaches terminals, logs and pages only as printable lines of bounded length."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import tiny_pipeline

import train
from ddpm_hf.__main__ import main
from ddpm_hf.errors import LONGEST_LINE, UserError, echo, printable
from ddpm_hf.hub import export_pipeline
from ddpm_hf.sampling import class_names
from ddpm_hf.ui.description import describe
from ddpm_hf.ui.runs import Engine

ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp.\u2066\n\r\t\x00\ud800"


def is_clean(text: str) -> bool:
    return "".join(text.split("\n")).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("T-shirt/top, Größe ½ · ルーメン", "T-shirt/top, Größe ½ · ルーメン"),
        ("👩\u200d🚀 می\u200cکنم", "👩\u200d🚀 می\u200cکنم"),
        ("a\nb\r\tc\u2028d", "a b  c d"),
        ("\x1b[31mred\x1b[0m\x9b\x07", "?[31mred?[0m??"),
        ("evil\u202egnp.exe\u2066\ufeff\ud800", "evil?gnp.exe???"),
        (7, "7"),
    ],
)
def test_what_controls_or_reorders_text_is_replaced(text, shown):
    assert printable(text) == shown == printable(shown)


def test_long_text_keeps_its_ends():
    cut = printable("begin" + "x" * 10**7 + "end")
    assert len(cut) == LONGEST_LINE and cut.startswith("begin") and cut.endswith("end") and printable(cut) == cut
    assert len(str(UserError("x" * 10**7))) == LONGEST_LINE


def test_echo_prints_one_line(capsys):
    echo(f"one {ESCAPES}")
    echo("two", error=True)
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and is_clean(out) and err == "two\n"


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    pipeline = tiny_pipeline(num_class_embeds=2, id2label={"0": f"shirt {ESCAPES}", "1": "shoe" * 10**5})
    return export_pipeline(tmp_path_factory.mktemp("printing") / "model", pipeline)


def sample(model: Path, output: Path, *more: str) -> int:
    return main(["sample", str(model), "--num-images", "1", "--steps", "1", "--output", str(output), *more])


def changed(exported: Path, folder: Path, **index) -> Path:
    shutil.copytree(exported, folder)
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **index}))
    return folder


@pytest.mark.parametrize("name", [f"Evil{ESCAPES}", "Evil" * 10**6])
def test_names_of_classes(exported, tmp_path, capsys, name):
    model = changed(exported, tmp_path / "model", unet=["diffusers", name])
    assert sample(model, tmp_path / "x.png") == 2
    error = capsys.readouterr().err
    assert "has a unet of class Evil" in error and error.count("\n") == 1 and is_clean(error)
    assert len(error) < 2 * LONGEST_LINE


def test_labels(exported, tmp_path, capsys):
    assert sample(exported, tmp_path / "x.png", "--labels", "coat") == 2
    error = capsys.readouterr().err
    assert "has no class 'coat'" in error and error.count("\n") == 1 and is_clean(error)
    assert len(error) < 2 * LONGEST_LINE


def test_the_consent_line(exported, tmp_path, capsys):
    """Names of files and folders cannot rewrite it, and a module is found in the model's folder alone."""
    model = changed(exported, tmp_path / f"model{ESCAPES[:-1].replace(chr(0), '')}", unet=["evil", "Evil"])
    (model / "unet" / "evil.py").touch()
    (model / "unet" / f"harmless{ESCAPES[:6]}.py").touch()
    assert sample(model, tmp_path / "x.png") == 2
    error = capsys.readouterr().err
    assert "brings code of its own, " in error and "unet/evil.py" in error
    assert error.count("\n") == 1 and is_clean(error)
    for module in ("../../unet/evil", "a b", "/tmp/evil", "evil.", ""):
        outside = changed(exported, tmp_path / f"outside {len(module)}{module[:1] == '/'}", unet=[module, "Evil"])
        (outside / "unet" / "evil.py").touch()
        (outside / "unet" / f"{Path(module).name}.py").touch()
        assert sample(outside, tmp_path / "x.png", "--trust-remote-code") == 2
        assert "has a unet of class Evil; known are" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["dataset", "image_column", "output_dir", "nonsense"])
def test_settings_of_a_run(tmp_path, capsys, monkeypatch, setting):
    monkeypatch.chdir(tmp_path)
    given = {"dataset": "none", "output_dir": "run", setting: f"none{ESCAPES[:-2]}" + "x" * 10**5}
    assert train.main([word for name, value in given.items() for word in (f"--{name}", value)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and is_clean(error) and len(error) < 2 * LONGEST_LINE


def test_what_the_page_shows_of_a_model():
    pipeline = tiny_pipeline(num_class_embeds=2, id2label={"0": f"shirt {ESCAPES}", "1": "shoe" * 10**5})
    pipeline.scheduler.register_to_config(prediction_type=f"epsilon{ESCAPES}")
    assert all(is_clean(name) and len(name) <= LONGEST_LINE for name in class_names(pipeline))
    engine = Engine(pipeline)
    try:
        shown = describe(engine)
    finally:
        engine.close()
    rows = [*shown["card"]["settings"], [item["name"] for item in shown["classes"]], [shown["prediction_type"]]]
    assert all(is_clean(text) and len(text) <= LONGEST_LINE for row in rows for text in row)
