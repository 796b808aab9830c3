"""Limits: what passes, and one clear line for everything else."""

import math

import pytest
from app_server import NAMES

from ddpm_hf.errors import UserError
from ddpm_hf.samplers import SAMPLERS
from ddpm_hf.sampling import Sampling
from ddpm_hf.ui.files import settings_of_one, settings_values
from ddpm_hf.ui.limits import MAX_SEED, Limits, request_of

LIMITS = Limits(classes=tuple(NAMES), max_steps=1000)
PLAIN = Limits(classes=(), max_steps=500)

NOT_NUMBERS = [None, True, False, "16", "", [16], [], {"a": 1}, math.nan, math.inf, -math.inf, 10**400, -(10**400)]
BAD = [
    *[("num_images", value) for value in [*NOT_NUMBERS, 0, -1, 65, 1.5, 1e300]],
    *[("steps", value) for value in [*NOT_NUMBERS, 0, -1, 1001, 19.5, 1e300]],
    *[("seed", value) for value in [*NOT_NUMBERS, -1, MAX_SEED + 1, 0.5]],
    *[("guidance_scale", value) for value in [*NOT_NUMBERS, -0.1, 20.1]],
    *[("guidance_interval", value) for value in [*NOT_NUMBERS, [0], [0, 1, 2], [0, "9"], [0, math.nan], [9, 3]]],
    *[("guidance_interval", value) for value in [[-1, 5], [0, 1001], "0,400", {"low": 0}]],
    *[("sampler", value) for value in [None, True, 3, "nonsense", "", ["dpm"], {}, math.nan, "x" * 10**6, "\0\n"]],
    *[
        ("class_name", value)
        for value in [None, True, -1, 3, 1.0, "hat", "", ["circle"], {}, math.nan, "9" * 5000, "²"]
    ],
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: repr(value)[:20])
def test_refuses_with_one_line(name, value):
    with pytest.raises(UserError) as caught:
        LIMITS.check(**{name: value})
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300
    assert "<" not in message.replace("<b>star</b>", "")


@pytest.mark.parametrize("value", ["<img src=x onerror=alert(1)>", "&lt;script&gt;", "`${1}`"])
@pytest.mark.parametrize("name", ["sampler", "class_name", "seed"])
def test_echoes_no_markup(name, value):
    with pytest.raises(UserError) as caught:
        Limits(classes=("circle",), max_steps=10).check(**{name: value})
    assert not set("<>&`") & set(str(caught.value))


def test_says_what_would_be_right():
    with pytest.raises(UserError, match="steps must be a whole number from 1 to 1000, not NaN"):
        LIMITS.check(steps=math.nan)
    with pytest.raises(UserError, match="did you mean 'euler'"):
        LIMITS.check(sampler="eular")
    with pytest.raises(UserError, match="did you mean 'circle'"):
        LIMITS.check(class_name="circel")


def test_accepts_the_edges():
    settings = LIMITS.check(
        num_images=64, steps=250.0, seed=MAX_SEED, guidance_scale=1, sampler="ddim", class_name="any"
    )
    assert (settings.num_images, settings.steps, settings.seed, settings.label) == (64, 250, MAX_SEED, None)
    assert isinstance(settings.steps, int)
    assert list(settings.seeds[:2]) == [MAX_SEED, MAX_SEED + 1]
    assert LIMITS.check(steps=1, num_images=1, seed=0, guidance_scale=0).guidance_scale == 0


@pytest.mark.parametrize(("value", "label"), [("square", 1), ("SQUARE", 1), (2, 2), ("2", 2), ("any", None)])
def test_classes_by_name_and_number(value, label):
    assert LIMITS.check(class_name=value).label == label


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_bounds_the_work(sampler):
    settings = LIMITS.check(num_images=8, steps=1000, sampler=sampler, guidance_scale=1)
    assert settings.num_images * LIMITS.network_calls(settings) <= LIMITS.max_work
    for images, steps, guidance in [(64, 1000, 1), (32, 1000, 2), (64, 501, 1)]:
        with pytest.raises(UserError, match=r"too much work: take at most [1-9]\d* steps or [1-9]\d* images"):
            LIMITS.check(num_images=images, steps=steps, sampler=sampler, guidance_scale=guidance)


def test_advice_on_too_much_work_is_within_the_limits():
    with pytest.raises(UserError, match="at most 250 steps or 16 images"):
        LIMITS.check(num_images=64, steps=1000, guidance_scale=2)
    LIMITS.check(num_images=64, steps=250, guidance_scale=2)
    LIMITS.check(num_images=16, steps=1000, guidance_scale=2)


def test_unconditional_models_have_neither_class_nor_guidance():
    assert PLAIN.check().label is None
    with pytest.raises(UserError, match="no classes"):
        PLAIN.check(class_name="circle")
    with pytest.raises(UserError, match="no classes"):
        PLAIN.check(guidance_scale=2)
    with pytest.raises(UserError, match="no classes"):
        PLAIN.check(guidance_interval=[0, 400])
    assert PLAIN.check().guidance_interval is None
    with pytest.raises(UserError, match="from 1 to 500"):
        PLAIN.check(steps=501)


def test_default_steps_fit_a_short_process():
    assert Limits(classes=(), max_steps=8).check().steps == 8


def test_what_is_left_out_is_the_models_own():
    own = Sampling("dpm", 12, 3.0, (100, 500))
    limits = Limits(classes=("a", "b"), max_steps=1000, carried=own, carried_interval=(100, 500))
    values = lambda settings: (settings.sampler, settings.steps, settings.guidance_scale, settings.guidance_interval)  # noqa: E731
    assert values(limits.check()) == ("dpm", 12, 3.0, (100, 500))
    assert values(limits.check(guidance_scale=5, steps=7)) == ("dpm", 7, 5.0, (100, 500))
    assert values(limits.check(sampler="ddim", guidance_interval=[0, 400.0])) == ("ddim", 12, 3.0, (0, 400))
    # a model of version 0.1 has the values of a training run; a scale alone means all timesteps there, as it did
    assert values(LIMITS.check()) == ("dpm-sde", 20, 2.0, (0, 400))
    assert values(LIMITS.check(guidance_scale=1.5)) == ("dpm-sde", 20, 1.5, (0, 1000))


def test_guidance_in_an_interval_is_less_work():
    with pytest.raises(UserError, match="too much work"):
        LIMITS.check(num_images=20, steps=1000, guidance_scale=2)
    settings = LIMITS.check(num_images=20, steps=1000, guidance_scale=2, guidance_interval=[0, 400])
    assert LIMITS.network_calls(settings) == 1401


@pytest.mark.parametrize("values", [None, [], [1], "steps", 5, True, math.nan])
def test_a_request_must_be_an_object(values):
    with pytest.raises(UserError, match="must be an object with the fields seed, steps"):
        request_of(values, ["seed", "steps"])


def test_a_request_has_known_fields():
    assert request_of({"seed": [1]}, ["seed", "steps"]) == {"seed": [1]}
    with pytest.raises(UserError, match="there is no setting 'stepps'; did you mean 'steps'"):
        request_of({"stepps": 1}, ["seed", "steps"])
    with pytest.raises(UserError) as caught:
        request_of({"<script>" * 100: 1}, ["seed", "steps"])
    assert "<" not in str(caught.value) and len(str(caught.value)) < 200


def test_every_image_of_the_last_seed_can_be_made_alone(engine):
    run = engine.limits.check(num_images=3, seed=MAX_SEED)
    alone = settings_values(engine.models.first, settings_of_one(engine.models.first, run, 2))
    assert alone["seed"] == MAX_SEED + 2
    alone.pop("model")
    assert engine.limits.check(**alone).seeds == run.seeds[2:]
