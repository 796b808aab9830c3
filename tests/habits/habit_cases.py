"""What diffusers' users do with a pipeline, as a table: done to ours and to a stock DDPMPipeline.

Every case says how both end, so that a new release of diffusers shows what it changed:

right  the function ends, and what it returns is true
line   a ValueError of one line that names what was wrong
error  any other exception
"""

import copy
import functools
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoModel,
    AutoPipelineForText2Image,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    UNet2DModel,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.training_utils import EMAModel
from helpers import tiny_pipeline

NAMES = {"0": "shirt", "1": "shoe", "2": "bag"}
RIGHT, LINE, ERROR = "right", "line", "error"
STEPS = {"num_inference_steps": 3}


@dataclass(frozen=True)
class Case:
    """``do(pipeline, folder)``, and how it ends with our pipeline and with a stock one.

    says: a part of our line. since: the first diffusers that does so, where the oldest that is supported does not.
    theirs: how ours ends is the doing of diffusers, or of torch, whatever the model; ``says`` is a part of its words.
    """

    name: str
    do: Callable
    ours: str = RIGHT
    stock: str = RIGHT
    says: str = ""
    since: str = "0"
    theirs: bool = False


def ours() -> DiffusionPipeline:
    return tiny_pipeline(num_class_embeds=3, id2label=NAMES, in_channels=3, out_channels=3)


def stock() -> DDPMPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    )
    pipeline = DDPMPipeline(unet.eval(), DDPMScheduler(20))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pixels(pipeline, batch_size=1, seed=0, **arguments) -> np.ndarray:
    """(B, H, W, C), of a generator that both pipelines take."""
    arguments = {"generator": torch.Generator().manual_seed(seed), **STEPS, "output_type": "np", **arguments}
    return pipeline(batch_size, **arguments).images


def same(pipeline, other, **arguments) -> bool:
    return np.array_equal(pixels(pipeline, 2, **arguments), pixels(other, 2, **arguments))


def loaded(pipeline, folder, **options):
    other = DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True, **options)
    other.set_progress_bar_config(disable=True)
    return other


def saved(pipeline, folder, **options):
    pipeline.save_pretrained(folder, **options)
    return folder


# ---- calling


def images_are(output_type, check):
    return lambda pipe, folder: check(pipe(2, **STEPS, output_type=output_type).images)


def called(**arguments):
    """The pipeline called with ``arguments``; right where it makes two pictures."""
    return lambda pipe, folder: len(pipe(**{"batch_size": 2, **STEPS, **arguments}).images) == 2


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def the_same_seed_is_the_same_picture(pipe, folder):
    return np.array_equal(pixels(pipe), pixels(pipe)) and not np.array_equal(pixels(pipe), pixels(pipe, seed=1))


def a_list_of_generators_is_one_for_each(pipe, folder):
    together = pixels(pipe, 3, generator=generators(5, 6, 7))
    alone = pixels(pipe, 1, generator=generators(6))
    return np.abs(together[1] - alone[0]).max() < 1e-5


def arguments_of_a_call(name, value, **more):
    return called(**{name: value, **more})


# ---- callbacks


class Counting(PipelineCallback):
    tensor_inputs = ["latents"]  # noqa: RUF012

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        pipeline.seen = [*getattr(pipeline, "seen", []), step_index]
        return callback_kwargs


class OfPrompts(Counting):
    tensor_inputs = ["prompt_embeds"]  # noqa: RUF012


def a_callback_sees_every_step(pipe, folder):
    seen = []
    pipe(1, **STEPS, callback_on_step_end=lambda p, i, t, tensors: seen.append((i, tensors["latents"].shape)) or {})
    return seen == [(i, (1, 3, 8, 8)) for i in range(3)]


def diffusers_callbacks_run(pipe, folder):
    pipe(1, **STEPS, callback_on_step_end=Counting())
    pipe(1, **STEPS, callback_on_step_end=MultiPipelineCallbacks([Counting(), Counting()]))
    return pipe.seen == [0, 1, 2] + [0, 0, 1, 1, 2, 2]


def interrupt_ends_the_call(pipe, folder):
    seen = []

    def stop(pipeline, index, timestep, tensors):
        seen.append(index)
        pipeline._interrupt = index == 1
        return tensors

    images = pipe(2, num_inference_steps=10, callback_on_step_end=stop).images
    return seen == [0, 1] and len(images) == 2 and len(pipe(1, **STEPS).images) == 1


def callback_changes(latents):
    return called(callback_on_step_end=lambda p, i, t, tensors: {"latents": latents(tensors["latents"])})


# ---- components


def another_scheduler(name, **settings):
    def do(pipe, folder):
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **settings)
        return len(pipe(2, **STEPS).images) == 2

    return do


def with_scheduler(name, **arguments):
    def do(pipe, folder):
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
        return len(pipe(2, **arguments).images) == 2

    return do


def from_pipe(pipe, folder):
    return same(pipe, type(pipe).from_pipe(pipe)) and same(pipe, type(pipe)(**pipe.components))


def an_average_of_the_weights(pipe, folder):
    average = EMAModel(pipe.unet.parameters(), model_cls=type(pipe.unet), model_config=pipe.unet.config)
    average.step(pipe.unet.parameters())
    average.copy_to(pipe.unet.parameters())
    average.save_pretrained(folder / "average")
    return EMAModel.from_pretrained(folder / "average", type(pipe.unet)).optimization_step == 1


def the_network_stays_as_it_was(pipe, folder):
    from torch.nn.utils import parameters_to_vector

    pipe(1, **STEPS)
    return all(p.is_contiguous() for p in pipe.unet.parameters()) and len(parameters_to_vector(pipe.unet.parameters()))


def a_deep_copy_in_mid_run(pipe, folder):
    copies = []
    pipe(1, **STEPS, callback_on_step_end=lambda p, i, t, tensors: copies.append(copy.deepcopy(p.unet)) or {})
    return len(copies) == 3


def in_dtype(dtype):
    return lambda pipe, folder: np.isfinite(pixels(pipe.to(dtype), 2)).all()


def layerwise_casting(pipe, folder):
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    return np.isfinite(pixels(pipe, 2)).all()


def gradient_checkpointing(pipe, folder):
    pipe.unet.enable_gradient_checkpointing()
    pipe.unet.train()(torch.randn(2, 3, 8, 8), 3).sample.sum().backward()
    return pipe.unet.is_gradient_checkpointing


# ---- loading


def loading(**options):
    return lambda pipe, folder: len(loaded(pipe, saved(pipe, folder / "model"), **options)(2, **STEPS).images) == 2


def loading_with(part):
    def do(pipe, folder):
        replaced = DDIMScheduler.from_config(pipe.scheduler.config) if part == "scheduler" else pipe.unet
        return loading(**{part: replaced})(pipe, folder)

    return do


def loading_by(load):
    return lambda pipe, folder: load(str(saved(pipe, folder / "model"))) is not None


def a_file_is_missing(name):
    def do(pipe, folder):
        (saved(pipe, folder / "model") / name).unlink()
        return loaded(pipe, folder / "model")

    return do


# ---- saving


def save_and_load(pipe, folder):
    return same(pipe, loaded(pipe, saved(pipe, folder / "model")))


def save_over_an_older_save(pipe, folder):
    saved(pipe, folder / "model")
    with torch.no_grad():
        next(pipe.unet.parameters()).add_(0.1)
    return same(pipe, loaded(pipe, saved(pipe, folder / "model")))


def save_what_was_loaded(pipe, folder):
    again = loaded(pipe, saved(pipe, folder / "model"))
    return same(pipe, loaded(again, saved(again, folder / "again")))


def save_compiled(pipe, folder):
    plain = pixels(pipe, 2)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    return np.array_equal(plain, pixels(loaded(pipe, saved(pipe, folder / "model")), 2))


def save_in_parts(pipe, folder):
    saved(pipe, folder / "model", max_shard_size="5KB")
    parts = list((folder / "model" / "unet").glob("*-of-*.safetensors"))
    return len(parts) > 1 and same(pipe, loaded(pipe, folder / "model"))


def save_a_variant(pipe, folder):
    saved(pipe.to(torch.float16), folder / "model", variant="fp16")
    other = loaded(pipe, folder / "model", variant="fp16", torch_dtype=torch.float16)
    return other.unet.dtype == torch.float16 and same(pipe, other)


def nothing_private_is_saved(pipe, folder):
    again = loaded(pipe, saved(pipe, folder / "model"))
    saved(again, folder / "again")
    return not any(str(folder).encode() in path.read_bytes() for path in (folder / "again").rglob("*.json"))


def the_network_alone(pipe, folder):
    """By its class, and where it says so by diffusers' AutoModel."""
    x = torch.randn(2, 3, 8, 8)
    saved(pipe.unet, folder / "unet")
    return torch.equal(type(pipe.unet).from_pretrained(folder / "unet")(x, 3).sample, pipe.unet(x, 3).sample)


def auto_model(pipe, folder):
    saved(pipe, folder / "model")
    code = {"trust_remote_code": True} if list((folder / "model" / "unet").glob("*.py")) else {}
    x = torch.randn(2, 3, 8, 8)
    other = AutoModel.from_pretrained(str(folder / "model" / "unet"), **code)
    return torch.equal(other(x, 3).sample, pipe.unet(x, 3).sample)


def save_with_other_layers(pipe, folder):
    for name, module in list(pipe.unet.named_modules()):
        if isinstance(module, torch.nn.Linear):
            owner = pipe.unet.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], torch.nn.Sequential(module))
            break
    return same(pipe, loaded(pipe, saved(pipe, folder / "model")))


def save_a_subclass(part):
    def do(pipe, folder):
        if part == "pipeline":
            pipe = type("Mine", (type(pipe),), {})(**pipe.components)
        else:
            component = getattr(pipe, part)
            setattr(pipe, part, type("Mine", (type(component),), {}).from_config(component.config))
        pipe.set_progress_bar_config(disable=True)
        return same(pipe, loaded(pipe, saved(pipe, folder / "model")))

    return do


def pickled(pipe, folder):
    return same(pipe, pickle.loads(pickle.dumps(pipe)))


PICTURES = [
    Case("pil images", images_are("pil", lambda images: images[0].size == (8, 8))),
    Case("np images", images_are("np", lambda images: images.shape == (2, 8, 8, 3))),
    Case("pt images", images_are("pt", lambda images: tuple(images.shape) == (2, 3, 8, 8)), since="0.36"),
    Case("another type of images", images_are("jpeg", len), LINE, RIGHT, "output_type"),
    Case("a tuple", lambda pipe, folder: len(pipe(2, **STEPS, return_dict=False)[0]) == 2),
    Case("the same seed", the_same_seed_is_the_same_picture),
    Case("a generator each", a_list_of_generators_is_one_for_each),
    Case("too few generators", called(generator=generators(1)), LINE, RIGHT, "batch_size=2"),
    Case("a tuple of generators", called(generator=tuple(generators(1, 2))), RIGHT, ERROR),
    Case("a number as generator", called(generator=3), LINE, ERROR, "generator"),
    Case("no pictures", called(batch_size=0), LINE, ERROR, "batch_size"),
    Case("a bool of pictures", called(batch_size=True), LINE, ERROR, "batch_size"),
    Case("numpy's number of pictures", called(batch_size=np.int64(2))),
    Case("numpy's steps", called(num_inference_steps=np.int64(3))),
    Case("torch's steps", called(num_inference_steps=torch.tensor(3)), RIGHT, ERROR),
    Case("half a step", called(num_inference_steps=2.5), LINE, RIGHT, "num_inference_steps"),
    Case("more steps than T", called(num_inference_steps=21), LINE, LINE, "num_inference_steps"),
    Case("steps in words", called(num_inference_steps="20"), LINE, ERROR, "num_inference_steps"),
]
SEEDS = [
    Case("a seed", called(seed=3), RIGHT, ERROR),
    Case("numpy's seed", called(seed=np.int64(3)), RIGHT, ERROR),
    Case("torch's seeds", called(seed=torch.tensor([3, 4])), RIGHT, ERROR),
    Case("numpy's seeds", called(seed=np.arange(2)), RIGHT, ERROR),
    Case("a range of seeds", called(seed=range(2)), RIGHT, ERROR),
    Case("the largest seeds", called(seed=2**64 - 2), RIGHT, ERROR),
    Case("a seed too large", called(seed=2**65), LINE, ERROR, "seed"),
    Case("half a seed", called(seed=2.7), LINE, ERROR, "seed"),
    Case("a seed in words", called(seed="3"), LINE, ERROR, "seed"),
    Case("seed and generator", called(seed=1, generator=generators(1, 2)), LINE, ERROR, "generator or seed"),
]
CLASSES = [
    Case("a class", called(class_labels=1), RIGHT, ERROR),
    Case("classes", called(class_labels=[1, 2]), RIGHT, ERROR),
    Case("torch's classes", called(class_labels=torch.tensor([1, 2])), RIGHT, ERROR),
    Case("numpy's classes", called(class_labels=np.array([1, 2])), RIGHT, ERROR),
    Case("the name of a class", called(class_labels="bag"), RIGHT, ERROR),
    Case("names of classes", called(class_labels=["Shoe", "bag"]), RIGHT, ERROR),
    Case("an unknown name", called(class_labels="hat"), LINE, ERROR, "no class 'hat'; it has shirt, shoe, bag"),
    Case("a class too large", called(class_labels=9), LINE, ERROR, "class_labels"),
    Case("half a class", called(class_labels=1.5), LINE, ERROR, "class_labels"),
    Case("too many classes", called(class_labels=[0, 1, 2]), LINE, ERROR, "class_labels"),
    Case("guidance", called(class_labels=1, guidance_scale=3), RIGHT, ERROR),
    Case("a guidance each", called(class_labels=1, guidance_scale=[1, 3.0]), RIGHT, ERROR),
    Case("torch's guidance", called(class_labels=1, guidance_scale=torch.tensor([1, 3.0])), RIGHT, ERROR),
    Case("guidance of three", called(class_labels=1, guidance_scale=[1, 2, 3]), LINE, ERROR, "guidance_scale"),
    Case("guidance in words", called(class_labels=1, guidance_scale="3"), LINE, ERROR, "guidance_scale"),
]
LATENTS = [
    Case("latents", called(latents=torch.randn(2, 3, 8, 8)), RIGHT, ERROR),
    Case("latents of one", called(latents=torch.randn(1, 3, 8, 8)), LINE, ERROR, "latents"),
    Case("numpy's latents", called(latents=np.zeros((2, 3, 8, 8))), LINE, ERROR, "latents"),
    Case("a callback", a_callback_sees_every_step, RIGHT, ERROR),
    Case("diffusers' callbacks", diffusers_callbacks_run, RIGHT, ERROR),
    Case("a callback of prompts", called(callback_on_step_end=OfPrompts()), LINE, ERROR, "prompt_embeds"),
    Case("interrupt", interrupt_ends_the_call, RIGHT, ERROR),
    Case("a callback's latents", callback_changes(lambda x: x * 0.9), RIGHT, ERROR),
    Case("a callback's latents of one", callback_changes(lambda x: x[:1]), LINE, ERROR, "latents"),
    Case("no callback", called(callback_on_step_end=3), LINE, ERROR, "callback_on_step_end"),
    Case(
        "unknown tensors",
        called(callback_on_step_end=print, callback_on_step_end_tensor_inputs=["prompt_embeds"]),
        *(LINE, ERROR, "callback_on_step_end_tensor_inputs"),
    ),
]
SAMPLING = {"num_inference_steps": None}
SAME_AS_STOCK = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "SASolverScheduler",
)
# whose step takes no generator, which a stock DDPMPipeline gives to every one
WITHOUT_GENERATOR = (
    "UniPCMultistepScheduler",
    "HeunDiscreteScheduler",
    "DEISMultistepScheduler",
    "KDPM2DiscreteScheduler",
)
SCHEDULERS = [
    *(Case(name, another_scheduler(name)) for name in SAME_AS_STOCK),
    *(Case(name, another_scheduler(name), RIGHT, ERROR) for name in WITHOUT_GENERATOR),
    Case("zero SNR", another_scheduler("DDIMScheduler", rescale_betas_zero_snr=True, timestep_spacing="trailing")),
    Case("karras sigmas", another_scheduler("DPMSolverMultistepScheduler", use_karras_sigmas=True)),
    Case("exponential sigmas", another_scheduler("EulerDiscreteScheduler", use_exponential_sigmas=True)),
    Case("another process", another_scheduler("FlowMatchEulerDiscreteScheduler"), LINE, RIGHT, "alphas_cumprod"),
    Case("eta", with_scheduler("DDIMScheduler", **STEPS, eta=0.5), RIGHT, ERROR),
    Case("eta of another", called(eta=0.5), LINE, ERROR, "takes no eta"),
    Case("eta of 2", with_scheduler("DDIMScheduler", **STEPS, eta=2), LINE, ERROR, "eta"),
    Case("timesteps", called(**SAMPLING, timesteps=[15, 9, 2]), RIGHT, ERROR),
    Case("numpy's timesteps", called(**SAMPLING, timesteps=np.array([15, 9, 2])), RIGHT, ERROR),
    Case("rising timesteps", called(**SAMPLING, timesteps=[2, 9]), LINE, ERROR, "timesteps"),
    Case("timesteps beyond T", called(**SAMPLING, timesteps=[20, 9]), LINE, ERROR, "timesteps"),
    Case("steps and timesteps", called(timesteps=[15, 9]), LINE, ERROR, "num_inference_steps or timesteps"),
    Case("sigmas of another", called(**SAMPLING, sigmas=[0.4, 0.1, 0]), LINE, ERROR, "takes no sigmas"),
    Case("sigmas", with_scheduler("EulerDiscreteScheduler", sigmas=[0.4, 0.1, 0]), RIGHT, ERROR),
    Case(
        "sigmas too large",
        with_scheduler("EulerDiscreteScheduler", sigmas=[90.0, 0.1, 0]),
        *(LINE, ERROR, "sigmas must be"),
    ),
]
COMPONENTS = [
    Case("from_pipe", from_pipe),
    Case("an average of the weights", an_average_of_the_weights),
    Case("the layout of the weights", the_network_stays_as_it_was),
    Case("a copy in mid run", a_deep_copy_in_mid_run, RIGHT, ERROR),
    Case("bfloat16", in_dtype(torch.bfloat16), RIGHT, ERROR),
    Case("float16", in_dtype(torch.float16)),
    Case("float64", in_dtype(torch.float64)),
    Case("layerwise casting", layerwise_casting),
    Case("gradient checkpointing", gradient_checkpointing),
    Case("a pickle", pickled),
    Case("attention slicing", lambda pipe, folder: [pipe.enable_attention_slicing(), pixels(pipe)]),
]
CODE, LIBRARIES = "contains custom code", "is not one of the libraries Diffusers can load components from"
FP16 = {"variant": "fp16", "torch_dtype": torch.float16}
LOADING = [
    Case("load in float16", loading(torch_dtype=torch.float16)),
    Case("load with less memory", loading(low_cpu_mem_usage=True)),
    Case("load safe files alone", loading(use_safetensors=True)),
    Case("load an option that is unknown", loading(nothing=3)),
    Case("load a variant that is missing", loading(**FP16), LINE, LINE, "no such modeling files", theirs=True),
    Case("load with another scheduler", loading_with("scheduler"), LINE, RIGHT, LIBRARIES, "0.42.1", theirs=True),
    Case("load with another network", loading_with("unet"), LINE, RIGHT, LIBRARIES, "0.42.1", theirs=True),
    Case(
        "load for prompts",
        loading_by(AutoPipelineForText2Image.from_pretrained),
        *(LINE, LINE),
        "AutoPipeline",
        theirs=True,
    ),
    Case("load without trust", loading_by(DiffusionPipeline.from_pretrained), ERROR, RIGHT, CODE, "0.38", theirs=True),
    Case("load as a stock pipeline", loading_by(DDPMPipeline.from_pretrained), ERROR, RIGHT, CODE, "0.38", theirs=True),
    Case("load onto balanced devices", loading(device_map="balanced"), ERROR, RIGHT, CODE, "0.38", theirs=True),
    Case(
        "load without weights",
        a_file_is_missing("unet/diffusion_pytorch_model.safetensors"),
        *(ERROR, ERROR, "no file named diffusion_pytorch_model"),
        theirs=True,
    ),
    Case(
        "load without settings",
        a_file_is_missing("unet/config.json"),
        *(ERROR, ERROR, "no file named config.json"),
        theirs=True,
    ),
    Case("float8 for all", in_dtype(torch.float8_e4m3fn), ERROR, ERROR, "not implemented for", theirs=True),
]
SAVING = [
    Case("save and load", save_and_load),
    Case("save twice", save_over_an_older_save),
    Case("save what was loaded", save_what_was_loaded),
    Case("save compiled", save_compiled),
    Case("save in parts", save_in_parts),
    Case("save a variant", save_a_variant),
    Case("nothing private", nothing_private_is_saved, RIGHT, ERROR),
    Case("the network alone", the_network_alone),
    Case("AutoModel", auto_model, since="0.36"),
    Case("save other layers", save_with_other_layers, LINE, ERROR, "unet cannot be saved"),
    Case("save a subclass of the network", save_a_subclass("unet"), LINE, LINE, "unet is of class Mine", "0.36"),
    Case(
        "save a subclass of the scheduler",
        save_a_subclass("scheduler"),
        LINE,
        LINE,
        "scheduler is of class Mine",
        "0.36",
    ),
    Case("save a subclass of the pipeline", save_a_subclass("pipeline"), LINE, ERROR, "pipeline is of class Mine"),
    Case(
        "save a wrapped network",
        lambda pipe, folder: [setattr(pipe, "unet", torch.nn.DataParallel(pipe.unet)), save_and_load(pipe, folder)],
        *(LINE, LINE, "unet is of class DataParallel"),
    ),
]
CASES = [*PICTURES, *SEEDS, *CLASSES, *LATENTS, *SCHEDULERS, *COMPONENTS, *LOADING, *SAVING]


def outcome(do: Callable, pipeline, folder) -> tuple[str, str]:
    """How a case ends, and what was said."""
    try:
        result = do(pipeline, folder)
    except ValueError as error:
        return (LINE if "\n" not in str(error) else ERROR), str(error)
    except Exception as error:
        return ERROR, repr(error)
    return (RIGHT, "") if result else (ERROR, f"returned {result!r}")


PIPELINES: dict[str, Callable[[], DiffusionPipeline]] = {
    "ours": functools.cache(ours),
    "stock": functools.cache(stock),
}
