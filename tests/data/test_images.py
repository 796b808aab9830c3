"""Every kind of image a file may hold is read right, or told of in one line with its row and its name."""

import io

import datasets
import numpy as np
import pytest
from making import PIXELS, flat, numbered, told, write_idx
from PIL import Image, ImageCms

from ddpm_hf.data import Source, load_images, open_data
from ddpm_hf.data.images import to_mode
from ddpm_hf.errors import UserError

RED = Image.new("RGB", (10, 8), (255, 0, 0))
WHITE, BLACK, GRAY = (255, 255, 255), (0, 0, 0), (128, 128, 128)


def save(path, image, **options):
    image.save(path, **options)
    return path


def palette(colors, transparency=None):
    image = Image.new("P", (10, 8), 1)
    image.putpalette([channel for color in colors for channel in color])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def sixteen_bit_rgb(path):
    """A PNG with 16 bits a channel, which Pillow reads but does not write."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + struct.pack(">HHH", 0x80FF, 0, 0xFFFF) * 10 for _ in range(8))
    head = struct.pack(">IIBBBBB", 10, 8, 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


KINDS = {
    "rgb.png": (RED, (255, 0, 0)),
    "rgba.png": (RED.convert("RGBA"), (255, 0, 0)),
    "clear.png": (Image.new("RGBA", (10, 8), (255, 0, 0, 0)), WHITE),
    "half.png": (Image.new("RGBA", (10, 8), (0, 0, 0, 128)), (127, 127, 127)),
    "gray.png": (Image.new("L", (10, 8), 77), (77,)),
    "la.png": (Image.new("LA", (10, 8), (0, 0)), (255,)),
    "bits.png": (Image.new("1", (10, 8), 1), (255,)),
    "palette.png": (palette([BLACK, (255, 0, 0)]), (255, 0, 0)),
    "gray palette.png": (palette([BLACK, GRAY]), (128,)),
    "clear palette.png": (palette([BLACK, (255, 0, 0)], transparency=1), WHITE),
    "16 bits.png": (Image.fromarray(np.full((8, 10), 0x80FF, np.uint16)), (128,)),
    "16 bits.tif": (Image.fromarray(np.full((8, 10), 0x80FF, np.uint16)), (128,)),
    "big endian.tif": (Image.frombytes("I;16B", (10, 8), b"\x80\xff" * 80), (128,)),
    "32 bits.tif": (Image.fromarray(np.full((8, 10), 0x80FF, np.int32)), (128,)),
    "cmyk.jpg": (RED.convert("CMYK"), (255, 0, 0)),
    "frames.gif": (RED.quantize(2), (255, 0, 0)),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_images(tmp_path, name):
    image, color = KINDS[name]
    more = {"save_all": True, "append_images": [Image.new("RGB", (10, 8)).quantize(2)]} if name == "frames.gif" else {}
    image.save(tmp_path / name, **more)
    data = load_images(str(tmp_path), sample_size=16)
    assert (data.output_size, data.num_channels) == ((8, 10), len(color))
    pixels = data.images[0, :, 4:12, 3:13].astype(int)
    assert np.abs(pixels - np.array(color)[:, None, None]).max() <= 1


@pytest.mark.parametrize(
    "suffix",
    [".bmp", ".webp", ".avif", ".tga", ".jfif", ".jp2", ".ppm", ".sgi", ".pcx", ".dib", ".apng", ".TIFF", ".Jpe"],
)
def test_formats(tmp_path, suffix):
    kind = Image.registered_extensions()[suffix.lower()]
    for i in range(2):
        RED.save(tmp_path / f"IMG {i}{suffix}", kind)
    data = load_images(str(tmp_path), sample_size=16)
    assert (len(data), data.output_size, data.left_out) == (2, (8, 10), ())
    assert np.abs(data.images[:, :, 8, 8].astype(int) - (255, 0, 0)).max() <= 8


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB", "RGBX", "RGBa", "PA", "CMYK"])
def test_modes_that_few_files_have(mode):
    image = RED.convert("RGBA").convert(mode) if mode == "RGBa" else RED.convert("RGB")
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    image = image.convert(mode) if image.mode == "RGB" else image
    assert np.abs(np.asarray(to_mode(image, "RGB")).astype(int) - (255, 0, 0)).max() <= 5
    assert np.abs(np.asarray(to_mode(image, "L")).astype(int) - 76).max() <= 3


def test_sixteen_bits_of_every_channel(tmp_path):
    sixteen_bit_rgb(tmp_path / "a.png")
    data = load_images(str(tmp_path), sample_size=16)
    assert data.images[0, :, 8, 8].tolist() == [128, 0, 255]


def test_several_frames_of_a_camera_are_one_image(tmp_path):
    RED.save(tmp_path / "a.mpo", save_all=True, append_images=[Image.new("RGB", (10, 8))])
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    data = load_images(str(tmp_path), sample_size=16)
    assert abs(int(data.images[0, 0, 8, 8]) - 255) < 3


def test_sixteen_bit_grayscale_keeps_its_range(tmp_path):
    Image.fromarray(np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "a.png")
    data = load_images(str(tmp_path), sample_size=8)
    assert (data.images.min(), data.images.max(), data.num_channels) == (0, 255, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_cameras_held_upright(tmp_path, orientation):
    """The first pixel of what is seen, and its size; the oracle is Pillow's own table of the EXIF standard."""
    image = Image.new("L", (8, 6))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    data = load_images(str(tmp_path), sample_size=8)
    corner = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    height, width = (8, 6) if orientation >= 5 else (6, 8)
    assert data.output_size == (height, width)
    top, left = (8 - height) // 2, (8 - width) // 2
    row = top if corner[0] == "t" else top + height - 1
    column = left if corner[1] == "l" else left + width - 1
    assert np.argwhere(data.images[0, 0] == 255).tolist() == [[row, column]]


# ---- what cannot be used


def png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if image.mode == "F" else "PNG")
    return buffer.getvalue()


WHOLE = png(Image.fromarray(PIXELS[1]))
BAD = {
    "cut": (WHOLE[: len(WHOLE) // 2], "is not a readable image: "),
    "text": (b"no picture", "is not a readable image: no image format known here"),
    "empty": (b"", "is not a readable image: no image format known here"),
    "missing": (None, "has no image"),
    "not a number": (png(Image.new("F", (28, 28), float("nan"))), "has pixels that are not numbers"),
    "a pixel": (png(Image.new("L", (1, 1))), "is 1x1 pixels; it needs at least 2x2"),
    "a line": (png(Image.new("L", (28, 1))), "is 1x28 pixels; it needs at least 2x2"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_images_are_named_or_skipped(tmp_path, kind):
    bad, reason = BAD[kind]
    path = numbered(tmp_path / "a.parquet", [10, bad, 30], labels=[0, 1, 2], names=["a", "b", "c"], shape=(28, 28))
    with pytest.raises(UserError, match=f"row 1 of data set .* {reason}") as error:
        load_images(path)
    assert "\n" not in str(error.value)
    for memory in (1, 1e-9):
        data = load_images(path, on_bad_image="skip", max_memory_gb=memory)
        assert told(data.images[:, :, 14:, 14:]) == [10, 30]
        assert (data.labels.tolist(), data.num_classes, data.sizes) == ([0, 2], 3, (2,))
        assert len(data.skipped) == 1
        assert data.skipped[0].startswith("row 1 of data set ")


def test_bad_files_are_named(tmp_path):
    for i in range(3):
        Image.fromarray(PIXELS[i]).save(tmp_path / f"{i}.png")
    Image.fromarray(np.full((28, 28), 1 << 20, np.int32)).save(tmp_path / "1.tif")
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match=r"row 1 of data set .* \(1\.tif\) has pixels of more than 16 bits"):
        load_images(str(tmp_path), pixel_range="full")


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = numbered(tmp_path / "a.parquet", [1, 2], shape=(28, 28))
    with pytest.raises(UserError, match=r"row 0 of data set .* is not a readable image: .*decompression bomb"):
        load_images(path)


@pytest.mark.parametrize("memory", [1, 1e-9])
def test_only_bad_images_are_one_line(tmp_path, memory):
    path = numbered(tmp_path / "a.parquet", [b"x", None])
    with pytest.raises(UserError, match=r"none of the 2 images of data set .* can be used: row 0 ") as error:
        load_images(path, on_bad_image="skip", max_memory_gb=memory)
    assert "\n" not in str(error.value)


# ---- one mode, one size


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("auto", [7, 9], [[7], [9]]),
        ("auto", [7, (1, 2, 3)], [[7, 7, 7], [1, 2, 3]]),
        ("L", [7, (255, 0, 0)], [[7], [76]]),
        ("RGB", [7, 9], [[7, 7, 7], [9, 9, 9]]),
    ],
)
def test_image_modes(tmp_path, mode, values, expected):
    data = load_images(numbered(tmp_path / "a.parquet", values), sample_size=8, image_mode=mode)
    assert data.images[:, :, 4, 4].tolist() == expected


def test_one_late_image_changes_what_all_become(tmp_path):
    """The rule is guessed from a few headers: what the last image shows that they do not is still heeded."""
    gray = [i % 200 for i in range(150)]
    path = numbered(tmp_path / "a.parquet", [*gray[:100], (1, 2, 3), *gray[100:]])
    for memory in (1, 1e-9):
        data = load_images(path, sample_size=12, max_memory_gb=memory)
        assert (data.num_channels, data.output_size) == (3, (8, 8))
        assert data.images[100, :, 6, 6].tolist() == [1, 2, 3]
        assert (data.images[99, :, 6, 6] == 99).all()
    other = numbered(tmp_path / "b.parquet", [*gray[:100], flat(5, (9, 8)), *gray[100:]])
    data = load_images(other, sample_size=12)
    assert data.output_size == (12, 12)
    assert told(data.images)[98:102] == [98, 99, 5, 100]


@pytest.mark.parametrize("resize", ["auto", "pad", "crop", "area"])
@pytest.mark.parametrize("kind", ["array", "files"])
def test_every_resize_against_an_oracle(tmp_path, resize, kind):
    if kind == "array":
        path = tmp_path / "a-images-idx3-ubyte"
        write_idx(path, PIXELS)
    else:
        path = tmp_path / "a.parquet"
        images = datasets.Dataset.from_dict({"image": [Image.fromarray(pixels) for pixels in PIXELS]})
        images.cast_column("image", datasets.Image()).to_parquet(str(path))
    small = load_images(str(path), sample_size=14, resize="crop" if resize == "pad" else resize)
    large = load_images(str(path), sample_size=32, resize=resize)
    assert small.images.shape == (6, 1, 14, 14)
    if resize == "area":
        means = PIXELS.reshape(6, 14, 2, 14, 2).mean((2, 4))
        assert np.abs(small.images[:, 0] - means).max() <= 1  # Pillow rounds after either direction
        assert (small.output_size, small.output_resize) == ((28, 28), True)
    else:
        scaled = [np.asarray(Image.fromarray(p).resize((14, 14), Image.Resampling.LANCZOS)) for p in PIXELS]
        assert np.array_equal(small.images[:, 0], scaled)
        assert (small.output_size, small.output_resize) == ((14, 14), False)
    padded = resize in ("auto", "pad")
    assert np.array_equal(large.images[:, 0, 2:30, 2:30], PIXELS) == padded
    assert large.output_size == ((28, 28) if padded or resize == "area" else (32, 32))


def test_area_of_several_sizes_is_not_scaled_back(tmp_path):
    for i, size in enumerate([(9, 30), (12, 12)]):
        Image.new("L", size, 100 + i).save(tmp_path / f"{i}.png")
    data = load_images(str(tmp_path), sample_size=8, resize="area")
    assert (data.output_size, data.output_resize, told(data.images)) == ((8, 8), False, [100, 101])


def test_images_that_are_validated_on_follow_the_others(tmp_path):
    for split, values, shape in (("train", [1, 2], (6, 6)), ("test", [(255, 0, 0), (255, 0, 0)], (20, 10))):
        numbered(tmp_path / "data" / f"{split}.parquet", values, shape=shape)
    source = [Source(str(tmp_path / "data"))]
    train, validation = open_data(source, sample_size=8)
    assert (train.images.shape, validation.images.shape) == ((2, 1, 8, 8), (2, 1, 8, 8))
    assert (train.output_size, validation.output_size) == ((6, 6), (6, 6))
    assert (validation.images[:, :, 1:7, 1:7] == 76).all()
    assert validation.images.sum() == 2 * 36 * 76
    with pytest.raises(UserError, match=r"row 0 of data set .* is 20x10, others are 6x6"):
        open_data(source, sample_size=8, resize="pad")
