"""One training step: noise, loss, gradients, optimizer and averages; or nothing, where the loss explodes."""

import contextlib
import math
import time

import torch
from accelerate import Accelerator

from ddpm_hf.config import TrainConfig
from ddpm_hf.data import mixed_seed
from ddpm_hf.scheduler import MyDDPMScheduler
from ddpm_hf.training.batches import ImageBatches, StreamBatches
from ddpm_hf.training.build import rate_factor
from ddpm_hf.training.distill import Teacher
from ddpm_hf.training.loss import Draw, diffusion_loss
from ddpm_hf.training.state import TrainState
from ddpm_hf.training.words import CaptionWords

EXPLODED = 100  # times the usual squared error; a batch of one image at timestep 0 reaches 30


class TrainStep:
    """``step(total_steps)`` takes one optimizer step and one of the averages. Collective.

    Args:
        model: the network as Accelerate has prepared it.
        batches: this rank's share of the images.
        null_label: the class of images without one; None of a network without classes.
        words: of the images' captions; None of a network without words.
        teacher: whose trajectories are learned, instead of the images.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        model: torch.nn.Module,
        state: TrainState,
        scheduler: MyDDPMScheduler,
        batches: ImageBatches | StreamBatches,
        null_label: int | None,
        words: CaptionWords | None = None,
        teacher: Teacher | None = None,
    ):
        self.config, self.accelerator, self.model, self.state = config, accelerator, model, state
        self.scheduler, self.batches, self.null_label = scheduler, batches, null_label
        self.words, self.teacher = words, teacher

    def __call__(self, total_steps: int) -> float:
        """Take the step, or count it as skipped where the loss explodes; returns the loss."""
        config, state, progress = self.config, self.state, self.state.progress
        start = time.perf_counter()
        torch.manual_seed(mixed_seed(config.seed, self.accelerator.process_index, state.step, 1))  # dropout
        factor = rate_factor(config, state.step, total_steps)
        for group in state.optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]

        loss, error, norm = self._gradients()
        if self._is_bad(loss, error, norm):
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.update()  # forgets the gradients it has unscaled
            progress.count_skipped(config.train_batch_size, bad=True)
        else:
            state.optimizer.step()
            if not math.isfinite(norm):  # fp16's scaler has made nothing of the step
                progress.count_skipped(config.train_batch_size, bad=False)
            else:
                state.average_step()
                progress.count_good(config.train_batch_size, loss, error, norm)
        state.optimizer.zero_grad()
        progress.seconds += time.perf_counter() - start
        return loss

    def _gradients(self) -> tuple[float, float, float]:
        """Leave the clipped gradients of this step; returns the loss, the unweighted error and the gradients' norm."""
        accelerator, parts = self.accelerator, self.config.gradient_accumulation_steps
        seen = self.state.progress.images_seen
        images, labels = self.batches.batch(seen)
        draw = self._draw(images.shape[1:])
        words = self.words and self.words.take(self.batches.share_of(seen), draw.captions, draw.dropped)
        self.model.train()
        sums = torch.zeros(2, device=accelerator.device)
        size = len(images) // parts
        for i in range(parts):
            part = slice(i * size, (i + 1) * size)
            with accelerator.no_sync(self.model) if i < parts - 1 else contextlib.nullcontext():
                labels_of_part, words_of_part = (None if v is None else v[part] for v in (labels, words))
                loss, error = self.loss(images[part], labels_of_part, draw[part], words_of_part)
                accelerator.backward(loss / parts)
            sums += torch.stack((loss.detach(), error)) / parts
        norm = accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        loss, error = accelerator.reduce(sums, "mean").tolist()
        return loss, error, norm.item()

    def _draw(self, shape: tuple[int, int, int]) -> Draw:
        """This rank's share of the step's random numbers, which are drawn for the whole batch; ``shape`` (C, S, S)."""
        config, accelerator = self.config, self.accelerator
        generator = torch.Generator(accelerator.device)
        generator.manual_seed(mixed_seed(config.seed, self.state.step))
        draw = Draw.of(
            (config.train_batch_size, *shape),
            len(self.scheduler),
            generator,
            timestep_sampling=config.timestep_sampling,
            class_dropout_prob=config.class_dropout_prob,
            flip_prob=0.5 if config.horizontal_flip else 0.0,
        )
        share = config.train_batch_size // accelerator.num_processes
        return draw[accelerator.process_index * share : (accelerator.process_index + 1) * share]

    def loss(
        self, images: torch.Tensor, labels: torch.Tensor | None, draw: Draw, words: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss and the unweighted error of uint8 images (B, C, S, S), two scalars."""
        device, config = self.accelerator.device, self.config
        labels = labels.to(device, non_blocking=True) if config.class_conditional else None
        with self.accelerator.autocast():
            if self.teacher is not None:
                labels = labels if labels is None else torch.where(draw.dropped, self.null_label, labels)
                return self.teacher.loss(self.model, draw.noise, labels)
            return diffusion_loss(
                self.model,
                self.scheduler,
                images.to(device, non_blocking=True).float() / 127.5 - 1,
                labels,
                draw,
                null_label=self.null_label,
                words=None if words is None else words.to(device, non_blocking=True),
                loss_type=config.loss_type,
                snr_gamma=config.snr_gamma,
            )

    def _is_bad(self, loss: float, error: float, norm: float) -> bool:
        """Whether a step must not be taken. All ranks see the same numbers."""
        if not math.isfinite(loss):
            return True
        if not math.isfinite(norm):
            return self.accelerator.scaler is None  # which looks for these itself and lowers its scale
        usual = self.state.progress.usual_error
        return usual is not None and error > EXPLODED * usual
