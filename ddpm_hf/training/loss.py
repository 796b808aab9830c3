"""The training loss: random numbers of a batch, the network's squared error, and its weights."""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from ddpm_hf.scheduler import MyDDPMScheduler


@dataclass(frozen=True)
class Draw:
    """The random numbers of B images: drawn for a whole batch at once, so that no process count changes them.

    noise: (B, C, S, S); timesteps: int64 (B,) in [0, T - 1]; dropped: bool (B,), the label gives way to the null
    class, or the caption to no words; flipped: bool (B,), the image is mirrored; captions: (B,) in [0, 1), which of
    its captions an image has.
    """

    noise: torch.Tensor
    timesteps: torch.Tensor
    dropped: torch.Tensor
    flipped: torch.Tensor
    captions: torch.Tensor

    @classmethod
    def of(
        cls,
        shape: tuple[int, int, int, int],
        num_train_timesteps: int,
        generator: torch.Generator,
        *,
        timestep_sampling: str = "uniform",
        class_dropout_prob: float = 0.0,
        flip_prob: float = 0.0,
    ) -> "Draw":
        """Draw for images of ``shape`` (B, C, S, S), on the generator's device.

        timestep_sampling: "uniform", independent of each other, or "stratified", one from each of B equal ranges in
        random order: as uniform for every image, and losses of batches that vary less (Kingma et al. 2021, appendix
        I.1).
        """
        options = {"generator": generator, "device": generator.device}
        batch = shape[0]
        noise = torch.randn(shape, **options)
        if timestep_sampling == "stratified":
            places = (torch.randperm(batch, **options) + torch.rand(batch, **options)) / batch  # in [0, 1]
            timesteps = (places * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)
        else:
            timesteps = torch.randint(0, num_train_timesteps, (batch,), **options)
        return cls(
            noise=noise,
            timesteps=timesteps,
            dropped=torch.rand(batch, **options) < class_dropout_prob,
            flipped=torch.rand(batch, **options) < flip_prob,
            captions=torch.rand(batch, **options),
        )

    def __getitem__(self, part: slice) -> "Draw":
        return Draw(**{field.name: getattr(self, field.name)[part] for field in fields(self)})


def squared_error(
    unet: torch.nn.Module,
    scheduler: MyDDPMScheduler,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    words: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean squared error of the network's prediction for each image, float32 (B,), unweighted.

    images, noise: (B, C, S, S), images in [-1, 1]; labels: (B,) or None; timesteps: (B,); words: (B, L, D), where
    tokens that are all zeros are padding, or None.
    """
    told = (labels,) if words is None else (labels, words, (words != 0).any(-1))
    noisy = scheduler.add_noise(images, noise, timesteps).contiguous(memory_format=torch.channels_last)
    prediction = unet(noisy, timesteps, *told, return_dict=False)[0].float()
    target = scheduler.training_target(images, noise, timesteps)
    return F.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))


def min_snr_weight(scheduler: MyDDPMScheduler, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
    """Min-SNR-gamma weight of the squared error (Hang et al. 2023, section 3.4), float32 (B,).

    An error of x_0 weighs min(SNR, gamma). The same error counts SNR times as much when written as one of epsilon,
    and SNR + 1 times as one of v, so there the weight is divided by that.
    """
    snr = scheduler.snr(timesteps)
    weight = snr.clamp(max=gamma)
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return weight / snr
    return weight / (snr + 1) if prediction_type == "v_prediction" else weight


def diffusion_loss(
    unet: torch.nn.Module,
    scheduler: MyDDPMScheduler,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    draw: Draw,
    *,
    null_label: int | None = None,
    words: torch.Tensor | None = None,
    loss_type: str = "simple",
    snr_gamma: float = 5.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, a scalar to minimise, and the unweighted mean squared error, a detached scalar.

    "simple" is equation 14 of Ho et al. 2020, "weighted" equation 12, as in the original, "min_snr" ``min_snr_weight``.

    images: (B, C, S, S) in [-1, 1]; labels: (B,) or None; draw: of the same B images; null_label: of a
    class-conditional network; words: as of ``squared_error``.
    """
    labels = None if null_label is None else torch.where(draw.dropped, null_label, labels)
    images = torch.where(draw.flipped[:, None, None, None], images.flip(-1), images)
    errors = squared_error(unet, scheduler, images, labels, draw.noise, draw.timesteps, words)
    weighted = errors
    if loss_type == "weighted":
        weighted = errors * scheduler.loss_weight(draw.timesteps)
    elif loss_type == "min_snr":
        weighted = errors * min_snr_weight(scheduler, draw.timesteps, snr_gamma)
    return weighted.mean(), errors.detach().mean()
