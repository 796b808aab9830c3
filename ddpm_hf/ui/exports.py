"""What visitors take away: a picture with its settings, an animation."""

import asyncio
from collections.abc import Callable

from ddpm_hf.errors import UserError
from ddpm_hf.figures import SETTINGS_KEY
from ddpm_hf.reading import parse_json
from ddpm_hf.ui import intake
from ddpm_hf.ui.files import animation_file, png_file
from ddpm_hf.ui.links import checked_settings
from ddpm_hf.ui.runs import Engine, finished

KINDS = ("png", "gif", "webp", "mp4")


async def export(
    engine: Engine, values: dict, kind: str, session: str = "", address: str = "", image: int | None = None
) -> bytes:
    """The file of a run: computed if it is not in the cache, in the same queue as all runs.

    Args:
        values: as of ``stream_to_stage``.
        kind: "png", a grid without loss and with its settings; "gif", "webp" or "mp4", the denoising.
        session, address: who asks; its turns are counted together with those of its runs.
        image: the number of one image, for a file of that one alone.

    Raises:
        UserError: with one line for the visitor.
    """
    if kind not in KINDS:
        raise UserError(f"a download is one of {', '.join(KINDS)}.")
    model, task = await engine.generation(values)
    number = None if image is None else model.limits.check_image(image, task.settings)
    frames = await finished(engine, task, model, session, address)
    if kind == "png":
        return await _in_turn(engine, (session, address), png_file, model, task.settings, frames[-1], number)
    return await _in_turn(engine, (session, address), animation_file, model, task.settings, frames, kind, number)


async def _in_turn(engine: Engine, who: tuple[str, str], encode: Callable[..., bytes], *arguments) -> bytes:
    """``encode(*arguments)`` in a thread, one at a time: it takes seconds of a processor that the model wants, too."""
    await engine.encoding.take(*who)
    work = asyncio.ensure_future(asyncio.to_thread(encode, *arguments))
    work.add_done_callback(lambda _: engine.encoding.give())  # not before: a thread goes on if nobody waits for it
    return await asyncio.shield(work)


def settings_of_png(engine: Engine, file) -> dict:
    """The settings in a picture that ``export`` made, checked: values for ``stream_to_stage``.

    Args:
        file: what ``intake.picture`` takes.

    Raises:
        UserError: if it is no PNG, has none, or they are not allowed here.
    """
    note = intake.note(file, SETTINGS_KEY)
    if note is None:
        raise UserError("this picture holds no settings: take one that was downloaded here as PNG.")
    try:
        values = parse_json(note)
    except ValueError:
        raise UserError("the settings in this picture are not readable.") from None
    return checked_settings(engine, values)
