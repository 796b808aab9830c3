"""MyDDPMPipeline: sampling as a generator. ``denoise`` yields every step, ``__call__`` drains it.

This file is uploaded beside the weights of every model, so it imports only the standard library, torch and
diffusers.
"""

import copy
import hashlib
import inspect
import itertools
import json
import math
import operator
import os
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, Optional

import diffusers
import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

# In half precision the network always sees so many images at once, padded where there are fewer. Matrix kernels round
# differently for different batch shapes; of float32 nothing remains of that in 8-bit pixels, of bfloat16 it does, and
# an image would depend on the batch it is made in.
HALF_PRECISION_BATCH = {"cpu": 16}
HALF_PRECISION_BATCH_ELSEWHERE = 64

LONGEST_PROMPT = 1000  # characters
# of a text; CLIP's limit. Prompts are padded to as many, so that a picture does not depend on those made with it.
MOST_TOKENS = 77
TEXTS_AT_ONCE = 256  # that a text encoder reads

# torch's seeds
SMALLEST_SEED, LARGEST_SEED = -(2**63), 2**64 - 1
# the modules of our classes: ddpm_hf.unet where it is installed, else a file that came with a model
OUR_CLASSES = ("MyUNet", "MyDDPMScheduler", "MyDDPMPipeline")
IN_CACHE = re.compile(r"models--[\w.-]+--[\w.-]+[/\\]snapshots[/\\].*")  # a Hub model's folder in the cache
OUR_MODULE = re.compile(r"(?:.*\.)?(ddpm_hf[._][a-z]+)(?:_[0-9a-f]{12})?")

Interval = tuple[float, float] | list[float]
Generators = torch.Generator | list[torch.Generator] | tuple[torch.Generator, ...] | None
Labels = int | str | Sequence[int] | Sequence[str] | torch.Tensor | None
Seeds = int | Sequence[int] | torch.Tensor | None
Numbers = float | Sequence[float] | torch.Tensor | None
Texts = str | Sequence[str] | None


class DenoisingStep(NamedTuple):
    """What ``denoise`` yields after every call of the network.

    index: 0 for the first step. timestep: t of the step, number. sample: (B, C, S, S), float32, x after the step, in
    the scheduler's own scale. pred_original_sample: (B, C, S, S), float32, the x_0 predicted from x before the step.
    """

    index: int
    timestep: float
    sample: torch.Tensor
    pred_original_sample: torch.Tensor


class Condition(NamedTuple):
    """What the network gets for B images besides x_t and t.

    labels: (B,), or None of a network without classes, or for its null class. words: what ``MyUNet.words`` made of B
    texts, or None of a network without words.
    """

    labels: torch.Tensor | None
    words: Any


class MyDDPMPipeline(DiffusionPipeline):
    """Image generation in pixel space, with any diffusers scheduler: unconditional, of classes, or from words.

    Args:
        unet: predicts the noise (or v, or x_0), called as ``unet(sample, timestep, class_labels)``.
        scheduler: ``MyDDPMScheduler`` or a stock one built ``.from_config(pipeline.scheduler.config)``.
        id2label: class names by label, ``{"0": "T-shirt/top", ...}``, where known.
        output_height, output_width: size in pixels to which images are cropped, centred; None keeps the network's.
        output_resize: True scales images to that size instead, for a network trained on whole images made square.
        num_inference_steps, guidance_scale, guidance_interval: what ``denoise`` and calls take where they are left out,
            the best for this model. None keeps all T steps, no guidance, and guidance at all timesteps.
        tokenizer, text_encoder: of transformers, for a network with ``cross_attention_dim``, the encoder's width;
            without them it takes ``prompt_embeds`` alone.

    Raises:
        ValueError: for a value that ``denoise`` would not take, or a text encoder that does not fit the network.
    """

    model_cpu_offload_seq = "text_encoder->unet"
    _optional_components = ["tokenizer", "text_encoder"]  # noqa: RUF012 - diffusers' name, as its pipelines have it
    _callback_tensor_inputs = ("latents",)  # the name by which diffusers' callbacks ask for it

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        # diffusers reads these types when it loads, and its 0.35 does not know ``dict | None``
        id2label: Optional[dict] = None,  # noqa: UP045
        output_height: Optional[int] = None,  # noqa: UP045
        output_width: Optional[int] = None,  # noqa: UP045
        output_resize: Optional[bool] = None,  # noqa: UP045
        num_inference_steps: Optional[int] = None,  # noqa: UP045
        guidance_scale: Optional[float] = None,  # noqa: UP045
        guidance_interval: Optional[list] = None,  # noqa: UP045
        tokenizer: Optional[object] = None,  # noqa: UP045
        text_encoder: Optional[torch.nn.Module] = None,  # noqa: UP045
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, tokenizer=tokenizer, text_encoder=text_encoder)
        self.register_to_config(
            id2label=id2label,
            output_height=output_height,
            output_width=output_width,
            output_resize=output_resize,
            num_inference_steps=_as_list(num_inference_steps),  # plain numbers, as in JSON
            guidance_scale=_as_list(guidance_scale),
            guidance_interval=_as_list(guidance_interval),
        )
        self.check_own_sampling()
        if text_encoder is not None and text_encoder.config.hidden_size != self.words_dim:
            raise ValueError(
                f"the text encoder makes words of width {text_encoder.config.hidden_size}, and the network "
                f"{f'reads words of width {self.words_dim}' if self.words_dim else 'reads no words'}."
            )

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None for a model without."""
        return getattr(self.unet.config, "num_class_embeds", None)

    @property
    def words_dim(self) -> int | None:
        """Width of the words that the network reads, or None for a model without."""
        return getattr(self.unet.config, "cross_attention_dim", None)

    @property
    def can_be_guided(self) -> bool:
        """Whether the model has classes or words to guide towards."""
        return self.num_classes is not None or self.words_dim is not None

    @property
    def num_timesteps(self) -> int | None:
        """Network calls for an image in the run that was started last; None before the first."""
        return getattr(self, "_num_timesteps", None)

    @property
    def interrupt(self) -> bool:
        """Whether a callback, or another thread, has set ``_interrupt``, which ends a call after its present step."""
        return getattr(self, "_interrupt", False)

    def check_own_sampling(self):
        """Raise a ValueError unless the model's own steps, guidance and interval are what ``denoise`` takes."""
        self._steps(None)
        self._guidance(1, None, None)

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """As of ``DiffusionPipeline``, which takes over a network only if its class is the one that __init__ names."""
        return super().from_pipe(pipeline, **{"unet": pipeline.unet, **kwargs})

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ):
        """Save the pipeline with the code of its classes, so that diffusers loads it where ddpm_hf is not installed.

        Arguments as of ``DiffusionPipeline``; ``push_to_hub`` and the methods of that name upload the same files.

        Raises:
            ValueError: as of ``write_pipeline``.
        """
        write_pipeline(
            self, save_directory, safe_serialization=safe_serialization, variant=variant, max_shard_size=max_shard_size
        )
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", Path(save_directory).name)
            self.push_to_hub(repo_id, safe_serialization=safe_serialization, variant=variant, **kwargs)

    @classmethod
    def download(cls, pretrained_model_name, **kwargs):
        """As of ``DiffusionPipeline``, which asks the Hub about a model's code even where all of it is in the cache."""
        try:
            return super().download(pretrained_model_name, **kwargs)
        except Exception as error:  # of the Hub client, or of the HTTP library it uses
            if not isinstance(error, ConnectionError) and "Connect" not in type(error).__name__:
                raise
            raise ConnectionError(
                f"the Hub cannot be reached, and diffusers loads {pretrained_model_name} by its id only online; "
                f"once run online, from_pretrained(snapshot_download({pretrained_model_name!r})) works offline, "
                f"and so does ddpm_hf.load_pipeline."
            ) from error

    @torch.no_grad()
    def denoise(
        self,
        batch_size: int | str | Sequence[str] = 1,
        class_labels: Labels = None,
        guidance_scale: Numbers = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        seed: Seeds = None,
        latents: torch.Tensor | None = None,
        guidance_interval: Interval | None = None,
        eta: float | None = None,
        timesteps: Numbers = None,
        sigmas: Numbers = None,
        image: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        prompt: Texts = None,
        negative_prompt: Texts = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        num_images_per_prompt: int = 1,
    ) -> Iterator[DenoisingStep]:
        """Denoise ``batch_size`` images, yielding a ``DenoisingStep`` after every call of the network.

        What is left out is the model's own: number of steps, guidance and its interval, and classes in turn. A model
        that has none of its own, such as one exported by version 0.1, takes all T steps, without guidance, of the null
        class. Closing the generator ends the work. The grad mode of the caller is left alone between steps, and so are
        other runs of the same pipeline.

        Args:
            batch_size: number of images B; or, in its place, the prompt: ``pipeline("a red apple")``.
            class_labels: one label for all or B of them, in [0, num_classes], or names of ``id2label``. The last label
                is the null class, of images of any class, not guided. None takes the classes in turn where the model
                has a guidance scale of its own: seed K the class K mod num_classes (without seeds, image i the class
                i mod num_classes). Without one, None is the null class.
            guidance_scale: w in eps = eps_null + w (eps_class - eps_null) (Ho and Salimans 2022); 1 is off. One for
                all images or B of them.
            num_inference_steps: steps of the scheduler, in [1, T]. With ``MyDDPMScheduler`` all T are the ancestral
                sampling of Ho et al. 2020; fewer are taken by its ``algorithm_type``.
            generator: source of all noise. A list of B gives every image its own.
            seed: instead of ``generator``, B seeds, or one seed K that gives image i the seed K + i. Image i then
                depends on its own seed alone, not on the batch it is made in.
            latents: (B, C, S, S), noise to start from instead of fresh noise.
            guidance_interval: (low, high), timesteps in [0, T] between which there is guidance, both included
                (Kynkaanniemi et al. 2024). Outside of it a step takes one call of the network for each image, not two.
                (0, T) guides every step.
            eta: share of fresh noise in a step of DDIM (Song et al. 2020), in [0, 1]; for schedulers that take it.
            timesteps, sigmas: instead of ``num_inference_steps``, the timesteps in [0, T - 1] or the noise levels to
                sample at, sqrt((1 - alpha_bar) / alpha_bar) and a 0 at the end, falling; for schedulers that take them.
            image: (B or 1, C, S, S) in [-1, 1], with ``mask``: a picture of which a part is made anew (inpainting).
            mask: (B or 1, 1 or C, S, S), 1 or True where it is made anew, 0 where ``image`` stays as it is: there,
                every step starts from ``image`` noised to its timestep, as in RePaint (Lugmayr et al. 2022, equation
                8, without resampling). A mask of ones is plain sampling.
            prompt: what the images are to show, of 1 to LONGEST_PROMPT characters: one text for all or B of them, which
                then say what B is. None are images of anything, not guided.
            negative_prompt: what they are to be guided away from; None is an empty text.
            prompt_embeds, negative_prompt_embeds: instead of texts, what ``encode_prompt`` made of them: (B, L, D) or
                (1, L, D), where tokens that are all zeros are padding.
            num_images_per_prompt: images of each prompt, one after the other.

        Raises:
            ValueError: naming the argument that is out of range, or that the scheduler does not take.
        """
        each = _whole_number("num_images_per_prompt", num_images_per_prompt, 1)
        batch_size, prompt, prompt_embeds = self._batch(batch_size, prompt, prompt_embeds, each)
        seeds, generator = self._generators(batch_size, generator, seed)
        labels = self._labels(batch_size, class_labels, seeds)
        device = self._execution_device
        if not hasattr(self.scheduler, "alphas_cumprod"):
            name = type(self.scheduler).__name__
            raise ValueError(f"{name} is not a scheduler of this diffusion process: it has no alphas_cumprod.")
        scale, low, high = self._guidance(batch_size, guidance_scale, guidance_interval)
        if not self.can_be_guided and guidance_scale is not None and not _all_equal(scale, 1):
            raise ValueError("guidance_scale was given, but the model has no classes to guide towards.")
        words = self._words(batch_size, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        condition = self._condition(labels, words)
        chosen = self._chosen_timesteps(num_inference_steps, timesteps, sigmas)
        # a copy for each run, as schedulers have state; the pipeline's own gets the timesteps too, for callers to read
        scheduler = copy.deepcopy(self.scheduler)
        for each in (scheduler, self.scheduler):
            each.set_timesteps(**chosen, device=device)
        self._num_timesteps = len(scheduler.timesteps)
        options = _step_options(scheduler, generator, eta)

        size = self.unet.config.sample_size
        shape = (batch_size, self.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device)
        else:
            _check_latents("latents", latents, shape)
        known, unknown = _checked_inpainting(image, mask, shape, device)
        # the state is float32 whatever the network computes in: rounding it at every step would add up
        sample = latents.to(device, torch.float32) * scheduler.init_noise_sigma

        try:
            for index, timestep in enumerate(scheduler.timesteps):
                scaled = scheduler.scale_model_input(sample, timestep)
                prediction = self._predict(scaled, timestep, condition, scale if low <= timestep <= high else 1)
                output = scheduler.step(prediction, timestep, sample, **options)
                x0 = getattr(output, "pred_original_sample", None)
                if x0 is None:
                    x0 = self._predict_x0(prediction, scaled, timestep)
                sample = output.prev_sample
                if known is not None:
                    level = self._noised(scheduler, known.expand(shape), index + 1, generator)
                    sample = torch.where(unknown, sample, level)
                yield DenoisingStep(index, timestep.item(), sample, x0)
        finally:
            self.maybe_free_model_hooks()  # of enable_model_cpu_offload

    def __call__(
        self,
        batch_size: int | str | Sequence[str] = 1,
        class_labels: Labels = None,
        guidance_scale: Numbers = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        seed: Seeds = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable | None = None,
        return_dict: bool = True,
        guidance_interval: Interval | None = None,
        eta: float | None = None,
        timesteps: Numbers = None,
        sigmas: Numbers = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        image: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        prompt: Texts = None,
        negative_prompt: Texts = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        num_images_per_prompt: int = 1,
    ) -> ImagePipelineOutput | tuple:
        """Generate images; arguments as in ``denoise``. ``pipeline(batch_size=16)`` is the model at its best, and so is
        ``pipeline("a red apple")`` of one that reads words.

        Args:
            output_type: "pil" (modes "L" or "RGB"), "np" ((B, H, W, C) in [0, 1]) or "pt" ((B, C, H, W) in [0, 1]).
            callback_on_step_end: called as ``callback(pipeline, index, timestep, {"latents": ...})`` after every
                step, as by diffusers' pipelines; their ``PipelineCallback`` too. If it returns a dict with "latents",
                the next step starts there. If it sets ``pipeline._interrupt = True``, the images are finished as they
                are.
            return_dict: False returns ``(images,)``.
            callback_on_step_end_tensor_inputs: what the callback is given; there are "latents" only.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be 'pil', 'np' or 'pt', got {output_type!r}.")
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise ValueError(f"callback_on_step_end must be a function, got {callback_on_step_end!r}.")
        wanted = list(getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs or ()))
        if unknown := set(wanted) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs must be of {list(self._callback_tensor_inputs)}, "
                f"got {min(unknown)!r}."
            )
        self._interrupt = False
        steps = self.denoise(
            batch_size,
            class_labels,
            guidance_scale,
            num_inference_steps,
            generator,
            seed,
            latents,
            guidance_interval,
            eta,
            timesteps,
            sigmas,
            image,
            mask,
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            num_images_per_prompt,
        )
        step = next(steps)
        with self.progress_bar(total=self.num_timesteps) as progress:
            while step is not None:
                sample = step.sample
                progress.update()
                if callback_on_step_end is not None:
                    tensors = {"latents": sample} if wanted else {}
                    changed = callback_on_step_end(self, step.index, step.timestep, tensors)
                    if changed and "latents" in changed:
                        _check_latents("the callback's latents", changed["latents"], tuple(sample.shape))
                        sample.copy_(changed["latents"])  # what the next step starts from
                step = None if self.interrupt else next(steps, None)
        steps.close()
        images = self.postprocess(sample, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def encode_prompt(self, prompt: str | Sequence[str]) -> torch.Tensor:
        """``prompt_embeds`` of one text or of B of them, (B, MOST_TOKENS, D); an empty text is no words at all.

        Raises:
            ValueError: for a text that is no prompt, or if the model has no text encoder.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        if self.tokenizer is None or self.text_encoder is None:
            lacks = "has no text encoder: give prompt_embeds" if self.words_dim else "reads no words"
            raise ValueError(f"a prompt was given, but the model {lacks}.")
        different = list(dict.fromkeys(texts))
        found = dict(zip(different, encode_texts(self.tokenizer, self.text_encoder, different)))
        width = self.text_encoder.config.hidden_size
        embeds = torch.zeros(len(texts), MOST_TOKENS, width, device=self._execution_device, dtype=found[texts[0]].dtype)
        for row, text in zip(embeds, texts):
            row[: len(found[text])] = found[text]
        return embeds

    @property
    def holds_sigma(self) -> bool:
        """Whether the scheduler's samples are x_0 + sigma eps: its largest sigma then follows from its timesteps."""
        return isinstance(getattr(type(self.scheduler), "init_noise_sigma", None), property)

    def unit_variance(self, step: DenoisingStep) -> torch.Tensor:
        """x after ``step``, for looking at: x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps.

        Schedulers such as Euler hold x_0 + sigma eps instead, whose noise is up to 80 times brighter than the image.
        The step is of the run that was started last.
        """
        if not self.holds_sigma:
            return step.sample
        sigmas = self.scheduler.sigmas
        sigma = float(sigmas[min(step.index + 1, len(sigmas) - 1)])
        return step.sample / (1 + sigma**2) ** 0.5

    def postprocess(self, sample: torch.Tensor, output_type: str = "pil"):
        """Crop or scale x (B, C, S, S) in [-1, 1] to the output size and convert it; types as in ``__call__``."""
        height = self.config.output_height or sample.shape[-2]
        width = self.config.output_width or sample.shape[-1]
        if self.config.get("output_resize"):
            sample = F.interpolate(sample.float(), (height, width), mode="bicubic", antialias=True)
        else:
            top, left = (sample.shape[-2] - height) // 2, (sample.shape[-1] - width) // 2
            sample = sample[..., top : top + height, left : left + width]
        images = (sample.float() / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        images = VaeImageProcessor.pt_to_numpy(images)
        return images if output_type == "np" else VaeImageProcessor.numpy_to_pil(images)

    # ---- arguments

    def _generators(self, batch_size: int, generator, seed) -> tuple[list[int], Generators]:
        """A number for each image, its seed where it has one, and the source of the noise."""
        seeds = list(range(batch_size))
        if seed is not None:
            if generator is not None:
                raise ValueError("give either generator or seed, not both.")
            seed = _as_list(seed)
            seeds = seed if isinstance(seed, list) else [_whole_number("seed", seed) + i for i in seeds]
            seeds = [_whole_number("seed", value, SMALLEST_SEED, LARGEST_SEED) for value in seeds]
            # on the CPU, so that a seed means the same picture on every device
            generator = [torch.Generator("cpu").manual_seed(value) for value in seeds]
        if isinstance(generator, list | tuple):
            generator = list(generator)
            if len(generator) != batch_size:
                raise ValueError(f"{len(generator)} generators or seeds were given for batch_size={batch_size}.")
        for value in generator if isinstance(generator, list) else [generator]:
            if not isinstance(value, torch.Generator | None):
                raise ValueError(f"generator must be a torch.Generator or a list of them, got {value!r}.")
        return seeds, generator

    def _batch(self, batch_size, prompt, embeds, each: int) -> tuple[int, list[str] | None, torch.Tensor | None]:
        """Number of images, and the prompts or what was made of them, one or as many, checked."""
        if isinstance(batch_size, str) or (isinstance(batch_size, list | tuple) and prompt is None):
            if prompt is not None:
                raise ValueError("give the prompt once: in place of batch_size, or as prompt.")
            batch_size, prompt = 1, batch_size
        batch_size = _whole_number("batch_size", batch_size, 1)
        if prompt is not None and embeds is not None:
            raise ValueError("give either prompt or prompt_embeds, not both.")
        if embeds is not None and not isinstance(embeds, torch.Tensor):
            raise ValueError(f"prompt_embeds must be a tensor (B, L, {self.words_dim}), got {type(embeds).__name__}.")
        prompts = None if prompt is None else _texts("prompt", prompt)
        given = prompts if prompts is not None else embeds
        if each > 1 and given is None:
            raise ValueError("num_images_per_prompt was given without a prompt.")
        if each > 1 and prompts is not None:
            prompts = given = [text for text in prompts for _ in range(each)]
        elif each > 1:
            embeds = given = embeds.repeat_interleave(each, 0)
        count = 1 if given is None else len(given)
        if count not in (1, batch_size) and batch_size != 1:
            raise ValueError(f"{count} prompts were given for batch_size={batch_size}.")
        return max(batch_size, count), prompts, embeds

    def _words(self, batch_size, prompts, negative, embeds, negative_embeds) -> tuple[torch.Tensor, ...] | None:
        """(B, L, D) of the prompts and, to be guided away from, of the negative ones; of those alone without prompts;
        None of a network without words."""
        given = {"prompt": prompts, "negative_prompt": negative}
        given |= {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
        given = [name for name, value in given.items() if value is not None]
        if self.words_dim is None:
            if given:
                raise ValueError(f"{given[0]} was given, but the model reads no words.")
            return None
        if given and prompts is None and embeds is None:
            raise ValueError(f"{given[0]} was given without a prompt.")
        if negative is not None and negative_embeds is not None:
            raise ValueError("give either negative_prompt or negative_prompt_embeds, not both.")
        if negative_embeds is None:
            texts = [""] if negative is None else _texts("negative_prompt", negative, may_be_empty=True)
            if self.text_encoder is None and embeds is not None:
                raise ValueError("the model has no text encoder: give negative_prompt_embeds, too, of an empty text.")
            negative_embeds = self.encode_prompt(texts)
        named = {"negative_prompt": negative_embeds}
        if given:
            named = {"prompt": self.encode_prompt(prompts) if embeds is None else embeds, **named}
        return tuple(self._of_all(name, each, batch_size) for name, each in named.items())

    def _of_all(self, name: str, embeds, batch_size: int) -> torch.Tensor:
        shape = tuple(embeds.shape) if isinstance(embeds, torch.Tensor) else type(embeds).__name__
        if not isinstance(shape, tuple) or len(shape) != 3 or shape[2] != self.words_dim or shape[1] < 1:
            raise ValueError(f"{name}_embeds must have shape (B, L, {self.words_dim}), got {shape}.")
        if shape[0] not in (1, batch_size):
            raise ValueError(f"{shape[0]} {name}_embeds were given for batch_size={batch_size}.")
        return F.pad(embeds, (0, 0, 0, max(0, MOST_TOKENS - shape[1]))).expand(batch_size, -1, -1)

    def _condition(self, labels, words: tuple[torch.Tensor, ...] | None) -> tuple[Condition, Condition | None]:
        """Of the images, and of twice as many, the second half of which has neither class nor words; None where there
        is nothing to guide towards. The words are prepared here, once for all steps."""
        if labels is None and (words is None or len(words) == 1):
            return Condition(None, None if words is None else self._prepared(words[0])), None
        both = None if labels is None else torch.cat((labels, torch.full_like(labels, self.num_classes)))
        count, prepared = len(labels) if words is None else len(words[0]), None
        if words is not None:
            length = max(each.shape[1] for each in words)
            words = [F.pad(each, (0, 0, 0, length - each.shape[1])) for each in words]
            prepared = self._prepared(torch.cat((words[0], words[-1])))
        twice = Condition(both, prepared)
        return _rows(twice, lambda values: values[:count]), twice

    def _prepared(self, embeds: torch.Tensor):
        """What the network makes of (B, L, D), where tokens that are all zeros are padding."""
        embeds = embeds.to(self.unet.device)  # which may be another while it is offloaded
        words = self.unet.words(embeds, (embeds != 0).any(-1))
        return _rows(words, lambda values: values.to(self._execution_device))

    def _labels(self, batch_size: int, class_labels, seeds) -> torch.Tensor | None:
        if class_labels is None:
            if self.num_classes is None or self.config.guidance_scale is None:
                return None
            class_labels = [seed % self.num_classes for seed in seeds]
        if self.num_classes is None:
            raise ValueError("class_labels were given, but the model is unconditional.")
        labels = _as_list(class_labels)
        labels = labels if isinstance(labels, list) else [labels]
        labels = [self._label_of(value) if isinstance(value, str) else value for value in labels]
        labels = [_whole_number("class_labels", value, 0, self.num_classes) for value in labels]
        if len(labels) not in (1, batch_size):
            raise ValueError(f"{len(labels)} class_labels were given for batch_size={batch_size}.")
        return torch.tensor(labels).expand(batch_size).to(self._execution_device)

    def _label_of(self, name: str) -> int:
        names = {str(known).lower(): int(label) for label, known in (self.config.id2label or {}).items()}
        if name.lower() not in names:
            known = ", ".join(map(str, (self.config.id2label or {}).values())) or "no names"
            raise ValueError(f"class_labels: the model has no class {name!r}; it has {known}.")
        return names[name.lower()]

    def _steps(self, steps) -> int:
        """The number of steps: as given, the model's own, or T."""
        total = self.scheduler.config.num_train_timesteps
        if steps is None:
            steps = total if self.config.num_inference_steps is None else self.config.num_inference_steps
        if isinstance(steps, float) and steps.is_integer():
            steps = int(steps)
        return _whole_number("num_inference_steps", steps, 1, total)

    def _chosen_timesteps(self, steps, timesteps, sigmas) -> dict[str, Any]:
        """What ``set_timesteps`` of the scheduler is given."""
        given = {"timesteps": timesteps, "sigmas": sigmas}
        given = {name: _as_list(values) for name, values in given.items() if values is not None}
        if not given:
            return {"num_inference_steps": self._steps(steps)}
        if len(given) == 2:
            raise ValueError("give either timesteps or sigmas, not both.")
        ((name, values),) = given.items()
        if name not in inspect.signature(self.scheduler.set_timesteps).parameters:
            raise ValueError(f"{type(self.scheduler).__name__} takes no {name}; leave the argument out.")
        if steps is not None:
            raise ValueError(f"give either num_inference_steps or {name}, not both.")
        numbers = isinstance(values, list) and all(_is_finite(value) for value in values)
        falling = numbers and all(low < high for high, low in itertools.pairwise(values))
        if name == "timesteps":
            rule, inner, ends = "falling numbers", values, (0, self.scheduler.config.num_train_timesteps - 1)
        else:
            rule, inner = (
                "falling numbers and a 0 at the end, the others",
                falling and values[-1:] == [0] and values[:-1],
            )
            first, last = (self.scheduler.alphas_cumprod[i].item() for i in (0, -1))
            ends = tuple(((1 - ab) / ab) ** 0.5 if ab else math.inf for ab in (first, last))
        if not falling or not inner or not ends[0] <= inner[-1] <= inner[0] <= ends[1]:
            raise ValueError(f"{name} must be {rule} in [{ends[0]:.4g}, {ends[1]:.4g}], got {values}.")
        return {name: values}

    def _guidance(self, batch_size: int, scale, interval) -> tuple[float | torch.Tensor, float, float]:
        """Scale, one or (B, 1, 1, 1), and the first and the last timestep with guidance: as given, the model's own, or
        1, 0 and T."""
        total = self.scheduler.config.num_train_timesteps
        if scale is None:
            scale = 1.0 if self.config.guidance_scale is None else self.config.guidance_scale
        scale = _as_list(scale)
        scales = scale if isinstance(scale, list) else [scale]
        for value in scales:
            if not _is_finite(value):
                raise ValueError(f"guidance_scale must be a finite number, got {value!r}.")
        if len(scales) not in (1, batch_size):
            raise ValueError(f"{len(scales)} numbers were given as guidance_scale for batch_size={batch_size}.")
        if len(scales) > 1:
            scale = torch.tensor(scales, dtype=torch.float32, device=self._execution_device)[:, None, None, None]
        else:
            (scale,) = scales
        if interval is None:
            interval = (0, total) if self.config.guidance_interval is None else self.config.guidance_interval
        interval = _as_list(interval)
        numbers = isinstance(interval, list) and all(_is_finite(value) for value in interval)
        if not numbers or len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= total:
            got = tuple(interval) if isinstance(interval, list) else repr(interval)
            raise ValueError(f"guidance_interval must be (low, high) with 0 <= low <= high <= {total}, got {got}.")
        return scale, *interval

    # ---- one step

    def _predict(self, sample, timestep, condition, guidance_scale) -> torch.Tensor:
        """The network's prediction, float32, guided where there is something to guide towards, and a scale but 1."""
        condition, twice = condition
        if twice is None or _all_equal(guidance_scale, 1):
            return self._run_unet(sample, timestep, condition)
        with_condition, with_null = self._run_unet(torch.cat((sample, sample)), timestep, twice).chunk(2)
        return with_null + guidance_scale * (with_condition - with_null)

    def _run_unet(self, sample, timestep, condition: Condition) -> torch.Tensor:
        sample = sample.to(self.unet.dtype).contiguous(memory_format=torch.channels_last)
        if self.unet.dtype not in (torch.float16, torch.bfloat16):
            return self._call_unet(sample, timestep, condition)
        size = HALF_PRECISION_BATCH.get(sample.device.type, HALF_PRECISION_BATCH_ELSEWHERE)
        made = []
        for start in range(0, len(sample), size):
            part = slice(start, start + size)
            made.append(self._call_padded(sample[part], _rows(condition, lambda v, part=part: v[part]), timestep, size))
        return torch.cat(made)

    def _call_padded(self, sample, condition, timestep, size) -> torch.Tensor:
        count = len(sample)
        if count < size:

            def padded(values):
                return torch.cat((values, values[-1:].expand(size - count, *values.shape[1:])))

            sample = padded(sample).contiguous(memory_format=torch.channels_last)
            condition = _rows(condition, padded)
        return self._call_unet(sample, timestep, condition)[:count]

    def _call_unet(self, sample, timestep, condition) -> torch.Tensor:
        given = {} if self.num_classes is None else {"class_labels": condition.labels}
        if condition.words is not None:
            given["encoder_hidden_states"] = condition.words
        return self.unet(sample, timestep, **given).sample.float()

    def _predict_x0(self, prediction, scaled, timestep) -> torch.Tensor:
        """x_0 from the prediction and x_t, where sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps = x_t."""
        kind = getattr(self.scheduler.config, "prediction_type", "epsilon")
        if kind == "sample":
            return prediction
        alpha_bar = self._alpha_bar(timestep, scaled.device)
        signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        if kind == "epsilon":
            return (scaled - sigma * prediction) / signal
        if kind == "v_prediction":
            return signal * scaled - sigma * prediction
        raise ValueError(f"prediction_type {kind!r} is not supported.")

    def _alpha_bar(self, timestep, device) -> torch.Tensor:
        """alpha_bar at a timestep that may lie between two whole ones."""
        alphas_cumprod = self.scheduler.alphas_cumprod.to(device)
        low = timestep.floor().long().clamp(max=len(alphas_cumprod) - 1)
        high = (low + 1).clamp(max=len(alphas_cumprod) - 1)
        return torch.lerp(alphas_cumprod[low], alphas_cumprod[high], timestep.float() - low)

    def _noised(self, scheduler, x_0, index: int, generator: Generators) -> torch.Tensor:
        """A sample of q(x_t | x_0), in the scheduler's own scale, for the step ``index``; x_0 itself after the last."""
        if index == len(scheduler.timesteps):
            return x_0
        noise = randn_tensor(x_0.shape, generator=generator, device=x_0.device)
        if self.holds_sigma:
            return x_0 + float(scheduler.sigmas[index]) * noise
        alpha_bar = self._alpha_bar(scheduler.timesteps[index], x_0.device)
        return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise


# ---- words


def token_ids(tokenizer, text_encoder: torch.nn.Module, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, at most MOST_TOKENS and what the encoder can read."""
    limit = min(MOST_TOKENS, tokenizer.model_max_length)
    limit = min(limit, getattr(text_encoder.config, "max_position_embeddings", limit))
    return tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]


def encode_texts(tokenizer, text_encoder: torch.nn.Module, texts: Sequence[str]) -> list[torch.Tensor]:
    """The last hidden states of one of transformers' encoders for each text, (tokens, D).

    Texts of one length are read together, without padding.
    """
    ids = token_ids(tokenizer, text_encoder, texts)
    by_length, found = defaultdict(list), [None] * len(ids)
    for i, tokens in enumerate(ids):
        by_length[len(tokens)].append(i)
    for places in by_length.values():
        for start in range(0, len(places), TEXTS_AT_ONCE):
            chosen = places[start : start + TEXTS_AT_ONCE]
            tokens = torch.tensor([ids[i] for i in chosen], device=text_encoder.device)
            states = text_encoder(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
            for i, words in zip(chosen, states):
                found[i] = words
    return found


def check_text(name: str, text, may_be_empty: bool = False):
    """Raise a ValueError unless ``text`` can be a prompt; ``name`` is what it is called."""
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a text, got {type(text).__name__}.")
    if not text.strip() and not may_be_empty:
        raise ValueError(f"{name} is empty; leave it out for pictures of anything.")
    if len(text) > LONGEST_PROMPT:
        raise ValueError(f"{name} has {len(text):,} characters; at most {LONGEST_PROMPT:,} are read.")
    controls = [letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\r\t"]
    if controls:
        raise ValueError(f"{name} has the control character {controls[0]!r}; only printable text is read.")


def _texts(name: str, given, may_be_empty: bool = False) -> list[str]:
    texts = [given] if isinstance(given, str) else _as_list(given)
    if not isinstance(texts, list) or not texts:
        raise ValueError(f"{name} must be a text or a list of texts, got {given!r}.")
    for text in texts:
        check_text(name, text, may_be_empty)
    return texts


def _rows(part, take: Callable):
    """``part``, a tensor or tuples and lists of some, with ``take`` of each tensor; None stays None."""
    if part is None:
        return None
    if isinstance(part, torch.Tensor):
        return take(part)
    rows = [_rows(each, take) for each in part]
    return type(part)(*rows) if hasattr(part, "_fields") else rows


# ---- arguments


def _as_list(values):
    """Arrays, tensors, tuples and ranges as lists; anything else as it is."""
    if hasattr(values, "tolist"):  # of NumPy and torch, whose single numbers become Python's
        values = values.tolist()
    return list(values) if isinstance(values, tuple | range) else values


def _whole_number(name: str, value, low: float = -math.inf, high: float = math.inf) -> int:
    """``value``, which may be one of NumPy's or torch's whole numbers, as int.

    Raises:
        ValueError: naming the argument, if it is no whole number in [low, high].
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        within = f" in [{low}, {high}]" if high < math.inf else f" of at least {low}" if low > -math.inf else ""
        raise ValueError(f"{name} must be a whole number{within}, got {value!r}.")
    return number


def _is_finite(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _all_equal(values: float | torch.Tensor, value: float) -> bool:
    return bool((values == value).all()) if isinstance(values, torch.Tensor) else values == value


def _check_latents(name: str, latents, shape: tuple[int, ...]):
    if not isinstance(latents, torch.Tensor) or tuple(latents.shape) != shape:
        got = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ValueError(f"{name} must have shape {shape}, got {got}.")


def _checked_inpainting(image, mask, shape: tuple[int, ...], device) -> tuple:
    """``image`` in float32 and ``mask`` as bool, both of a shape that expands to ``shape``; (None, None) without."""
    if image is None and mask is None:
        return None, None
    if image is None or mask is None:
        raise ValueError("give image and mask together: the mask says which part of the image is made anew.")
    batch, channels, *size = shape
    for name, value, allowed in (("image", image, (channels,)), ("mask", mask, (1, channels))):
        fits = isinstance(value, torch.Tensor) and value.ndim == 4 and list(value.shape[2:]) == size
        if not fits or value.shape[0] not in (1, batch) or value.shape[1] not in allowed:
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"{name} must have shape {(batch, allowed[0], *size)}, got {got}.")
    image, mask = image.to(device, torch.float32), mask.to(device)
    if not image.isfinite().all() or image.abs().max() > 1:
        raise ValueError("image must hold numbers in [-1, 1].")
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError("mask must hold 0 and 1 alone: 1 where the image is made anew.")
    # where all is made anew nothing is drawn for what is known: the noise is that of plain sampling
    return (None, None) if mask.bool().all() else (image, mask.bool())


def _step_options(scheduler, generator: Generators, eta: float | None) -> dict[str, Any]:
    """Arguments of ``scheduler.step``, which has not always a generator, and eta with DDIM and few others alone."""
    taken = inspect.signature(scheduler.step).parameters
    options = {"generator": generator} if "generator" in taken else {}
    if eta is None:
        return options
    if "eta" not in taken:
        raise ValueError(f"{type(scheduler).__name__} takes no eta; DDIMScheduler does.")
    if not _is_finite(eta) or not 0 <= eta <= 1:
        raise ValueError(f"eta must be a number in [0, 1], got {eta!r}.")
    return options | {"eta": eta}


# ---- saving


def write_pipeline(pipeline: DiffusionPipeline, folder: str | os.PathLike, **options):
    """Write ``pipeline``, ours or one of diffusers', into ``folder``, created or added to, with the code of ours.

    Code files have the hash of their content in their names: diffusers puts the code of all repositories into one
    place, where same-named files of two versions would replace each other.

    Args:
        options: of ``DiffusionPipeline.save_pretrained``, such as variant and max_shard_size.

    Raises:
        ValueError: before anything is written, if a component is of a class that is neither ours nor of diffusers, as
            nobody could load it, or if the network's weights are not those of its class.
    """
    folder = Path(folder)
    components = {name: part for name, part in pipeline.components.items() if part is not None}
    components = {name: getattr(part, "_orig_mod", part) for name, part in components.items()}  # not compiled
    code = {name: _code_of(name, type(part)) for name, part in components.items()}
    own_code = _code_of("pipeline", type(pipeline))
    _check_weights(components["unet"])
    DiffusionPipeline.save_pretrained(pipeline, folder, **options)

    index = {"_class_name": type(pipeline).__name__, "_diffusers_version": diffusers.__version__}
    if own_code:
        index["_class_name"] = [_write_code(folder, *own_code), type(pipeline).__name__]
    for name, part in components.items():
        library, class_name = type(part).__module__.split(".")[0], type(part).__name__
        index[name] = [_write_code(folder / name, *code[name]) if code[name] else library, class_name]
        config_file = folder / name / "config.json"
        if config_file.is_file():
            config = json.loads(config_file.read_bytes())
            # where it was loaded from is private, but for the Hub's model that it was made of
            if base := IN_CACHE.search(str(config.pop("_name_or_path", ""))):
                config["_name_or_path"] = base[0]
            if code[name]:
                config["auto_map"] = {"AutoModel": ".".join(index[name])}  # by which diffusers' AutoModel finds it
            _write_json(config_file, dict(sorted(config.items())))
    for name, value in pipeline.config.items():
        if not name.startswith("_") and name not in pipeline.components:  # those that are not there
            index[name] = value
    if getattr(pipeline, "weights", None) is not None:
        index["_weights"] = pipeline.weights  # which of a training run they are; diffusers passes over such names
    _write_json(folder / "model_index.json", index)


def _code_of(name: str, component_class: type) -> tuple[str, bytes] | None:
    """Module name and content of the file of a class of ours; None for a class of diffusers or transformers.

    Raises:
        ValueError: if it is neither.
    """
    class_name, library = component_class.__name__, component_class.__module__.split(".")[0]
    ours = OUR_MODULE.fullmatch(component_class.__module__)
    if ours and class_name in OUR_CLASSES:
        source = Path(inspect.getfile(component_class)).read_bytes()
        return f"{ours[1].replace('.', '_')}_{hashlib.sha256(source).hexdigest()[:12]}", source
    if library in ("diffusers", "transformers") and getattr(sys.modules[library], class_name, None) is component_class:
        return None
    raise ValueError(
        f"{name} is of class {class_name}, which is not of ddpm_hf or diffusers, so that nobody could load it; unwrap "
        "it, as with merge_and_unload() of a PeftModel, or save its weights yourself."
    )


def _check_weights(unet: torch.nn.Module):
    """Raise a ValueError unless the weights are those that a network with this configuration has."""
    with torch.device("meta"):
        expected = type(unet).from_config(unet.config).state_dict()
    found = unet.state_dict()
    for name in sorted(expected.keys() | found.keys()):
        if name not in found or name not in expected or found[name].shape != expected[name].shape:
            raise ValueError(
                f"unet cannot be saved: {name} is not as in a {type(unet).__name__} with its configuration. "
                "Merge adapters first, and leave layers as they are."
            )
        if found[name].is_meta:
            raise ValueError("unet cannot be saved while its weights are offloaded; save it before, or load it again.")


def _write_code(folder: Path, name: str, source: bytes) -> str:
    (folder / f"{name}.py").write_bytes(source)
    return name


def _write_json(file: Path, values: dict[str, Any]):
    file.write_bytes(json.dumps(values, indent=2).encode() + b"\n")  # the same bytes on every system
