"""One image: from whatever a file holds to uint8 pixels of the network's size."""

import contextlib
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from ddpm_hf.reading import open_regular

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
LARGEST_REPAIRED = 2**28  # bytes of a damaged file that are read
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # more than 8 bits, or floating point
GRAY_MODES = ("1", "L", "LA", "La", *DEEP_MODES)
FULL = (0.0, 65535.0)


HEIF_SUFFIXES = (".heic", ".heif", ".hif")
NO_PICTURES = (".h5", ".hdf", ".grib", ".bufr", ".mpg", ".mpeg")  # Pillow knows them, but decodes none of them


@functools.cache
def image_suffixes() -> frozenset[str]:
    """How the names of pictures end, in lower case: all that Pillow decodes, with pillow-heif HEIC, too."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    known = {suffix.lower() for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset(known - set(NO_PICTURES))


class BadImage(Exception):
    """An image that cannot be used. The message goes on a line 'row 3 of data set x ...'."""


def decode(image_bytes: bytes | None, path: str | None) -> Image.Image:
    """An upright image from the bytes of a file, or from a file; of several frames the first.

    What else a file holds, EXIF, XMP, texts, profiles, may be damaged: the pixels count.

    Raises:
        BadImage: if it is missing, cannot be read, or has a side of a single pixel.
    """
    if image_bytes is None and path is None:
        raise BadImage("has no image")
    try:
        image = _used(image_bytes, path, _upright)
    except UnidentifiedImageError:
        heic = _is_heic(image_bytes, path)
        known = "it is HEIC, which pip install pillow-heif reads" if heic else "no image format known here"
        raise BadImage(f"is not a readable image: {known}") from None
    except Exception as error:  # OSError, SyntaxError, struct.error, DecompressionBombError, ...
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise BadImage(f"is not a readable image: {reason}") from None
    if min(image.size) < 2:
        raise BadImage(f"is {image.height}x{image.width} pixels; it needs at least 2x2")
    return image


def _is_heic(image_bytes: bytes | None, path: str | None) -> bool:
    """Whether a file begins as HEIC, whatever it is called: telephones name such files .jpg, too."""
    with open_regular(path) if image_bytes is None else io.BytesIO(image_bytes) as file:
        return file.read(12)[4:] in (b"ftypheic", b"ftypheix", b"ftypheif", b"ftyphevc", b"ftypmif1")


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    with contextlib.suppress(Exception):  # EXIF that is damaged, of any kind, says nothing
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _used(image_bytes: bytes | None, path: str | None, use: Callable[[Image.Image], Any]):
    """What ``use`` makes of the image of a file; if need be, of a PNG or JPEG without all that is not its pixels."""
    image_suffixes()  # with pillow-heif, HEIC is known from then on
    with open_regular(path) if image_bytes is None else io.BytesIO(image_bytes) as file:
        try:
            return use(Image.open(file))
        except Exception:
            with contextlib.suppress(Exception):  # as damaged as before: the first error says it
                file.seek(0)
                return use(Image.open(io.BytesIO(_bare(file))))
            raise


def _bare(file: BinaryIO) -> bytes:
    data = file.read(8)
    if not data.startswith((PNG, JPEG)):
        raise ValueError("no kind of file that has such parts")
    data += file.read(LARGEST_REPAIRED)
    return _bare_png(data) if data.startswith(PNG) else _bare_jpeg(data)


def _bare_png(data: bytes) -> bytes:
    """A PNG's critical chunks and its transparency."""
    kept, start = [data[:8]], 8
    while start + 8 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _bare_jpeg(data: bytes) -> bytes:
    """A JPEG without comments and application segments, but for Adobe's, which tells the color space."""
    kept, start = [data[:2]], 2
    while data[start] == 0xFF and data[start + 1] != 0xDA:
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if not (0xE1 <= data[start + 1] <= 0xEF and data[start + 1] != 0xEE) and data[start + 1] != 0xFE:
            kept.append(data[start:end])
        start = end
    return b"".join([*kept, data[start:]])


class Header(NamedTuple):
    """What the header of an image says. gray: it has no color. shape: (height, width). mode: Pillow's mode."""

    gray: bool
    shape: tuple[int, int]
    mode: str


def header(image_bytes: bytes | None, path: str | None) -> Header | None:
    """The header of an image, without decoding its pixels; None where it cannot be read."""
    try:
        return _used(image_bytes, path, _header)
    except Exception:  # reported when it is decoded, if it cannot be used
        return None


def _header(image: Image.Image) -> Header | None:
    turned = False
    with contextlib.suppress(Exception):
        turned = image.getexif().get(0x0112, 1) >= 5
    shape = image.size if turned else image.size[::-1]
    return Header(is_gray(image), shape, image.mode) if min(shape) > 1 else None


def is_gray(image: Image.Image) -> bool:
    """Whether an image has no color; a palette of grays has none."""
    if image.mode in ("P", "PA"):
        palette = np.frombuffer(bytes(image.getpalette("RGB") or b""), np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in GRAY_MODES


def to_mode(
    image: Image.Image,
    mode: str,
    *,
    levels: tuple[float, float] = FULL,
    stretch: bool = False,
    background: str = "white",
) -> Image.Image:
    """``image`` as "L" or "RGB", 8 bits.

    Args:
        levels: the values of an image of more than 8 bits, or of floating point, that become black and white.
        stretch: apply ``levels`` to images of 8 bits, too.
        background: what shows where an image is transparent: a color, or "mean", its own where it is not.

    Raises:
        BadImage: for pixels that are not numbers, or outside of 16 bits where ``levels`` are these, or a color space
            that Pillow does not convert.
    """
    stretch = stretch and image.mode not in DEEP_MODES
    try:
        if image.mode in DEEP_MODES:
            image = _eight_bits(image, levels)
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            image = image.convert("RGBA")
            color = _mean_color(image) if background == "mean" else ImageColor.getrgb(background)
            image = Image.alpha_composite(Image.new("RGBA", image.size, color), image)
        if image.mode == "LAB":
            image = image.convert("RGB")  # Pillow knows no other way from there
        image = image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise BadImage(f"cannot be converted from {image.mode} to {mode}: {error}") from None
    if stretch:
        low, high = levels
        table = ((np.arange(256) - low) * 255 / (high - low)).round().clip(0, 255).astype(int).tolist()
        return image.point(table * len(image.getbands()))
    return image


def _eight_bits(image: Image.Image, levels: tuple[float, float]) -> Image.Image:
    pixels = np.asarray(image)
    if image.mode == "F" and not np.isfinite(pixels).all():
        raise BadImage("has pixels that are not numbers")
    if levels == FULL:
        if pixels.min() < 0 or pixels.max() > 65535:
            raise BadImage("has pixels of more than 16 bits; use pixel_range: auto, or the lowest and highest value")
        return Image.fromarray((pixels.astype(np.int32) >> 8).astype(np.uint8))
    low, high = levels
    return Image.fromarray(((pixels - np.float64(low)) * 255 / (high - low)).round().clip(0, 255).astype(np.uint8))


def _mean_color(image: Image.Image) -> tuple[int, int, int]:
    pixels = np.asarray(image).reshape(-1, 4).astype(np.float64)
    weights = pixels[:, 3]
    return tuple((pixels[:, :3].T @ weights / max(weights.sum(), 1)).round().astype(int).tolist())


# ---- to the network's size; every function takes (H, W) or larger and gives uint8 (C, size, size)


def padding(height: int, width: int, size: int) -> tuple[slice, slice]:
    """Where an image lies in the padded one: centred, the odd row and column below and right."""
    top, left = (size - height) // 2, (size - width) // 2
    return slice(top, top + height), slice(left, left + width)


def pad(image: Image.Image, size: int) -> np.ndarray:
    """Zeros around a smaller image; the pipeline's postprocess undoes it."""
    pixels = _pixels(image)
    padded = np.zeros((len(pixels), size, size), np.uint8)
    padded[(slice(None), *padding(image.height, image.width, size))] = pixels
    return padded


def crop(image: Image.Image, size: int, place: float = 0.5) -> np.ndarray:
    """Shorter side to ``size`` with an antialiasing filter, then a square at ``place``, 0 to 1 along the longer."""
    return _pixels(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS, centering=(place, place)))


def whole(image: Image.Image, size: int) -> np.ndarray:
    """Shorter side to ``size`` with an antialiasing filter, and the longer one with it: uint8 (C, H, W)."""
    height, width = (size * side for side in (image.height, image.width))
    shorter = min(image.size)
    return _pixels(image.resize((round(width / shorter), round(height / shorter)), Image.Resampling.LANCZOS))


def area(image: Image.Image, size: int) -> np.ndarray:
    """The whole image, every new pixel the mean of the area it covers; the sides' proportion is not kept."""
    return _pixels(image.resize((size, size), Image.Resampling.BOX))


def file_name(path: str | None, where: str) -> str:
    """' (shoes/boot.png)' for a message, '' without a path; the folder is left out if it is the one of ``where``."""
    if not path:
        return ""
    folder = Path(path).parent.name
    return f" ({Path(path).name})" if not folder or f"{folder}'" in where else f" ({folder}/{Path(path).name})"


def _pixels(image: Image.Image) -> np.ndarray:
    """uint8 (C, H, W)."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
