"""HEIC, as telephones take it: read where pillow-heif is installed; see test_folders for where it is not."""

import numpy as np
import pytest
from making import table
from PIL import Image

from ddpm_hf.data import load_images

pillow_heif = pytest.importorskip("pillow_heif")
COLORS = [(200, 40, 40), (40, 200, 40), (40, 40, 200)]


@pytest.fixture
def folder(tmp_path):
    for i, color in enumerate(COLORS):
        path = tmp_path / "set" / ("cat" if i < 2 else "dog") / f"IMG_{i}.{['HEIC', 'jpg', 'heif'][i]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.tile(np.array(color, np.uint8), (40, 64, 1))
        pixels[:, 32:] = 0
        exif = Image.Exif()
        exif[0x0112] = 6  # taken upright
        heif = pillow_heif.from_pillow(Image.fromarray(pixels))
        heif.save(path, quality=90, exif=exif.tobytes())
    return tmp_path / "set"


def test_pictures_of_a_telephone(folder):
    """Also one that is called .jpg; upright, as they were taken."""
    data = load_images(str(folder), sample_size=64)
    assert (data.output_size, data.left_out, data.labels.tolist()) == ((64, 40), (), [0, 0, 1])
    assert np.abs(data.images[:, :, 16, 32].astype(int) - COLORS).max() < 12
    assert data.images[:, :, 60, 32].max() < 12


def test_in_a_table(tmp_path, folder):
    files = sorted(folder.rglob("*.*"))
    rows = table().select(range(3)).remove_columns("image").add_column("image", [file.read_bytes() for file in files])
    rows.to_parquet(tmp_path / "a.parquet")
    assert load_images(str(tmp_path / "a.parquet"), sample_size=64).output_size == (64, 40)
