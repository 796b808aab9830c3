"""MyDDPMPipeline: sampling as a generator. ``denoise`` yields every step, ``__call__`` drains it.

This file is uploaded beside the weights of every model, so it imports only the standard library, torch and
diffusers.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import NamedTuple, Optional

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

Generators = torch.Generator | list[torch.Generator] | None


class DenoisingStep(NamedTuple):
    """What ``denoise`` yields after every call of the network.

    index: 0 for the first step. timestep: t of the step, number. sample: (B, C, S, S), float32, x after the step, in
    the scheduler's own scale. pred_original_sample: (B, C, S, S), float32, the x_0 predicted from x before the step.
    """

    index: int
    timestep: float
    sample: torch.Tensor
    pred_original_sample: torch.Tensor


class MyDDPMPipeline(DiffusionPipeline):
    """Unconditional or class-conditional image generation in pixel space, with any diffusers scheduler.

    Args:
        unet: predicts the noise (or v, or x_0), called as ``unet(sample, timestep, class_labels)``.
        scheduler: ``MyDDPMScheduler`` or a stock one built ``.from_config(pipeline.scheduler.config)``.
        id2label: class names by label, ``{"0": "T-shirt/top", ...}``, where known.
        output_height, output_width: size in pixels to which images are cropped, centred; None keeps the network's.
        output_resize: True scales images to that size instead, for a network trained on whole images made square.
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        # diffusers reads these types when it loads, and its 0.35 does not know ``dict | None``
        id2label: Optional[dict] = None,  # noqa: UP045
        output_height: Optional[int] = None,  # noqa: UP045
        output_width: Optional[int] = None,  # noqa: UP045
        output_resize: Optional[bool] = None,  # noqa: UP045
    ):
        super().__init__()
        unet.to(memory_format=torch.channels_last)  # what convolutions are fastest in, on CPUs and GPUs alike
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(
            id2label=id2label, output_height=output_height, output_width=output_width, output_resize=output_resize
        )

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None for an unconditional model."""
        return getattr(self.unet.config, "num_class_embeds", None)

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
        batch_size: int = 1,
        class_labels: int | list[int] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        seed: int | list[int] | None = None,
        latents: torch.Tensor | None = None,
    ) -> Iterator[DenoisingStep]:
        """Denoise ``batch_size`` images, yielding a ``DenoisingStep`` after every call of the network.

        Closing the generator ends the work. The grad mode of the caller is left alone between steps.

        Args:
            batch_size: number of images B.
            class_labels: one label for all or B of them, in [0, num_classes]; the last, like None, is the null class.
            guidance_scale: w in eps = eps_null + w (eps_class - eps_null) (Ho and Salimans 2022); 1 is off.
            num_inference_steps: steps of the scheduler, in [1, T]; None is all T.
            generator: source of all noise. A list of B gives every image its own.
            seed: instead of ``generator``, B seeds, or one seed K that gives image i the seed K + i. Image i then
                depends on its own seed alone, not on the batch it is made in.
            latents: (B, C, S, S), noise to start from instead of fresh noise.

        Raises:
            ValueError: naming the argument that is out of range.
        """
        generator = self._generators(batch_size, generator, seed)
        labels = self._labels(batch_size, class_labels)
        device, scheduler = self._execution_device, self.scheduler
        if not hasattr(scheduler, "alphas_cumprod"):
            name = type(scheduler).__name__
            raise ValueError(f"{name} is not a scheduler of this diffusion process: it has no alphas_cumprod.")
        self._set_timesteps(num_inference_steps, device)
        if guidance_scale != guidance_scale or abs(guidance_scale) == float("inf"):
            raise ValueError(f"guidance_scale must be a finite number, got {guidance_scale}.")

        size = self.unet.config.sample_size
        shape = (batch_size, self.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents must have shape {shape}, got {tuple(latents.shape)}.")
        # the state is float32 whatever the network computes in: rounding it at every step would add up
        sample = latents.to(device, torch.float32) * scheduler.init_noise_sigma
        options = self._step_options(generator)

        for index, timestep in enumerate(scheduler.timesteps):
            scaled = scheduler.scale_model_input(sample, timestep)
            prediction = self._predict(scaled, timestep, labels, guidance_scale)
            output = scheduler.step(prediction, timestep, sample, **options)
            x0 = getattr(output, "pred_original_sample", None)
            if x0 is None:
                x0 = self._predict_x0(prediction, scaled, timestep)
            sample = output.prev_sample
            yield DenoisingStep(index, timestep.item(), sample, x0)

    def __call__(
        self,
        batch_size: int = 1,
        class_labels: int | list[int] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        seed: int | list[int] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable | None = None,
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Generate images; arguments as in ``denoise``.

        Args:
            output_type: "pil" (modes "L" or "RGB"), "np" ((B, H, W, C) in [0, 1]) or "pt" ((B, C, H, W) in [0, 1]).
            callback_on_step_end: called as ``callback(pipeline, index, timestep, {"latents": ...})`` after every
                step, as by diffusers' pipelines. If it returns a dict with "latents", the next step starts there.
            return_dict: False returns ``(images,)``.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be 'pil', 'np' or 'pt', got {output_type!r}.")
        steps = self.denoise(batch_size, class_labels, guidance_scale, num_inference_steps, generator, seed, latents)
        with self.progress_bar(total=num_inference_steps or self.scheduler.config.num_train_timesteps) as progress:
            for step in steps:
                progress.total = len(self.scheduler.timesteps)  # some samplers call the network twice a step
                progress.update()
                if callback_on_step_end is not None:
                    changed = callback_on_step_end(self, step.index, step.timestep, {"latents": step.sample})
                    if changed and "latents" in changed:
                        step.sample.copy_(changed["latents"])  # what the next step starts from
        sample = step.sample
        images = self.postprocess(sample, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @property
    def holds_sigma(self) -> bool:
        """Whether the scheduler's samples are x_0 + sigma eps: its largest sigma then follows from its timesteps."""
        return isinstance(getattr(type(self.scheduler), "init_noise_sigma", None), property)

    def unit_variance(self, sample: torch.Tensor) -> torch.Tensor:
        """``sample`` of the latest step, for looking at: x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps.

        Schedulers such as Euler hold x_0 + sigma eps instead, whose noise is up to 80 times brighter than the image.
        """
        scheduler = self.scheduler
        if not self.holds_sigma or getattr(scheduler, "step_index", None) is None:
            return sample
        sigma = float(scheduler.sigmas[min(scheduler.step_index, len(scheduler.sigmas) - 1)])
        return sample / (1 + sigma**2) ** 0.5

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

    def _generators(self, batch_size, generator, seed) -> Generators:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
        if seed is not None:
            if generator is not None:
                raise ValueError("give either generator or seed, not both.")
            seeds = seed if isinstance(seed, list | tuple | range) else [int(seed) + i for i in range(batch_size)]
            # on the CPU, so that a seed means the same picture on every device
            generator = [torch.Generator("cpu").manual_seed(int(value)) for value in seeds]
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"{len(generator)} generators or seeds were given for batch_size={batch_size}.")
        return generator

    def _labels(self, batch_size, class_labels) -> torch.Tensor | None:
        if class_labels is None:
            return None
        if self.num_classes is None:
            raise ValueError("class_labels were given, but the model is unconditional.")
        labels = torch.as_tensor(class_labels).reshape(-1)
        if labels.is_floating_point():
            raise ValueError(f"class_labels must be whole numbers, got {labels.tolist()}.")
        labels = labels.long()
        if len(labels) not in (1, batch_size):
            raise ValueError(f"{len(labels)} class_labels were given for batch_size={batch_size}.")
        if not ((labels >= 0) & (labels <= self.num_classes)).all():
            raise ValueError(f"class_labels must lie in [0, {self.num_classes}], got {labels.tolist()}.")
        return labels.expand(batch_size).to(self._execution_device)

    def _set_timesteps(self, steps, device):
        total = self.scheduler.config.num_train_timesteps
        steps = total if steps is None else steps
        if not isinstance(steps, int | float) or not 1 <= steps <= total or steps != int(steps):
            raise ValueError(f"num_inference_steps must be a whole number in [1, {total}], got {steps}.")
        self.scheduler.set_timesteps(int(steps), device=device)

    def _step_options(self, generator) -> dict:
        """The generator, for schedulers whose step takes one."""
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        return {"generator": generator} if takes_generator else {}

    # ---- one step

    def _predict(self, sample, timestep, labels, guidance_scale) -> torch.Tensor:
        """The network's prediction, float32, guided where a label and a scale other than 1 are given."""
        if labels is None:
            return self._run_unet(sample, timestep, None)
        if guidance_scale == 1:
            return self._run_unet(sample, timestep, labels)
        null = torch.full_like(labels, self.num_classes)
        both = self._run_unet(torch.cat((sample, sample)), timestep, torch.cat((labels, null)))
        with_class, with_null = both.chunk(2)
        return with_null + guidance_scale * (with_class - with_null)

    def _run_unet(self, sample, timestep, labels) -> torch.Tensor:
        sample = sample.to(self.unet.dtype).contiguous(memory_format=torch.channels_last)
        if self.unet.dtype == torch.float32:
            return self._call_unet(sample, timestep, labels)
        size = HALF_PRECISION_BATCH.get(sample.device.type, HALF_PRECISION_BATCH_ELSEWHERE)
        chunks = sample.split(size)
        label_chunks = [None] * len(chunks) if labels is None else labels.split(size)
        return torch.cat([self._call_padded(*chunk, timestep, size) for chunk in zip(chunks, label_chunks)])

    def _call_padded(self, sample, labels, timestep, size) -> torch.Tensor:
        count = len(sample)
        if count < size:
            padding = sample[-1:].expand(size - count, -1, -1, -1)
            sample = torch.cat((sample, padding)).contiguous(memory_format=torch.channels_last)
            labels = None if labels is None else torch.cat((labels, labels[-1:].expand(size - count)))
        return self._call_unet(sample, timestep, labels)[:count]

    def _call_unet(self, sample, timestep, labels) -> torch.Tensor:
        if self.num_classes is None:
            return self.unet(sample, timestep).sample.float()
        return self.unet(sample, timestep, class_labels=labels).sample.float()

    def _predict_x0(self, prediction, scaled, timestep) -> torch.Tensor:
        """x_0 from the prediction and x_t, where sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps = x_t."""
        alphas_cumprod = self.scheduler.alphas_cumprod.to(scaled.device)
        kind = getattr(self.scheduler.config, "prediction_type", "epsilon")
        if kind == "sample":
            return prediction
        low = timestep.floor().long().clamp(max=len(alphas_cumprod) - 1)
        alpha_bar = torch.lerp(
            alphas_cumprod[low], alphas_cumprod[(low + 1).clamp(max=len(alphas_cumprod) - 1)], timestep.float() - low
        )
        signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        if kind == "epsilon":
            return (scaled - sigma * prediction) / signal
        if kind == "v_prediction":
            return signal * scaled - sigma * prediction
        raise ValueError(f"prediction_type {kind!r} is not supported.")
