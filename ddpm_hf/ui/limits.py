"""What a visitor may ask for: every limit of the page and of the API is here, and is checked here."""

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass

from ddpm_hf.errors import UserError, nearest
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.samplers import DEFAULT_GUIDANCE, DEFAULT_SAMPLER, DEFAULT_STEPS, SAMPLERS
from ddpm_hf.sampling import class_names

MAX_IMAGES = 64
# Network calls x images. 16 images with all 1000 steps, guided, take minutes on 2 cores.
MAX_WORK = 32_000
MAX_SEED = 2**32 - 1
MAX_GUIDANCE = 20.0
MAX_SECONDS = 300.0
MAX_QUEUE = 20
# jobs that wait or run
MAX_JOBS_OF_SESSION = 3
MAX_JOBS_OF_ADDRESS = 8
MAX_JOBS = 40

DEFAULT_IMAGES = 16
COMPARED_LANES = (2, 4)
DEFAULT_COMPARED = 4
MAX_COMPARED = 8
ANY_CLASS = "any"
STOPPED = "the run was stopped."  # what a visitor is told whose run somebody else ended
_OWN = object()  # the model's own default


@dataclass(frozen=True)
class Settings:
    """A request that has been checked. label: the class of all images, or None for all classes in turn."""

    num_images: int
    label: int | None
    guidance_scale: float
    sampler: str
    steps: int
    seed: int

    @property
    def seeds(self) -> range:
        """The seed of every image."""
        return range(self.seed, self.seed + self.num_images)

    def asdict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """The limits for one model: ``classes``, its names by label (() when unconditional), ``max_steps``, its T."""

    classes: tuple[str, ...]
    max_steps: int
    max_images: int = MAX_IMAGES
    max_work: int = MAX_WORK
    max_seconds: float = MAX_SECONDS

    @classmethod
    def of(cls, pipeline: MyDDPMPipeline) -> "Limits":
        return cls(tuple(class_names(pipeline)), pipeline.scheduler.config.num_train_timesteps)

    @property
    def default_steps(self) -> int:
        return min(DEFAULT_STEPS, self.max_steps)

    @property
    def default_guidance(self) -> float:
        return DEFAULT_GUIDANCE if self.classes else 1.0

    def check(
        self,
        num_images=DEFAULT_IMAGES,
        class_name=ANY_CLASS,
        guidance_scale=_OWN,
        sampler=DEFAULT_SAMPLER,
        steps=DEFAULT_STEPS,
        seed=0,
    ) -> Settings:
        """Settings from values of any type, as they came over the wire.

        Raises:
            UserError: naming the first value that is not allowed, and what is.
        """
        guidance = self.default_guidance if guidance_scale is _OWN else guidance_scale
        settings = Settings(
            num_images=_whole("number of images", num_images, 1, self.max_images),
            label=self._label(class_name),
            guidance_scale=_number("guidance scale", guidance, 0.0, MAX_GUIDANCE),
            sampler=_sampler(sampler),
            steps=_whole("steps", steps, 1, self.max_steps),
            seed=_whole("seed", seed, 0, MAX_SEED),
        )
        if not self.classes and settings.guidance_scale != 1:
            raise UserError("this model has no classes to guide towards: leave the guidance scale at 1.")
        self._check_work(settings)
        return settings

    def check_comparison(
        self, lanes=(), num_images=DEFAULT_COMPARED, class_name=ANY_CLASS, guidance_scale=_OWN, seed=0
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
        common = {"num_images": num_images, "class_name": class_name, "guidance_scale": guidance_scale, "seed": seed}
        checked = tuple(self.check(**common, **{"steps": self.default_steps, **lane}) for lane in lanes)
        if len(set(checked)) < len(checked):
            raise UserError("two of the lanes are the same: change a sampler or its steps.")
        if sum(settings.num_images * network_calls(settings) for settings in checked) > self.max_work:
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

    def _check_work(self, settings: Settings):
        a_step = network_calls(settings, steps=1)
        work = settings.num_images * network_calls(settings)
        if work <= self.max_work:
            return
        images = self.max_work // network_calls(settings)
        steps = self.max_work // (settings.num_images * a_step)
        advice = f"take at most {steps} steps" + (f" or {images} images" if images else "")
        raise UserError(f"{settings.num_images} images with {settings.steps} steps are too much work: {advice}.")


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


def network_calls(settings: Settings, steps: int | None = None) -> int:
    """How often the network runs for every image."""
    order = SAMPLERS[settings.sampler].scheduler_class.order
    return (settings.steps if steps is None else steps) * order * (1 if settings.guidance_scale == 1 else 2)


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
