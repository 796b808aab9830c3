"""What visitors take away: a picture with its settings, an animation."""

import asyncio
import io
import json
import tempfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddpm_hf.errors import UserError
from ddpm_hf.figures import make_grid, save_animation
from ddpm_hf.ui import intake
from ddpm_hf.ui.limits import request_of
from ddpm_hf.ui.links import checked_settings
from ddpm_hf.ui.runs import SETTINGS, Engine, described_images, finished, grid_columns, one_line_errors, settings_values
from ddpm_hf.ui.tasks import Frame

KINDS = ("png", "gif", "webp", "mp4")
PNG_KEY = "ddpm_hf"
_encoding = asyncio.Semaphore(1)


async def export(engine: Engine, values: dict, kind: str, session: str = "") -> bytes:
    """The file of a run: computed if it is not in the cache.

    Args:
        values: as of ``stream_to_stage``, and "image": the number of one image, for a picture of that one alone.
        kind: "png", a grid without loss and with its settings; "gif", "webp" or "mp4", the denoising.

    Raises:
        gr.Error: with one line for the visitor.
    """
    with one_line_errors():
        if kind not in KINDS:
            raise UserError(f"a download is one of {', '.join(KINDS)}.")
        values = request_of(values, ("image", *SETTINGS))
        number = values.pop("image", None)
        model, task = await engine.generation(values)
        if number is not None:
            number = model.limits.check_image(number, task.settings)
    frames = await finished(engine, task, model, session)
    settings, described = settings_values(model, task.settings), described_images(model, task.settings)
    columns = grid_columns([image["label"] for image in described])
    if number is not None:
        about, columns = described[number], 1
        settings |= {"num_images": 1, "seed": about["seed"]}
        if about["name"] is not None:
            settings["class_name"] = about["name"]
        frames = [
            frame._replace(pixels=None if frame.pixels is None else frame.pixels[number : number + 1])
            for frame in frames
        ]
    async with _encoding:
        if kind == "png":
            return await asyncio.to_thread(_png, frames[-1], columns, settings, 1 if number is not None else 2)
        return await asyncio.to_thread(_animation, frames, columns, kind)


def _images(frame: Frame) -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in frame.pixels]


def _png(frame: Frame, columns: int | None, settings: dict, scale: int) -> bytes:
    note = PngInfo()
    note.add_text(PNG_KEY, json.dumps(settings))
    buffer = io.BytesIO()
    make_grid(_images(frame), columns, scale=scale).save(buffer, "PNG", pnginfo=note)
    return buffer.getvalue()


def _animation(frames: list[Frame], columns: int | None, kind: str) -> bytes:
    pictures = [_images(frame) for frame in frames if frame.pixels is not None]
    scale = max(2, 128 // pictures[0][0].width)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"denoising.{kind}"
        save_animation([make_grid(images, columns, scale=scale) for images in pictures], path)
        return path.read_bytes()


def settings_of_png(engine: Engine, file) -> dict:
    """The settings in a picture that ``export`` made, checked: values for ``stream_to_stage``.

    Args:
        file: what ``intake.picture`` takes.

    Raises:
        gr.Error: if it is no PNG, has none, or they are not allowed here.
    """
    with one_line_errors():
        note = intake.note(file, PNG_KEY)
        if note is None:
            raise UserError("this picture holds no settings: take one that was downloaded here as PNG.")
        try:
            values = json.loads(note)
        except (ValueError, RecursionError):
            raise UserError("the settings in this picture are not readable.") from None
        return checked_settings(engine, values)
