"""The parts of a run, built from its settings and its data."""

import math

import diffusers
import torch
from diffusers.training_utils import EMAModel

from ddpm_hf.config import TrainConfig
from ddpm_hf.errors import UserError
from ddpm_hf.memory import refuse_beyond_memory
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.sampling import run_sampling, with_sampling
from ddpm_hf.scheduler import MyDDPMScheduler
from ddpm_hf.text_encoders import TextEncoder
from ddpm_hf.training.distill import student_sampling
from ddpm_hf.unet import MyUNet


def build_unet(config: TrainConfig, data, words_dim: int | None = None) -> torch.nn.Module:
    """The network of a run, MyUNet or diffusers' UNet2DModel, its channels and classes taken from the data.

    words_dim: width of the words that it reads; None without words.

    Raises:
        UserError: where the settings do not fit together or the data have no labels.
    """
    if config.class_conditional and data.num_classes is None:
        hint = next((f": {note}" for note in data.notes if "label_column" in note), "")
        raise UserError(f"class_conditional needs labels, and the data have none{hint}.")
    if config.model == "unet2d":
        return _built(diffusers.UNet2DModel, **_unet2d_settings(config, data))
    return _built(
        MyUNet,
        sample_size=config.sample_size,
        in_channels=data.num_channels,
        out_channels=data.num_channels,
        block_out_channels=config.block_out_channels,
        num_train_timesteps=config.num_train_timesteps,
        time_embed_dim=config.time_embed_dim,
        attention_levels=config.attention_levels,
        num_attention_heads=config.num_attention_heads,
        feed_forward_dim=config.feed_forward_dim,
        norm_num_groups=config.norm_num_groups,
        residual=config.residual,
        normalize_input=config.normalize_input,
        num_class_embeds=data.num_classes if config.class_conditional else None,
        dropout=config.dropout,
        patch_size=config.patch_size,
        cross_attention_dim=words_dim,
    )


def _unet2d_settings(config: TrainConfig, data) -> dict:
    """Our settings in the words of UNet2DModel, whose heads have one width at all levels."""
    widths = config.block_out_channels
    levels = range(len(widths)) if config.attention_levels is None else config.attention_levels
    if wrong := [level for level in levels if not 0 <= level < len(widths)]:
        raise UserError(f"attention_levels must lie in [0, {len(widths) - 1}], got {wrong[0]}.")
    if wrong := [width for width in widths if width % config.norm_num_groups]:
        raise UserError(f"block_out_channels={wrong[0]} is not divisible by norm_num_groups={config.norm_num_groups}.")
    head_dim, rest = divmod(min([widths[level] for level in levels] or [widths[-1]]), config.num_attention_heads)
    if rest or any(widths[level] % head_dim for level in [*levels, len(widths) - 1]):
        raise UserError(f"num_attention_heads={config.num_attention_heads} does not divide block_out_channels.")
    return {
        "sample_size": config.sample_size,
        "in_channels": data.num_channels,
        "out_channels": data.num_channels,
        "block_out_channels": widths,
        "layers_per_block": config.layers_per_block,
        "down_block_types": tuple("AttnDownBlock2D" if i in levels else "DownBlock2D" for i in range(len(widths))),
        "up_block_types": tuple("AttnUpBlock2D" if i in levels else "UpBlock2D" for i in range(len(widths)))[::-1],
        "attention_head_dim": head_dim,
        "norm_num_groups": config.norm_num_groups,
        "dropout": config.dropout,
    }


def build_scheduler(config: TrainConfig) -> MyDDPMScheduler:
    """The diffusion process of a run."""
    return _built(
        MyDDPMScheduler,
        num_train_timesteps=config.num_train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        variance_type=config.variance_type,
        prediction_type=config.prediction_type,
        rescale_betas_zero_snr=config.rescale_betas_zero_snr,
        timestep_spacing=_spacing(config),
    )


def _spacing(config: TrainConfig) -> str:
    """Sampling has to start at the last timestep where that has no signal (Lin et al. 2023, section 3.3)."""
    return "trailing" if config.rescale_betas_zero_snr else "leading"


def _built(component: type, **settings):
    """``component(**settings)``, its complaint a UserError; so is a network whose training there is no memory for."""
    try:
        if issubclass(component, torch.nn.Module):
            with torch.device("meta"):
                weights = sum(weight.numel() for weight in component(**settings).parameters())
            refuse_beyond_memory(4 * 4 * weights, f"training {weights:,} parameters")  # gradients, two moments
        return component(**settings)
    except ValueError as error:
        raise UserError(str(error)) from None


def build_averages(config: TrainConfig, unet: torch.nn.Module) -> dict[str, EMAModel]:
    """The averages of the weights by their largest decay; each has decay 1 - (1 + step / inv_gamma)^-power up to it."""
    return {
        repr(float(decay)): EMAModel(
            unet.parameters(),
            decay=decay,
            use_ema_warmup=True,
            inv_gamma=config.ema_inv_gamma,
            power=config.ema_power,
            foreach=True,
        )
        for decay in config.ema_max_decays
    }


def build_pipeline(
    config: TrainConfig, data, unet: torch.nn.Module, encoder: TextEncoder | None = None
) -> MyDDPMPipeline:
    """The pipeline that makes a run's pictures, with the sampling that its model will have of its own."""
    names = data.label_names if config.class_conditional else None
    pipeline = MyDDPMPipeline(
        unet,
        build_scheduler(config),
        id2label=None if names is None else {str(i): name for i, name in enumerate(names)},
        output_height=data.output_size[0],
        output_width=data.output_size[1],
        output_resize=data.output_resize or None,
        **({} if encoder is None else encoder._asdict()),
    )
    if config.distill_from:
        own = student_sampling(config.distill_steps, config.num_train_timesteps, pipeline.can_be_guided)
    else:
        own = run_sampling(config.num_train_timesteps, pipeline.can_be_guided, pipeline.words_dim is not None)
    return with_sampling(pipeline, own)


def exported_pipeline(
    config: TrainConfig, data, unet: torch.nn.Module, encoder: TextEncoder | None = None
) -> diffusers.DiffusionPipeline:
    """The pipeline that a run exports: ours, or, for a stock network, diffusers' own with a stock scheduler."""
    if config.model == "my_unet":
        return build_pipeline(config, data, unet, encoder)
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule="linear",
        # DDPMPipeline has no solver for fewer than all steps: these settings make them good, too (README, samplers)
        variance_type="fixed_small",
        clip_sample=True,
        timestep_spacing="trailing",
        prediction_type=config.prediction_type,
        rescale_betas_zero_snr=config.rescale_betas_zero_snr,
    )
    return diffusers.DDPMPipeline(unet, scheduler)


def rate_factor(config: TrainConfig, step: int, total_steps: int) -> float:
    """Share of the peak learning rates: linear warm-up over ``lr_warmup_steps``, then decay to 0 at ``total_steps``."""
    warmup = min(config.lr_warmup_steps, total_steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }[config.lr_scheduler]
