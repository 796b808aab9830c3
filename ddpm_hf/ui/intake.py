"""Pictures from strangers: a file of any kind and any intent becomes a small upright picture, or one clear line."""

import base64
import binascii
import contextlib
import io
import re
import threading
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from ddpm_hf.data import BadImage, is_gray, to_mode
from ddpm_hf.errors import UserError

MAX_FILE_BYTES = 5_000_000
MAX_PIXELS = 24_000_000  # a telephone's photograph; decoded it takes 100 MB, for one picture at a time
MAX_SIDE = 1024  # what is kept: no network here sees more
MAX_SCANS = 40  # of a progressive JPEG; usual are 10, and each costs as much time as a whole picture

# Each has a decoder that checks what it reads. Never add EPS, which starts Ghostscript.
FORMATS = {"PNG": "PNG", "JPEG": "JPEG", "WEBP": "WebP", "GIF": "GIF", "BMP": "BMP"}
_WANTED = "send a PNG, JPEG, WebP, GIF or BMP file."

_decoding = threading.Lock()
# Pillow would write two lines into the log for a picture that is refused here, by a limit below its own.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def picture(source, *, max_side: int = MAX_SIDE) -> Image.Image:
    """A visitor's picture: of an animation the first frame, upright, what is transparent on white.

    It takes up to half a second, so call it in a thread. Nothing but the pixels is kept: no EXIF, no profile.

    Args:
        source: what came over the wire: the bytes of a file, or a data URL.
        max_side: pixels; a larger picture is made smaller.

    Returns:
        An "L" or "RGB" image, of gray files the former, whose sides are from 2 to ``max_side`` pixels.

    Raises:
        UserError: for anything else than a whole picture within the limits.
    """
    content = read(source)
    with _decoding:
        return _decode(content, max_side)


def note(source, key: str) -> str | None:
    """The text that a PNG carries under ``key`` ahead of its pixels, which are not looked at; None without one.

    Raises:
        UserError: as ``picture`` does for what is no picture at all.
    """
    image = _open(read(source))
    value = image.info.get(key) if image.format == "PNG" else None
    return value if isinstance(value, str) else None


def read(source) -> bytes:
    """The bytes behind ``source``, which ``picture`` describes.

    Raises:
        UserError: if there are none, or too many.
    """
    if isinstance(source, str) and source.startswith("data:"):
        content = _from_data_url(source)
    elif isinstance(source, bytes | bytearray | memoryview):
        content = bytes(source)
    else:
        raise UserError(f"there is no picture: {_WANTED}")
    if not content:
        raise UserError(f"the file is empty: {_WANTED}")
    _check_size(len(content))
    return content


def _check_size(num_bytes: int):
    if num_bytes > MAX_FILE_BYTES:
        raise UserError(
            f"the file has {num_bytes / 1e6:.1f} MB, and {MAX_FILE_BYTES / 1e6:.0f} MB are allowed: send a smaller one."
        )


def _from_data_url(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise UserError(f"the picture's data URL is not in base64: {_WANTED}")
    _check_size(len(body) * 3 // 4)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("the picture's data URL is damaged: send it again.") from None


# ---- decoding


def _open(content: bytes) -> Image.Image:
    """The picture with its header read, and not yet its pixels."""
    try:
        image = Image.open(io.BytesIO(content), formats=tuple(FORMATS))
    except UnidentifiedImageError:
        raise UserError(f"{_guess(content)}: {_WANTED}") from None
    except Image.DecompressionBombError:  # Pillow's own limit comes first
        raise UserError(f"the picture has far too many pixels: {_smaller()}") from None
    except Exception:
        raise UserError("the picture is damaged: its header cannot be read.") from None
    _check_pixels(image)
    return image


def _check_pixels(image: Image.Image):
    width, height = image.size
    if min(width, height) < 2:
        raise UserError(f"the picture has {width} x {height} pixels; it needs at least 2 x 2.")
    if width * height > MAX_PIXELS:
        raise UserError(f"the picture has {width} x {height} pixels: {_smaller()}")


def _smaller() -> str:
    return f"at most {MAX_PIXELS // 10**6} million are allowed, make it smaller."


def _decode(content: bytes, max_side: int) -> Image.Image:
    image = _open(content)
    kind = FORMATS[image.format]
    if image.format == "JPEG":
        if content.count(b"\xff\xda") > MAX_SCANS:
            raise UserError("the picture is a JPEG of too many scans: save it again, as a usual JPEG or a PNG.")
        image.draft(None, (max_side, max_side))  # a large one is decoded at a fraction of its size
    try:
        image.load()
        _turn_upright(image)
        image = _shrunk(image, max_side)
        image = to_mode(image, "L" if is_gray(image) else "RGB")
    except BadImage as error:
        raise UserError(f"the picture {error}.") from None
    except Exception:  # OSError, SyntaxError, struct.error, EOFError, ...: as many as there are ways to be damaged
        raise UserError(f"the {kind} picture is damaged or not whole: save it again and send that.") from None
    return _pixels_only(image)


def _turn_upright(image: Image.Image):
    with contextlib.suppress(Exception):  # where the EXIF makes no sense, the pixels still do
        ImageOps.exif_transpose(image, in_place=True)


def _shrunk(image: Image.Image, max_side: int) -> Image.Image:
    """At most ``max_side`` wide and high, and at least 2: a long thin picture is cut, not squeezed to a line."""
    if max(image.size) <= max_side:
        return image
    if "transparency" in image.info or image.mode == "PA":
        image = image.convert("RGBA")
    elif image.mode in ("P", "1"):  # entries of a palette cannot be averaged
        image = image.convert("RGB" if image.mode == "P" else "L")
    scale = min(1, max(max_side / max(image.size), 2 / min(image.size)))
    width, height = (max(2, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BOX)
    return image.crop((0, 0, min(width, max_side), min(height, max_side)))


def _pixels_only(image: Image.Image) -> Image.Image:
    clean = Image.new(image.mode, image.size)
    clean.paste(image)
    return clean


def _guess(content: bytes) -> str:
    """What a file that is no picture known here may be."""
    start = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<") and b"<svg" in content[:4096].lower():
        return "this is a drawing (SVG), not a picture of pixels"
    if re.match(rb"....ftyp(heic|heix|mif1|msf1|avif|avis)", start, re.DOTALL):
        return "this is a HEIC or AVIF file"
    if start.startswith((b"ii*\0", b"mm\0*")):
        return "this is a TIFF file"
    if start.startswith((b"%pdf", b"%!ps")):
        return "this is a document"
    return "this is no picture that can be read here"
