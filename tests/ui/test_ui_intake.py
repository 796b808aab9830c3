"""Pictures from strangers: what is taken comes out small and upright, everything else gets one clear line."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps
from PIL.PngImagePlugin import PngInfo

from ddpm_hf.errors import UserError
from ddpm_hf.ui import intake


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def arrow(mode="RGB", size=(40, 24)) -> Image.Image:
    """A picture that no turning or mirroring leaves as it is."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).polygon([(2, 2), (size[0] - 4, 5), (5, size[1] - 3)], fill=(200, 30, 60))
    return image.convert(mode)


def refusal(source) -> str:
    with pytest.raises(UserError) as caught:
        intake.picture(source)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 200 and "/" not in message and "Traceback" not in message
    return message


# ---- what is taken

TAKEN = [("PNG", {}), ("GIF", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 100})]


@pytest.mark.parametrize(("kind", "options"), TAKEN)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_each_format(kind, options, mode):
    image = intake.picture(encoded(arrow(mode), kind, **options))
    assert image.size == (40, 24)
    assert image.mode == (mode if kind != "WEBP" else "RGB")  # WebP knows no gray
    error = np.abs(np.asarray(image, int) - np.asarray(arrow(mode).convert(image.mode), int)).mean()
    assert error < (4 if kind in ("JPEG", "GIF") else 0.01)


def test_formats_are_those_named_to_the_visitor():
    message = refusal(b"no picture at all")
    assert all(name in message for name in intake.FORMATS.values())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"])
def test_each_mode_of_png(mode):
    gray = mode in ("1", "L", "LA", "I", "I;16")
    values = np.asarray(arrow("L"))
    image = Image.fromarray(values.astype(np.uint16) << 8) if mode in ("I", "I;16") else arrow(mode)
    found = intake.picture(encoded(image, "PNG"))
    assert found.mode == ("L" if gray else "RGB")
    if mode in ("I;16", "L", "RGB"):
        assert np.array_equal(np.asarray(found), np.asarray(arrow(found.mode)))


def test_cmyk_jpeg():
    found = intake.picture(encoded(arrow("CMYK"), "JPEG", quality=100))
    assert found.mode == "RGB" and np.asarray(found)[0, 0].min() > 250


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("side", [20, 2000])
def test_transparent_is_white(mode, side):
    clear = Image.new("RGBA", (side, side), (0, 0, 0, 0)).convert(mode)
    options = {"transparency": clear.getpixel((0, 0))} if mode == "P" else {}
    assert np.asarray(intake.picture(encoded(clear, "PNG", **options))).min() == 255


def test_transparent_color_of_an_rgb_png():
    image = Image.new("RGB", (1500, 10), (1, 2, 3))
    assert np.asarray(intake.picture(encoded(image, "PNG", transparency=(1, 2, 3)))).min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_is_followed(kind, orientation):
    """Turned and then told so: it comes out as it was."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    turned = arrow()
    if orientation > 1:
        turned = turned.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    found = intake.picture(encoded(turned, kind, exif=exif.tobytes(), **options))
    assert found.size == (40, 24)
    assert np.abs(np.asarray(found, int) - np.asarray(arrow(), int)).mean() < 4


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0" + b"\xff" * 50, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 30, b"x"]
)
def test_nonsense_in_exif_is_left_alone(exif):
    found = intake.picture(encoded(arrow(), "PNG", exif=exif))
    assert np.array_equal(np.asarray(found), np.asarray(arrow()))


def test_nothing_but_pixels_is_kept():
    text = PngInfo()
    text.add_text("place", "home")
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    found = intake.picture(encoded(arrow(), "PNG", pnginfo=text, exif=exif.tobytes()))
    assert found.info == {} and not found.getexif()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (12, 12), color) for color in ("red", "green", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    assert intake.picture(data).getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("size", "shown"), [((3000, 1500), (1024, 512)), ((1024, 1024), (1024, 1024)), ((5000, 3), (1024, 2))]
)
@pytest.mark.parametrize("mode", ["RGB", "P", "1", "I;16"])
def test_large_pictures_are_shrunk(size, shown, mode):
    image = Image.fromarray(np.full(size[::-1], 40_000, np.uint16)) if mode == "I;16" else Image.new(mode, size, 1)
    assert intake.picture(encoded(image, "PNG")).size == shown


def test_a_large_jpeg_keeps_its_colors():
    found = intake.picture(encoded(Image.new("RGB", (4000, 3000), (200, 30, 60)), "JPEG"))
    assert found.size == (1024, 768) and np.abs(np.asarray(found, int) - (200, 30, 60)).max() <= 3


def test_data_urls():
    url = "data:image/png;base64," + base64.b64encode(encoded(arrow(), "PNG")).decode()
    assert np.array_equal(np.asarray(intake.picture(url)), np.asarray(arrow()))


# ---- what is refused


def svg() -> bytes:
    return b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int, pixels: bytes = b"", *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("source", [None, 7, True, [], ["x"], {}, {"path": None}, {"path": 3}, object(), 1.5])
def test_no_picture(source):
    assert "there is no picture" in refusal(source)


def test_empty_and_too_large():
    assert "empty" in refusal(b"")
    assert "5.0 MB" not in refusal(b"x" * 6_000_000)
    assert "6.0 MB, and 5 MB are allowed" in refusal(b"x" * 6_000_000)
    assert "9.0 MB" in refusal("data:image/png;base64," + "A" * 12_000_000)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (svg(), "SVG"),
        (b"\xef\xbb\xbf\n  <SVG width='1'/>", "SVG"),
        (encoded(arrow(), "TIFF"), "TIFF"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 40, "HEIC"),
        (b"%PDF-1.7\n", "document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "document"),
        (b"MZ" + b"\0" * 100, "no picture"),
        (b"PK\x03\x04" + b"\0" * 100, "no picture"),
        (encoded(arrow(), "ICO"), "no picture"),
        (encoded(arrow(), "TGA"), "no picture"),
        (encoded(arrow(), "PPM"), "no picture"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_kinds_of_file(content, words):
    message = refusal(content)
    assert words in message and "send a PNG, JPEG, WebP, GIF or BMP" in message


BOMBS = {
    "png 13000": lambda: encoded(Image.new("L", (13_000, 13_000)), "PNG"),
    "png 50000": lambda: png_claiming(50_000, 50_000),
    "png 2e9": lambda: png_claiming(2**31 - 1, 2**31 - 1),
    "webp": lambda: encoded(Image.new("RGB", (8000, 8000)), "WEBP", lossless=True, method=0),
    "gif": lambda: b"GIF89a\xff\xff\xff\xff\x80" + bytes(8) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
    "bmp": lambda: struct.pack("<2sIIIIiiHHIIiiII", b"BM", 70, 0, 54, 40, 30_000, 30_000, 1, 24, *[0] * 6),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_from_their_headers(kind):
    data = BOMBS[kind]()
    assert len(data) < 400_000
    assert "pixels" in refusal(data) or kind == "png 2e9"


def test_text_bomb():
    """A compressed comment of 100 MB in a picture of a few kilobytes."""
    comment = chunk(b"zTXt", b"ddpm_hf\0\0" + zlib.compress(b"x" * 100_000_000, 9))
    data = png_claiming(4, 4, b"\0\1\2\3\4" * 4, comment)
    assert len(data) < 200_000
    assert "header" in refusal(data)
    assert intake.picture(png_claiming(4, 4, b"\0\1\2\3\4" * 4)).size == (4, 4)


def test_jpeg_with_hundreds_of_scans():
    data = encoded(arrow(size=(64, 64)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert "scans" in refusal(data[:-2] + 200 * scan + data[-2:])
    assert intake.picture(data).size == (64, 64)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_cut_files(kind):
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 256, (60, 60, 3), np.uint8)), kind)
    for length in (3, 12, 40, len(data) // 2):
        assert refusal(data[:length])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_damaged_files_are_a_picture_or_a_line(kind):
    """Three hundred files with bytes changed at random: no other exception, no other mode."""
    rng = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    good = encoded(arrow(), kind, **({"exif": exif.tobytes()} if kind in ("PNG", "JPEG", "WEBP") else {}))
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for at in rng.integers(0, len(good), rng.integers(1, 8)):
            data[at] = rng.integers(0, 256)
        try:
            image = intake.picture(bytes(data))
            assert image.mode in ("L", "RGB") and min(image.size) >= 2 and max(image.size) <= intake.MAX_SIDE
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 0 or kind == "BMP"


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_single_pixels(size):
    assert "at least 2 x 2" in refusal(encoded(Image.new("L", size), "PNG"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/svg+xml,<svg/>", "base64"),
        ("data:image/png;base64", "base64"),
        ("data:image/png;base64,@@@@", "damaged"),
        ("data:image/png;base64,AAA", "damaged"),
        ("data:image/png;base64,\u00e9\u00e9\u00e9\u00e9", "damaged"),
        ("data:image/png;base64,", "empty"),
    ],
)
def test_bad_data_urls(url, words):
    assert words in refusal(url)


def test_no_file_of_the_server_is_read(tmp_path):
    (tmp_path / "mine.png").write_bytes(encoded(arrow(), "PNG"))
    for path in (tmp_path / "mine.png", "/etc/passwd", "", "a\0b", "x" * 10_000, "http://127.0.0.1/x.png", "~"):
        for source in (str(path), {"path": str(path)}, {"url": str(path)}):
            assert "there is no picture" in refusal(source)


def test_note_of_a_png():
    text = PngInfo()
    text.add_text("ddpm_hf", '{"seed": 7}')
    data = encoded(arrow(), "PNG", pnginfo=text)
    assert intake.note(data, "ddpm_hf") == '{"seed": 7}'
    assert intake.note(data, "other") is None
    assert intake.note(encoded(arrow(), "JPEG"), "ddpm_hf") is None
    assert intake.note(encoded(arrow(), "PNG", dpi=(72, 72)), "dpi") is None  # not a text
    with pytest.raises(UserError, match="SVG"):
        intake.note(svg(), "ddpm_hf")


def test_upright_is_what_pillow_calls_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(arrow(), "PNG", exif=exif.tobytes())
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(intake.picture(data)), np.asarray(expected))
