"""The scripts that make data."""

from pathlib import Path

import pytest
from PIL import Image

from ddpm_hf.data import load_images
from scripts import make_emoji

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


@pytest.mark.parametrize(
    ("name", "folder"),
    [("CLOCK FACE ONE OCLOCK", "clock"), ("GRINNING FACE", "face"), ("OLDER MAN", "person"), ("MAN", "person"),
     ("LEFT RIGHT ARROW", "sign"), ("PEACH", "thing"), ("MANGO", "thing")],
)  # fmt: skip
def test_classes_are_told_by_whole_words(name, folder):
    assert make_emoji.class_of(name) == folder


@pytest.mark.skipif(not FONT.exists(), reason="the package fonts-noto-color-emoji is not installed")
def test_pictures_of_a_font_are_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(make_emoji, "CODE_POINTS", [0x2194, 0x1F34E, 0x1F600, 0x1F601, 0x1F9FF + 0x300])
    make_emoji.main([str(FONT), str(tmp_path)])
    pictures = sorted(tmp_path.rglob("*.png"))
    assert [path.parent.name for path in pictures] == ["face", "face", "sign", "thing"]
    assert all(Image.open(path).mode == "RGBA" for path in pictures)
    data = load_images(str(tmp_path))
    assert data.images.shape == (4, 3, 32, 32) and data.label_names == ["face", "sign", "thing"]
    apple = data.images[3].astype(int)
    assert apple[:, 0, 0].tolist() == [255, 255, 255]  # transparent becomes white
    assert apple[0, 16, 16] > apple[1, 16, 16] + 50  # red
