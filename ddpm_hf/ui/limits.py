"""What a visitor may ask for: every limit of the page and of the API is here, and is checked here."""

import errno
import math
from collections.abc import Collection
from dataclasses import dataclass

from ddpm_hf.errors import UserError, nearest
from ddpm_hf.memory import memory_limit, sampling_bytes
from ddpm_hf.pipeline import MyDDPMPipeline, check_text
from ddpm_hf.samplers import SAMPLERS
from ddpm_hf.sampling import Sampling, carried_interval, class_names, own_sampling, run_sampling, whole_numbers

MAX_IMAGES = 64
# Network calls x images. 16 images with all 1000 steps, guided, take minutes on 2 cores.
MAX_WORK = 32_000
MAX_SEED = 2**32 - 1
MAX_GUIDANCE = 20.0
MAX_SECONDS = 300.0
# Runs that wait or take turns. A classroom has one address, so an address may have more than a session.
MAX_JOBS_OF_SESSION = 4
MAX_JOBS_OF_ADDRESS = 40
MAX_JOBS = 80
MAX_WAIT_SECONDS = 900.0

DEFAULT_IMAGES = 16
DEFAULT_VARIATIONS = 9
COMPARED_LANES = (2, 4)
DEFAULT_COMPARED = 4
MAX_COMPARED = 8
ANY_CLASS = "any"
STOPPED = "the run was stopped."  # shown to a visitor whose run somebody else ended
DISK_FULL = "The server's disk is full: try again in some minutes."
_OWN = object()  # the model's own default


@dataclass(frozen=True)
class Start:
    """Where a run starts, if not from noise alone: at a picture that is noised up to timestep ``t``.

    picture: PNG bytes at the model's own size. example: its number, of one of the model's.
    mask: PNG bytes of that size, white where the picture is made anew; the rest of it stays.
    other, other_example: a second picture; the images are those on the way from the first to it.
    """

    t: int
    picture: bytes
    example: int | None = None
    mask: bytes | None = None
    other: bytes | None = None
    other_example: int | None = None


@dataclass(frozen=True)
class Settings:
    """A request that has been checked.

    label: the class of all images, or None for all classes in turn. guidance_interval: None of a model that cannot be
    guided. prompt: what all images are to show, or None.
    """

    num_images: int
    label: int | None
    guidance_scale: float
    guidance_interval: tuple[float, float] | None
    sampler: str
    steps: int
    seed: int
    prompt: str | None = None
    start: Start | None = None

    @property
    def seeds(self) -> range:
        """The seed of every image."""
        return range(self.seed, self.seed + self.num_images)

    @property
    def is_unguided(self) -> bool:
        """Whether the network gets no class at any step."""
        if self.start is None or self.guidance_interval is None:
            return False
        low, high = self.guidance_interval
        return self.guidance_scale == 0 and low <= 0 and high >= self.start.t


@dataclass(frozen=True)
class Limits:
    """The limits for one model: ``classes``, its names by label (() when unconditional), ``max_steps``, its T.

    carried: the sampling that it was exported with, if any. carried_interval: what goes with a scale that is asked for
    without an interval; None is all timesteps. words: whether the model reads prompts.
    """

    classes: tuple[str, ...]
    max_steps: int
    carried: Sampling | None = None
    carried_interval: tuple[float, float] | None = None
    max_images: int = MAX_IMAGES
    max_work: int = MAX_WORK
    max_seconds: float = MAX_SECONDS
    words: bool = False

    @classmethod
    def of(cls, pipeline: MyDDPMPipeline) -> "Limits":
        memory = memory_limit()
        fitting = [n for n in range(1, MAX_IMAGES + 1) if sampling_bytes(pipeline, n, n) <= memory]
        return cls(
            tuple(class_names(pipeline)),
            pipeline.scheduler.config.num_train_timesteps,
            own_sampling(pipeline),
            carried_interval(pipeline),
            max_images=max(fitting, default=1),
            words=pipeline.text_encoder is not None,
        )

    @property
    def own(self) -> Sampling:
        """How the model makes images where nothing else is asked for."""
        return self.carried or run_sampling(self.max_steps, self.guided, self.words)

    @property
    def guided(self) -> bool:
        """Whether the model has classes or words to guide towards."""
        return bool(self.classes) or self.words

    def check(
        self,
        num_images=DEFAULT_IMAGES,
        class_name=ANY_CLASS,
        guidance_scale=_OWN,
        guidance_interval=_OWN,
        sampler=_OWN,
        steps=_OWN,
        seed=0,
        prompt=None,
    ) -> Settings:
        """Settings from values of any type, as they came over the wire; what is left out is the model's own.

        Raises:
            UserError: naming the first value that is not allowed, and what is.
        """
        own, everywhere = self.own, (0, self.max_steps) if self.guided else None
        if guidance_interval is _OWN:
            given = guidance_scale is not _OWN
            guidance_interval = (self.carried_interval or everywhere) if given else own.guidance_interval
        guidance_scale = own.guidance_scale if guidance_scale is _OWN else guidance_scale
        settings = Settings(
            num_images=_whole("number of images", num_images, 1, self.max_images),
            label=self._label(class_name),
            guidance_scale=_number("guidance scale", guidance_scale, 0.0, MAX_GUIDANCE),
            guidance_interval=self._interval(guidance_interval),
            sampler=_sampler(own.sampler if sampler is _OWN else sampler),
            steps=_whole("steps", own.steps if steps is _OWN else steps, 1, self.max_steps),
            # one image may be one of a run that began at the last seed
            seed=_whole("seed", seed, 0, MAX_SEED if num_images != 1 else MAX_SEED + MAX_IMAGES - 1),
            prompt=self._prompt(prompt),
        )
        if not self.guided and settings.guidance_scale != 1:
            raise UserError("this model has no classes to guide towards: leave the guidance scale at 1.")
        self._check_work(settings)
        return settings

    def check_comparison(
        self,
        lanes=(),
        num_images=DEFAULT_COMPARED,
        class_name=ANY_CLASS,
        guidance_scale=_OWN,
        guidance_interval=_OWN,
        seed=0,
    ) -> tuple[Settings, ...]:
        """Settings of each lane, which are {"sampler", "steps"}, from values of any type.

        Raises:
            UserError: naming the first value that is not allowed, and what is.
        """
        few, many = COMPARED_LANES
        if not isinstance(lanes, list | tuple) or not few <= len(lanes) <= many:
            raise UserError(f"compare {few} to {many} samplers, each with its steps.")
        if not all(isinstance(lane, dict) and set(lane) <= {"sampler", "steps"} for lane in lanes):
            raise UserError("each of the lanes must be a sampler and its steps.")
        _whole("number of images to compare", num_images, 1, MAX_COMPARED)
        common = {"num_images": num_images, "class_name": class_name, "seed": seed}
        common |= {"guidance_scale": guidance_scale, "guidance_interval": guidance_interval}
        checked = tuple(self.check(**common, **lane) for lane in lanes)
        if len(set(checked)) < len(checked):
            raise UserError("two of the lanes are the same: change a sampler or its steps.")
        if sum(settings.num_images * self.network_calls(settings) for settings in checked) > self.max_work:
            raise UserError("these lanes are too much work together: take fewer steps, lanes or images.")
        return checked

    def check_timestep(self, value) -> int:
        """t, from a value of any type.

        Raises:
            UserError: unless it is a timestep of the training process.
        """
        return _whole("t", value, 0, self.max_steps - 1)

    def check_seed(self, value) -> int:
        """A seed, from a value of any type.

        Raises:
            UserError: unless it is one.
        """
        return _whole("seed", value, 0, MAX_SEED)

    def check_image(self, value, settings: Settings) -> int:
        """The number of one of the images of ``settings``, from a value of any type.

        Raises:
            UserError: unless there is one of that number.
        """
        return _whole("image", value, 0, settings.num_images - 1)

    def _label(self, class_name) -> int | None:
        if class_name == ANY_CLASS and isinstance(class_name, str):
            return None
        if not self.classes:
            raise UserError(f"this model has no classes: leave the class at '{ANY_CLASS}'.")
        if isinstance(class_name, int) and not isinstance(class_name, bool) and 0 <= class_name < len(self.classes):
            return class_name
        if not isinstance(class_name, str):
            raise UserError(
                f"class must be '{ANY_CLASS}' or one of {', '.join(self.classes)}, not {_shown(class_name)}."
            )
        names = [name.lower() for name in self.classes]
        if class_name.lower() in names:
            return names.index(class_name.lower())
        if class_name.isascii() and class_name.isdigit() and len(class_name) < 9 and int(class_name) < len(names):
            return int(class_name)
        raise UserError(
            f"there is no class {_shown(class_name)}; {nearest(class_name[:40], [ANY_CLASS, *self.classes])}"
        )

    def _prompt(self, prompt) -> str | None:
        if prompt is None:
            return None
        if not self.words:
            raise UserError("this model reads no words: leave out the prompt.")
        try:
            check_text("prompt", prompt)
        except ValueError as error:
            raise UserError(str(error)) from None
        return prompt.strip()

    def _check_work(self, settings: Settings):
        a_step = self.network_calls(settings, steps=1)
        work = settings.num_images * self.network_calls(settings)
        if work <= self.max_work:
            return
        images = self.max_work // self.network_calls(settings)
        steps = self.max_work // (settings.num_images * a_step)
        advice = f"take at most {steps} steps" + (f" or {images} images" if images else "")
        raise UserError(f"{settings.num_images} images with {settings.steps} steps are too much work: {advice}.")

    def network_calls(self, settings: Settings, steps: int | None = None) -> int:
        """About how often the network runs for every image."""
        order = SAMPLERS[settings.sampler].scheduler_class.order
        low, high = settings.guidance_interval or (0, 0)
        guided = 0 if settings.guidance_scale == 1 else min(1, (high - low + 1) / self.max_steps)
        return math.ceil((settings.steps if steps is None else steps) * order * (1 + guided))

    def _interval(self, value) -> tuple[float, float] | None:
        if not self.guided:
            if value is not None:
                raise UserError("this model has no classes to guide towards: leave out the guidance interval.")
            return None
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise UserError(f"guidance interval must be two timesteps, not {_shown(value)}.")
        low, high = (_number("guidance interval", timestep, 0, self.max_steps) for timestep in value)
        if low > high:
            raise UserError("guidance interval must not end before it starts.")
        return whole_numbers((low, high))


def is_disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def request_of(values, known: Collection[str]) -> dict:
    """``values``, which may be anything, as the keyword arguments of a check: a dict of none but the ``known`` names.

    Raises:
        UserError: for anything else.
    """
    if not isinstance(values, dict):
        raise UserError(f"a request must be an object with the fields {', '.join(known)}, not {_shown(values)}.")
    for name in values:
        if name not in known:
            raise UserError(f"there is no setting {_shown(name)}; {nearest(str(name)[:40], known)}")
    return dict(values)


def _number(name: str, value, low: float, high: float) -> float:
    allowed = f"{name} must be a number from {low:g} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{allowed}, not {_shown(value)}.")
    if not low <= value <= high:  # also refuses NaN
        raise UserError(f"{allowed}, not {_shown(value)}.")
    return float(value)


def _whole(name: str, value, low: int, high: int) -> int:
    allowed = f"{name} must be a whole number from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{allowed}, not {_shown(value)}.")
    if not low <= value <= high or (isinstance(value, float) and not value.is_integer()):
        raise UserError(f"{allowed}, not {_shown(value)}.")
    return int(value)


def _sampler(value) -> str:
    if not isinstance(value, str):
        raise UserError(f"sampler must be one of {', '.join(SAMPLERS)}, not {_shown(value)}.")
    if value not in SAMPLERS:
        raise UserError(f"there is no sampler {_shown(value)}; {nearest(value[:40], SAMPLERS)}")
    return value


def _shown(value) -> str:
    """A value as an error may echo it: short, on one line, and without a character that means anything in HTML."""
    if value is None:
        return "nothing"
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__}"
    if isinstance(value, float) and not math.isfinite(value):
        return "infinity" if value == value else "NaN"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return "a number that large"
    text = repr(value[:40] if isinstance(value, str) else value)[:60]
    return "".join(c if c.isprintable() and c not in '<>&"`' else "?" for c in text)
