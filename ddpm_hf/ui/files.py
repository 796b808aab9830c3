"""Files of finished runs, the same as ``python -m ddpm_hf sample`` writes, and what they say of their making."""

import base64
import io
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from ddpm_hf.figures import save_animation, save_png
from ddpm_hf.sampling import Generated, settings_note
from ddpm_hf.ui.limits import ANY_CLASS, Settings
from ddpm_hf.ui.models import Model
from ddpm_hf.ui.start import start_values
from ddpm_hf.ui.tasks import Frame, labels_of


def settings_values(model: Model, settings: Settings) -> dict:
    """The request that ``settings`` came from, with all defaults: what the page, a link and the API take."""
    name = ANY_CLASS if settings.label is None else model.limits.classes[settings.label]
    if settings.label is not None and model.limits.check(class_name=name).label != settings.label:
        name = str(settings.label)  # two classes have the same name
    rest = (
        settings.guidance_scale,
        settings.guidance_interval,
        settings.sampler,
        settings.steps,
        settings.seed,
        settings.prompt,
    )
    return settings_note(model.name, settings.num_images, name, *rest) | start_values(settings.start)


def described_images(model: Model, settings: Settings) -> list[dict]:
    """Seed, label and name of the class of every image; the latter two None where it has none."""
    labels = labels_of(model.pipeline, settings)
    if labels is None or settings.is_unguided:
        labels = [None] * settings.num_images
    names = [None if label is None else model.limits.classes[label] for label in labels]
    return [{"seed": s, "label": label, "name": name} for s, label, name in zip(settings.seeds, labels, names)]


def settings_of_one(model: Model, settings: Settings, number: int) -> Settings:
    """Settings that make the image ``number`` alone; of a way between two pictures, all of it."""
    if settings.start and settings.start.other:
        return settings
    labels = labels_of(model.pipeline, settings)
    label = None if labels is None else labels[number]
    return replace(settings, num_images=1, seed=settings.seeds[number], label=label)


def png_file(model: Model, settings: Settings, frame: Frame, number: int | None = None) -> bytes:
    """A PNG file of all the images in ``frame``, or of one of them, with the settings that make it."""
    if number is not None:
        settings = settings_of_one(model, settings, number)
    buffer = io.BytesIO()
    picture = _generated(model, settings, [frame], number).grid()
    save_png(picture, buffer, settings_values(model, settings))
    return buffer.getvalue()


def animation_file(
    model: Model, settings: Settings, frames: Sequence[Frame], kind: str, number: int | None = None
) -> bytes:
    """A "gif", "webp" or "mp4" file of the frames that were kept for it; number as in ``png_file``."""
    if number is not None:
        settings = settings_of_one(model, settings, number)
    made = _generated(model, settings, [frame for frame in frames if frame.pixels is not None], number)
    if settings.start and settings.start.other and number is None:  # the way from one picture to the other, and back
        way = made.images + made.images[-2:0:-1]
        made = Generated(way[:1], frames=[[image] for image in way])
    buffer = io.BytesIO()
    save_animation(made.animation(), buffer, f".{kind}")
    return buffer.getvalue()


def _generated(model: Model, settings: Settings, frames: Sequence[Frame], number: int | None) -> Generated:
    chosen = slice(None) if number is None else slice(number, number + 1)
    pictures = [[Image.fromarray(pixels) for pixels in frame.pixels[chosen]] for frame in frames]
    return Generated(pictures[-1], labels_of(model.pipeline, settings), pictures)


def as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
