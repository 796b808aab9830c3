"""Pictures of pictures: grids, filmstrips and animations from PIL images."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ddpm_hf.errors import UserError

TITLE_SIZE, CAPTION_SIZE, SMALLEST_CAPTION = 14, 12, 9  # pixels
CELL_WIDTH = 84  # pixels of an image below which a class's name can be read
SETTINGS_KEY = "ddpm_hf"  # of the text in a PNG file
ANIMATION_SUFFIXES = (".gif", ".webp", ".mp4")


def make_grid(
    images: Sequence[Image.Image], columns: int | None = None, *, scale: int = 2, gap: int = 2
) -> Image.Image:
    """Images of one size side by side, ``columns`` a row (about square when None).

    Every image is enlarged ``scale`` times without smoothing; ``gap`` white pixels lie between two.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].width * scale, images[0].height * scale
    white = "white" if images[0].mode == "RGB" else 255
    grid = Image.new(images[0].mode, (columns * (width + gap) - gap, rows * (height + gap) - gap), white)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        enlarged = image.resize((width, height), Image.Resampling.NEAREST)
        grid.paste(enlarged, (column * (width + gap), row * (height + gap)))
    return grid


def split_grid(grid: Image.Image, size: tuple[int, int], *, scale: int = 2, gap: int = 2) -> list[list[Image.Image]]:
    """The rows of images, ``size`` (width, height) each, that ``make_grid`` made ``grid`` of; [] if it did not.

    A place at the end that was left empty is a white image.
    """
    width, height = (side * scale + gap for side in size)
    columns, rows = (grid.width + gap) // width, (grid.height + gap) // height
    if not columns or not rows:
        return []
    corners = [(column * width, row * height) for row in range(rows) for column in range(columns)]
    boxes = [(x, y, x + width - gap, y + height - gap) for x, y in corners]
    images = [grid.crop(box).resize(size, Image.Resampling.NEAREST) for box in boxes]
    again = make_grid(images, columns, scale=scale, gap=gap)
    if again.size != grid.size or again.tobytes() != grid.tobytes():
        return []
    return [images[first : first + columns] for first in range(0, len(images), columns)]


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """Images of modes "L" or "RGB" from uint8 (N, C, H, W)."""
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()  # (N, H, W, C)
    return [Image.fromarray(array[..., 0] if array.shape[2] == 1 else array) for array in arrays]


def cell_scale(image: Image.Image) -> int:
    """How many times to enlarge an image so that a caption fits below it."""
    return max(1, math.ceil(CELL_WIDTH / image.width))


def draw_neighbours(pairs: Sequence[torch.Tensor]) -> Image.Image:
    """Images in the upper row, each above its nearest training image and their distance; pairs uint8 (2, C, H, W).

    The distance is the root of the mean squared difference of pixels, in [0, 1].
    """
    upper, lower = (to_pil(torch.stack([pair[row] for pair in pairs])) for row in (0, 1))
    distances = [(image.float() - nearest.float()).pow(2).mean().sqrt().item() / 255 for image, nearest in pairs]
    captions = [f"{distance:.3f}" for distance in distances]
    rows = [("image", upper), ("nearest\nin training", lower)]
    return make_titled_rows(rows, scale=cell_scale(upper[0]), captions=captions)


def make_titled_rows(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], *, scale: int = 2, captions: Sequence[str] | None = None
) -> Image.Image:
    """Rows of images of one size, each with its title to the left, and ``captions`` below the last."""
    font = ImageFont.load_default(size=TITLE_SIZE)
    lines = [line for title, _ in rows for line in title.splitlines()]
    margin = 16 + math.ceil(max(font.getlength(line) for line in lines))
    columns = max(len(images) for _, images in rows)
    grid = make_grid([image for _, images in rows for image in images], columns, scale=scale)
    picture = Image.new("RGB", (margin + grid.width, grid.height), "white")
    picture.paste(grid.convert("RGB"), (margin, 0))
    draw, height = ImageDraw.Draw(picture), (grid.height + 2) / len(rows)
    for i, (title, _) in enumerate(rows):
        draw.text((margin - 8, (i + 0.5) * height), title, fill="black", font=font, anchor="rm", align="right")
    return picture if captions is None else _captioned(picture, captions, margin, rows[0][1][0].width * scale)


def make_class_grid(images: Sequence[Image.Image], names: Sequence[str]) -> Image.Image:
    """A grid with a column for every class, its name below; ``images`` are of the classes in turn."""
    scale = cell_scale(images[0])
    return _captioned(make_grid(images, len(names), scale=scale), names, 0, images[0].width * scale)


def _captioned(picture: Image.Image, captions: Sequence[str], left: int, width: int, gap: int = 2) -> Image.Image:
    """The picture with a caption below every column of it, ``width`` pixels wide from ``left`` on."""
    framed = Image.new(picture.mode, (picture.width, picture.height + CAPTION_SIZE + 10), "white")
    framed.paste(picture)
    draw = ImageDraw.Draw(framed)
    sizes = range(CAPTION_SIZE, SMALLEST_CAPTION, -1)
    font = ImageFont.load_default(size=next((s for s in sizes if _fits(captions, s, width)), SMALLEST_CAPTION))
    for i, caption in enumerate(captions):
        while font.getlength(caption) > width and len(caption) > 1:
            caption = caption.rstrip("\u2026")[:-1] + "\u2026"
        middle = left + i * (width + gap) + width / 2
        draw.text((middle, picture.height + 5), caption, fill=0, font=font, anchor="mt")
    return framed


def _fits(captions: Sequence[str], size: int, width: int) -> bool:
    font = ImageFont.load_default(size=size)
    return all(font.getlength(caption) <= width for caption in captions)


def class_columns(count: int, classes: int) -> int | None:
    """Columns for ``count`` images of ``classes`` in turn, so that every column is one class and the grid about square.

    None where there are fewer images than classes.
    """
    if not 1 < classes <= count:
        return None
    return classes * max(1, round(math.sqrt(count) / classes))


def pick_frames(count: int, total: int) -> list[int]:
    """Indices of ``count`` of ``total`` steps, evenly spaced, first and last included: the original's frame_idxs."""
    if count >= total:
        return list(range(total))
    return sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(count)})


def save_png(picture: Image.Image, file: Path | BinaryIO, settings: dict | None = None):
    """Write a PNG file that holds ``settings`` as JSON, in a text of the key ``SETTINGS_KEY``."""
    note = PngInfo()
    if settings is not None:
        note.add_text(SETTINGS_KEY, json.dumps(settings))
    picture.save(file, "PNG", pnginfo=note)


def save_animation(
    frames: Sequence[Image.Image], file: Path | BinaryIO, suffix: str, *, seconds: float = 4.0, hold: float = 1.5
):
    """Write frames of one size as ".gif", ".webp" or ".mp4", ``seconds`` long, the last frame held for ``hold`` more.

    Raises:
        UserError: for another suffix, or an .mp4 without the package that writes it.
    """
    milliseconds = max(20, round(1000 * seconds / len(frames)))
    durations = [milliseconds] * (len(frames) - 1) + [milliseconds + round(1000 * hold)]
    if suffix == ".mp4":
        _save_mp4(frames, file, milliseconds, hold)
    elif suffix in (".gif", ".webp"):
        options = {"method": 0, "quality": 90} if suffix == ".webp" else {"disposal": 1}
        first, *rest = frames
        kind = suffix[1:].upper()
        first.save(file, kind, save_all=True, append_images=rest, duration=durations, loop=0, **options)
    else:
        raise UserError(f"{suffix}: animations end in {', '.join(ANIMATION_SUFFIXES)}.")


def _save_mp4(frames, file: Path | BinaryIO, milliseconds: int, hold: float):
    try:
        import av
    except ImportError:
        raise UserError("writing .mp4 needs the package av: pip install av, or use .gif or .webp.") from None
    rate = max(1, round(1000 / milliseconds))
    width, height = (side - side % 2 for side in frames[0].size)  # the codec wants even sides
    with av.open(str(file) if isinstance(file, Path) else file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18"}
        for image in [*frames, *[frames[-1]] * round(hold * rate)]:
            frame = av.VideoFrame.from_image(image.convert("RGB").crop((0, 0, width, height)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
