"""The endpoints for programs: /generate, /vary, /noise and /compare, documented by their annotations and docstrings."""

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, contextmanager
from functools import wraps
from typing import TypedDict

import gradio as gr
from anyio.to_thread import run_sync

from ddpm_hf.errors import UserError
from ddpm_hf.sampling import Sampling
from ddpm_hf.ui.attendance import Attendance
from ddpm_hf.ui.comparison import compare_for_program, stream_comparison
from ddpm_hf.ui.forward import forward_process
from ddpm_hf.ui.journal import Journal
from ddpm_hf.ui.limits import (
    ANY_CLASS,
    DEFAULT_COMPARED,
    DEFAULT_IMAGES,
    DEFAULT_VARIATIONS,
    DISK_FULL,
    STOPPED,
    is_disk_full,
)
from ddpm_hf.ui.runs import Engine, generate_for_program, stream_to_stage
from ddpm_hf.ui.zero import has_zero_gpu

STREAMS = {"generate": stream_to_stage, "compare": stream_comparison}  # of the page

# The engine has a queue of its own, which is fair: Gradio's lets everybody through, and attendance.py bounds that.
UNQUEUED = {"concurrency_limit": None}


# ---- what the endpoints answer


class Settings(TypedDict, total=False):
    num_images: int
    class_name: str
    guidance_scale: float
    guidance_interval: list[float]
    sampler: str
    steps: int
    seed: int
    model: str
    prompt: str
    t: int
    image: str
    example: int
    mask: str
    to_image: str
    to_example: int


class MadeImage(TypedDict):
    seed: int
    label: int | None
    name: str | None
    png: str


class Generated(TypedDict, total=False):
    done: bool
    step: int
    total: int
    seconds: float
    settings: Settings
    grid_png: str
    images: list[MadeImage]


class Noised(TypedDict):
    t: int
    alpha_bar: float
    snr: float
    sigma: float
    x_t: str
    original: str
    strip: list[str]


class LaneAsked(TypedDict):
    sampler: str
    steps: int


class LaneMade(TypedDict):
    sampler: str
    title: str
    steps: int
    calls: int
    seconds: float
    fresh_noise: bool
    distance: float | None
    grid_png: str


class SettingsCompared(TypedDict, total=False):
    num_images: int
    class_name: str
    guidance_scale: float
    guidance_interval: list[float]
    seed: int
    model: str
    lanes: list[LaneAsked]


class Compared(TypedDict, total=False):
    done: bool
    step: int
    total: int
    lanes: list[LaneMade]
    note: str
    seeds: list[int]
    names: list[str | None]
    settings: SettingsCompared


# ---- the endpoints


class Api:
    """Adds the endpoints to ``server``."""

    def __init__(self, server: gr.Server, engine: Engine, attendance: Attendance, journal: Journal):
        self.server, self.engine, self.attendance, self.journal = server, engine, attendance, journal
        several = len(engine.models.names) > 1
        # the model's own sampling, as defaults; where there are several models, None for each its own
        self.own = Sampling(None, None, None, None) if several else engine.limits.own
        self._add_generate()
        self._add_vary()
        self._add_noise()
        self._add_compare()
        if has_zero_gpu():
            self._add_page_run()

    def _add(self, name: str, function: Callable, **options):
        function = _without_choice(self.engine, function)
        description = inspect.getdoc(function)  # all of it: Gradio would take the first paragraph
        self.server.api(function, name=name, description=description, **UNQUEUED, **options)

    async def _answers(self, name: str, request: gr.Request, values: dict, stream: Callable) -> AsyncIterator[dict]:
        """What ``stream(engine, values, session, address)`` yields, for as long as somebody reads it.

        To the engine each call is a session of its own, so that one can be ended without the others.
        """
        async with self.attendance.attended(request.session_hash, name) as call:
            with visible_errors(), self.journal.job(name, values, call.address) as entry:
                entry.request = call.event or ""
                if call.end is None:
                    values = {key: value for key, value in values.items() if self._was_asked(key, value)}
                    try:
                        async with aclosing(stream(self.engine, values, call.event, call.address)) as answers:
                            async for answer in answers:
                                if call.end is None:
                                    entry.began()
                                    yield answer
                    except UserError as error:
                        if call.end is None or str(error) != STOPPED:
                            raise
                entry.outcome = call.end or "done"

    def _was_asked(self, name: str, value) -> bool:
        """Whether it was not left out: None is, where that is the endpoint's default."""
        return value is not None or (name != "prompt" and getattr(self.own, name, "") is not None)

    def _add_generate(self):
        own, engine = self.own, self.engine

        # documented by its annotations, and as a generator by what it yields
        async def generate(
            request: gr.Request,
            num_images: int = DEFAULT_IMAGES,
            class_name: str = ANY_CLASS,
            guidance_scale: float = own.guidance_scale,
            sampler: str = own.sampler,
            steps: int = own.steps,
            seed: int = 0,
            guidance_interval: list[float] = own.guidance_interval and list(own.guidance_interval),
            model: str = engine.models.first.name,
            prompt: str | None = None,
        ) -> Generated:
            """Generate images: image i depends on the seed K + i alone, and is the same on the page.

            Args:
                num_images: how many.
                class_name: name or number of a class, or "any" for all of them in turn.
                guidance_scale: strength of classifier-free guidance; 1 is off.
                sampler: dpm, dpm-sde, unipc, ddim, euler, heun, ddpm or ddpm-small.
                steps: denoising steps.
                seed: K, from 0 to 4294967295.
                guidance_interval: [first, last] timestep with guidance; the others take one network call, not two.
                model: one of the models that the page offers.
                prompt: what the images are to show, of at most 1,000 characters; left out, anything.

            Returns:
                {"done": True, "images": [{"seed", "label", "name", "png"}], "grid_png", "seconds", "settings"}
                where png and grid_png are PNG files in base64. Before it {"done": False, "step", "total"} reports the
                progress to those who listen.
            """
            values = {
                "num_images": num_images,
                "class_name": class_name,
                "guidance_scale": guidance_scale,
                "guidance_interval": guidance_interval,
                "sampler": sampler,
                "steps": steps,
                "seed": seed,
                "model": model,
                "prompt": prompt,
            }
            async with aclosing(self._answers("generate", request, values, generate_for_program)) as answers:
                async for answer in answers:
                    yield answer

        self._add("generate", generate)

    def _add_vary(self):
        own, engine = self.own, self.engine

        async def vary(
            request: gr.Request,
            image: str = "",
            example: int | None = None,
            t: int | None = None,
            mask: str = "",
            to_image: str = "",
            to_example: int | None = None,
            num_images: int = DEFAULT_VARIATIONS,
            class_name: str = ANY_CLASS,
            guidance_scale: float = own.guidance_scale,
            sampler: str | None = None,
            steps: int = own.steps,
            seed: int = 0,
            guidance_interval: list[float] = own.guidance_interval and list(own.guidance_interval),
            model: str = engine.models.first.name,
            prompt: str | None = None,
        ) -> Generated:
            """Images that start at a picture: variations of it, a part of it made anew, or the way to a second one.

            Args:
                image: a picture file as a data URL.
                example: instead, the number of one of the model's examples.
                t: timestep up to which the picture is noised, from 0 to T - 1; without, about half way.
                mask: a picture file as a data URL, white where the picture is made anew; the rest of it stays.
                to_image: a second picture, as a data URL: the images are those on the way to it.
                to_example: instead, the number of one of the model's examples.
                num_images: how many.
                class_name: name or number of a class, or "any" for all of them in turn.
                guidance_scale: strength of classifier-free guidance; 1 is off, 0 leaves the class out.
                sampler: as of /generate; without, the model's own, or ddim for the way to a second picture.
                steps: denoising steps of the whole way from noise, of which the part from t down is made.
                seed: K; image i depends on the seed K + i alone.
                guidance_interval: [first, last] timestep with guidance.
                model: one of the models that the page offers.
                prompt: what the images are to show, of at most 1,000 characters; left out, anything.

            Returns:
                As of /generate.
            """
            values = {
                "image": image,
                "example": example,
                "t": t,
                "mask": mask,
                "to_image": to_image,
                "to_example": to_example,
                "num_images": num_images,
                "class_name": class_name,
                "guidance_scale": guidance_scale,
                **({} if sampler is None else {"sampler": sampler}),
                "steps": steps,
                "seed": seed,
                "guidance_interval": guidance_interval,
                "model": model,
                "prompt": prompt,
            }
            if not image and example is None:
                values["image"] = {}  # which is no picture, and refused as such
            async with aclosing(self._answers("vary", request, values, generate_for_program)) as answers:
                async for answer in answers:
                    yield answer

        self._add("vary", vary)

    def _add_noise(self):
        engine = self.engine

        async def noise(
            request: gr.Request,
            t: int,
            example: int = 0,
            image: str = "",
            seed: int = 0,
            model: str = engine.models.first.name,
        ) -> Noised:
            """The forward process: a sample of q(x_t | x_0) for a picture.

            Args:
                t: timestep, from 0 to T - 1.
                example: number of one of the model's examples, used without an image.
                image: a picture file as a data URL.
                seed: of the noise.
                model: one of the models that the page offers.

            Returns:
                {"t", "alpha_bar", "snr", "sigma", "x_t", "original", "strip"}; x_t, original and the four of strip
                (x_t at a quarter, a half, three quarters and all of the timesteps) are data URLs of PNG files.
            """

            async def once(engine, values, _session, _address):
                picture = image or {"example": example}
                yield await run_sync(forward_process, engine, picture, t, seed, model)

            values = {"t": t, "example": example, "image": image, "seed": seed, "model": model}
            async with aclosing(self._answers("noise", request, values, once)) as answers:
                async for answer in answers:
                    yield answer

        self._add("noise", noise)

    def _add_compare(self):
        own, engine = self.own, self.engine

        async def compare(
            request: gr.Request,
            lanes: list[LaneAsked],
            num_images: int = DEFAULT_COMPARED,
            class_name: str = ANY_CLASS,
            guidance_scale: float = own.guidance_scale,
            seed: int = 0,
            guidance_interval: list[float] = own.guidance_interval and list(own.guidance_interval),
            model: str = engine.models.first.name,
        ) -> Compared:
            """Several samplers from the same noise, and how far each ends from the result of all steps.

            Args:
                lanes: 2 to 4 times {"sampler", "steps"}.
                num_images: how many.
                class_name: name or number of a class, or "any" for all of them in turn.
                guidance_scale: strength of classifier-free guidance; 1 is off.
                seed: of the first image, from 0 to 4294967295.
                guidance_interval: [first, last] timestep with guidance.
                model: one of the models that the page offers.

            Returns:
                {"done": True, "lanes": a list, "note", "seeds", "names", "settings"} where a lane is
                {"sampler", "title", "steps", "calls", "seconds", "fresh_noise", "distance", "grid_png"} with the RMS
                distance over pixels in [0, 1] to DDIM with all steps, or null where the sampler adds fresh noise or
                it could not be measured (note says so in words), and a PNG file in base64. Before it
                {"done": False, "step", "total"}.
            """
            values = {
                "lanes": lanes,
                "num_images": num_images,
                "class_name": class_name,
                "guidance_scale": guidance_scale,
                "guidance_interval": guidance_interval,
                "seed": seed,
                "model": model,
            }
            async with aclosing(self._answers("compare", request, values, compare_for_program)) as answers:
                async for answer in answers:
                    yield answer

        self._add("compare", compare)

    def _add_page_run(self):
        """The runs of the page, where a GPU is lent: Gradio's events carry the visitor's token, whose quota is used."""

        async def page_run(request: gr.Request, what: str, values: dict) -> dict:
            if what not in STREAMS or not isinstance(values, dict):
                raise gr.Error("There is no such run.", print_exception=False)
            async with aclosing(self._answers("page_run", request, values, STREAMS[what])) as answers:
                async for answer in answers:
                    yield answer

        self._add("page_run", page_run, api_visibility="undocumented")


@contextmanager
def visible_errors():
    """A mistake of the visitor's, or a full disk, becomes an error that Gradio shows, and shows nothing else of."""
    try:
        yield
    except UserError as error:
        raise gr.Error(sentence(str(error)), print_exception=False) from None
    except OSError as error:
        if is_disk_full(error):
            raise gr.Error(DISK_FULL, print_exception=False) from None
        raise


def sentence(message: str) -> str:
    return message[:1].upper() + message[1:]


def _without_choice(engine: Engine, function: Callable) -> Callable:
    """``function`` without the parameters that there is no choice of: the model where there is only one, and the prompt
    where that reads no words."""
    several = len(engine.models.names) > 1
    left_out = {"model": not several, "prompt": not several and not engine.limits.words}
    left_out = {name for name, out in left_out.items() if out and name in function.__annotations__}
    if not left_out:
        return function
    signature = inspect.signature(function)
    parameters = [parameter for name, parameter in signature.parameters.items() if name not in left_out]
    signature = signature.replace(parameters=parameters)

    @wraps(function)
    async def without(*arguments, **named):  # Gradio gives the arguments by their place in the signature
        async with aclosing(function(**signature.bind(*arguments, **named).arguments)) as answers:
            async for answer in answers:
                yield answer

    del without.__wrapped__  # by which others would find the parameters that are left out
    without.__signature__ = signature
    without.__annotations__ = {name: kind for name, kind in function.__annotations__.items() if name not in left_out}
    lines = function.__doc__.splitlines()
    without.__doc__ = "\n".join(line for line in lines if line.strip().split(":")[0] not in left_out)
    return without
