"""One image: from whatever a file holds to uint8 pixels of the network's size."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
GRAY_MODES = ("1", "L", "LA", "La", *SIXTEEN_BIT_MODES)


class BadImage(Exception):
    """An image that cannot be used. The message goes on a line 'row 3 of data set x ...'."""


def decode(image_bytes: bytes | None, path: str | None) -> Image.Image:
    """An upright image from the bytes of a file, or from a file; of several frames the first.

    Raises:
        BadImage: if it is missing, cannot be read, has floating-point pixels, or a side of a single pixel.
    """
    if image_bytes is None and path is None:
        raise BadImage("has no image")
    try:
        image = Image.open(path if image_bytes is None else io.BytesIO(image_bytes))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except UnidentifiedImageError:
        raise BadImage("is not a readable image: no image format known here") from None
    except Exception as error:  # OSError, SyntaxError, struct.error, DecompressionBombError, ...
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise BadImage(f"is not a readable image: {reason}") from None
    if image.mode == "F":
        raise BadImage("has floating-point pixels, whose range is not known; 8 or 16 bits would be right")
    if min(image.size) < 2:
        raise BadImage(f"is {image.height}x{image.width} pixels; at least 2x2 would be right")
    return image


def header(image_bytes: bytes | None, path: str | None) -> tuple[bool, tuple[int, int]] | None:
    """Whether an image is gray, and its (height, width), without decoding its pixels; None where that is not told."""
    try:
        with Image.open(path if image_bytes is None else io.BytesIO(image_bytes)) as image:
            turned = image.getexif().get(0x0112, 1) >= 5
            return is_gray(image), image.size if turned else image.size[::-1]
    except Exception:  # it is told of when it is decoded
        return None


def is_gray(image: Image.Image) -> bool:
    """Whether an image has no color; a palette of grays has none."""
    if image.mode in ("P", "PA"):
        palette = np.frombuffer(bytes(image.getpalette("RGB") or b""), np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in GRAY_MODES


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """``image`` as "L" or "RGB": of 16 bits the upper 8, what is transparent on white.

    Raises:
        BadImage: for pixels of more than 16 bits, or a color space that Pillow does not convert.
    """
    try:
        if image.mode in SIXTEEN_BIT_MODES:
            image = _upper_bits(image)
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if image.mode == "LAB":
            image = image.convert("RGB")  # Pillow knows no other way from there
        return image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise BadImage(f"cannot be converted from {image.mode} to {mode}: {error}") from None


def _upper_bits(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise BadImage("has pixels of more than 16 bits; 8 or 16 bits would be right")
    return Image.fromarray((pixels >> 8).astype(np.uint8))


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


def crop(image: Image.Image, size: int) -> np.ndarray:
    """Shorter side to ``size`` with an antialiasing filter, then the centre."""
    return _pixels(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))


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
