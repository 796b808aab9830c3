"""Pixels of more than 8 bits, transparent ones, and files whose other parts are damaged."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ddpm_hf.data import load_images, open_stream
from ddpm_hf.errors import UserError
from ddpm_hf.source import Source

BOTH_WAYS = pytest.mark.parametrize("streaming", [False, True])


def save(folder, *arrays, suffix=".png"):
    folder.mkdir(exist_ok=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i}{suffix}")
    return str(folder)


def pixels(path, streaming=False, **options) -> list:
    """The pixel in the middle of each picture; gray or (red, green, blue)."""
    if streaming:
        data, _ = open_stream(Source(path), sample_size=8, validation_split=None, shuffle_buffer_size=1, **options)
        images = data.next(2)[0].numpy()
        data.close()
    else:
        images = load_images(path, sample_size=8, **options).images
    found = images[:, :, 4, 4].tolist()
    return [value[0] if len(value) == 1 else tuple(value) for value in found]


def constant(value, dtype):
    return np.full((8, 8), value, dtype)


RANGES = {
    # name -> (values of two pictures, type, pixel_range, what they become)
    "12 bits": ((0, 4095), np.uint16, "auto", [0, 255]),
    "12 bits from above 0": ((1000, 3000), np.uint16, "auto", [0, 255]),
    "a few values": ((0, 15), np.uint16, "auto", [0, 255]),
    "all 16 bits": ((0x1000, 0x80FF), np.uint16, "auto", [0x10, 0x80]),
    "12 bits, full": ((0, 4095), np.uint16, "full", [0, 15]),
    "12 bits, given": ((0, 2047.5), np.uint16, (0, 4095), [0, 127]),
    "32 bits": ((0, 1 << 20), np.int32, "auto", [0, 255]),
    "Hounsfield": ((-1000, 3000), np.int32, "auto", [0, 255]),
    "Hounsfield, given": ((-1000, 40), np.int32, (-160, 240), [0, 128]),
    "floats in 0..1": ((0.25, 0.5), np.float32, "auto", [64, 128]),
    "other floats": ((-2.0, 6.0), np.float32, "auto", [0, 255]),
    "floats, given": ((0.25, 0.5), np.float32, (0.0, 0.5), [128, 255]),
    "masks": ((0, 1), np.uint8, (0, 1), [0, 255]),
    "8 bits": ((3, 14), np.uint8, "auto", [3, 14]),
}


@BOTH_WAYS
@pytest.mark.parametrize("name", RANGES)
def test_pixel_ranges(tmp_path, name, streaming):
    values, dtype, pixel_range, expected = RANGES[name]
    path = save(tmp_path / "set", *(constant(value, dtype) for value in values), suffix=".tif")
    assert pixels(path, streaming, pixel_range=pixel_range) == expected


def test_the_range_is_told(tmp_path):
    ramps = [np.arange(64, dtype=np.uint16).reshape(8, 8) * 10 + 100 * i for i in range(3)]
    data = load_images(save(tmp_path / "a", *ramps), sample_size=8)
    assert data.notes == ("pixel values 0 to 830 become black to white; pixel_range changes that",)
    assert load_images(save(tmp_path / "b", ramps[0] * 100, ramps[1]), sample_size=8).notes == ()


def test_images_of_8_bits_beside_deeper_ones_stay(tmp_path):
    path = save(tmp_path / "set", constant(0, np.uint16), constant(1000, np.uint16), constant(77, np.uint8))
    assert pixels(path) == [0, 255, 77]


def test_the_range_of_a_mapped_set_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    path = save(tmp_path / "set", constant(0, np.uint16), constant(1000, np.uint16))
    first, again = (load_images(path, sample_size=8, max_memory_gb=1e-9) for _ in range(2))
    assert first.notes == again.notes != ()
    assert again.images[:, 0, 4, 4].tolist() == [0, 255]


# ---- transparency

CLEAR_RED = Image.new("RGBA", (8, 8), (255, 0, 0, 0))


@pytest.mark.parametrize(
    ("background", "expected"),
    [("white", (255, 255, 255)), ("black", (0, 0, 0)), ("#102030", (16, 32, 48)), ("mean", (10, 90, 200))],
)
@BOTH_WAYS
def test_backgrounds(tmp_path, background, expected, streaming):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((10, 90, 200, 255), (0, 0, 3, 3))
    (tmp_path / "set").mkdir()
    for i in range(2):
        image.save(tmp_path / "set" / f"{i}.png")
    assert pixels(str(tmp_path / "set"), streaming, background=background) == [expected] * 2


@pytest.mark.parametrize("mode", ["LA", "PA", "P", "RGBA"])
def test_modes_with_transparency(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert("LA" if mode == "LA" else "RGBA")
    if mode in ("P", "PA"):
        image = Image.new("P", (8, 8), 0)
        image.putpalette([255, 0, 0])
        image.info["transparency"] = 0
    (tmp_path / "set").mkdir()
    image.save(tmp_path / "set" / "0.png")
    gray = mode == "LA"
    assert pixels(str(tmp_path / "set"), background="#ffffff") == [255 if gray else (255, 255, 255)]
    assert pixels(str(tmp_path / "set"), background="black") == [0 if gray else (0, 0, 0)]


def test_images_that_come_out_alike_are_told_of(tmp_path):
    icons = []
    for i in range(4):
        icon = np.zeros((8, 8, 4), np.uint8)
        icon[: i + 2, :, :] = 255
        icons.append(icon)
    path = save(tmp_path / "set", *icons)
    assert [note[:25] for note in load_images(path, sample_size=8).notes] == ["all images come out alike"]
    assert load_images(path, sample_size=8, background="black").notes == ()
    assert load_images(save(tmp_path / "one", icons[0]), sample_size=8).notes == ()


# ---- damage beside the pixels


def chunk(kind: bytes, data: bytes, damaged=False) -> bytes:
    check = zlib.crc32(kind + data) ^ (1 if damaged else 0)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def png_with(*chunks: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (10, 20, 30)).save(buffer, "PNG")
    data = buffer.getvalue()
    return data[:33] + b"".join(chunks) + data[33:]  # after IHDR


def jpeg_with(*segments: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (10, 20, 30)).save(buffer, "JPEG", quality=100, subsampling=0)
    data = buffer.getvalue()
    return data[:2] + b"".join(segments) + data[2:]


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


TEXT = zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1000))
DAMAGED = {
    "a text that is too long.png": png_with(chunk(b"zTXt", b"Comment\0\0" + TEXT)),
    "texts that are too long.png": png_with(*[chunk(b"tEXt", b"k%d\0" % i + bytes(2**20)) for i in range(66)]),
    "an iTXt that is cut.png": png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1")),
    "a profile that is too long.png": png_with(chunk(b"iCCP", b"name\0\0" + TEXT)),
    "a profile that is none.png": png_with(chunk(b"iCCP", b"name\0\0nothing")),
    "EXIF that is none.png": png_with(chunk(b"eXIf", b"nothing")),
    "EXIF that is cut.png": png_with(chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff\1\x12")),
    "a wrong checksum.png": png_with(chunk(b"gAMA", struct.pack(">I", 45455), damaged=True)),
    "a density that is cut.png": png_with(chunk(b"pHYs", b"\0\0")),
    "EXIF that is none.jpg": jpeg_with(segment(0xE1, b"Exif\0\0nothing")),
    "EXIF that points outside.jpg": jpeg_with(segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f")),
    "an orientation of 99.jpg": jpeg_with(
        segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x63\0\0\0\0\0\0\0")
    ),
    "XMP that is none.jpg": jpeg_with(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe<x:xmpmeta")),
    "a profile that is cut.jpg": jpeg_with(segment(0xE2, b"ICC_PROFILE\0\2\1half")),
    "frames that are none.jpg": jpeg_with(segment(0xE2, b"MPF\0nothing")),
    "Photoshop's that is cut.jpg": jpeg_with(segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed")),
    "a comment of bytes.jpg": jpeg_with(segment(0xFE, bytes(range(256)))),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_beside_the_pixels_costs_no_picture(tmp_path, name):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(DAMAGED[name])
    assert np.abs(np.array(pixels(str(tmp_path / "set"))) - (10, 20, 30)).max() <= 3


def test_pixels_that_are_cut_stay_an_error(tmp_path):
    (tmp_path / "set").mkdir()
    for name, data in (("0.png", png_with()), ("1.png", png_with()[:-30])):
        (tmp_path / "set" / name).write_bytes(data)
    with pytest.raises(UserError, match=r"row 1 of data set .* \(1\.png\) is not a readable image"):
        load_images(str(tmp_path / "set"))
