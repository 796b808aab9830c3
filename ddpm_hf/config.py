"""TrainConfig: every setting of a training run, checked where it is built and saved beside the run."""

import argparse
import difflib
import math
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ddpm_hf.errors import Parser, UserError


class TrainConfig(BaseModel):
    """Settings of a run. Names are diffusers' wherever it has one; ``Field`` descriptions are the reference."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    # ---- where
    output_dir: str = Field(
        "runs/ddpm", min_length=1, description="folder of the run; the same command again resumes it"
    )
    seed: int = Field(0, ge=0, description="seed of the weights, the order of the images and the noise")

    # ---- data
    dataset: str = Field(min_length=1, description="Hub id, image folder, or parquet, arrow or idx.gz file or folder")
    dataset_config: str | None = Field(None, description="configuration of a Hub data set that has several")
    dataset_split: str = Field("train", description="split to train on")
    dataset_revision: str | None = Field(None, description="branch, tag or commit of a Hub data set")
    image_column: str | None = Field(None, description="column with the images; found by its type when not named")
    label_column: str | None = Field(None, description="column with the labels; found by its type when not named")
    label_names: tuple[str, ...] | None = Field(None, description="class names, where the data set has none")
    max_images: int | None = Field(None, ge=1, description="train on the first so many images only")
    sample_size: int = Field(32, ge=2, description="height and width the network works at, in pixels")
    resize: Literal["auto", "pad", "crop"] = Field(
        "auto",
        description="pad: zeros around, cropped back on output; crop: shorter side scaled to sample_size, centre "
        "kept; auto: pad where all images have one size that fits, else crop",
    )
    max_memory_gb: float = Field(4.0, gt=0, description="images larger than this together are kept in a file")

    # ---- network (MyUNet)
    block_out_channels: tuple[int, ...] = Field((64, 128, 256, 512), description="width of each level")
    time_embed_dim: int = Field(256, ge=2, description="width of the time embedding")
    attention_levels: tuple[int, ...] | None = Field(None, description="levels with attention; null means all")
    num_attention_heads: int = Field(4, ge=1, description="heads of every attention")
    feed_forward_dim: int = Field(1024, ge=1, description="hidden width of every attention's feed-forward part")
    norm_num_groups: int = Field(8, ge=1, description="groups of every GroupNorm")
    residual: bool = Field(False, description="residual blocks; the seed has plain ones")
    normalize_input: bool = Field(True, description="LayerNorm on the raw input, as the seed has it")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout inside blocks and attention")
    class_conditional: bool = Field(False, description="train with the labels, for guidance and choice of class")
    class_dropout_prob: float = Field(0.1, ge=0, le=1, description="share of labels replaced by the null class")

    # ---- diffusion (MyDDPMScheduler)
    num_train_timesteps: int = Field(1000, ge=1, description="diffusion steps T")
    beta_start: float = Field(1e-4, gt=0, lt=1, description="variance of the first step")
    beta_end: float = Field(0.02, gt=0, lt=1, description="variance of the last step")
    variance_type: Literal["fixed_large", "fixed_small"] = Field("fixed_large", description="sigma^2 when sampling")
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = Field("epsilon", description="network's target")
    rescale_betas_zero_snr: bool = Field(False, description="zero terminal SNR; not with epsilon")
    loss_type: Literal["simple", "weighted"] = Field(
        "simple", description="mean squared error, or times beta^2 / (2 sigma^2 alpha (1 - alpha_bar)); epsilon only"
    )

    # ---- optimisation
    train_batch_size: int = Field(64, ge=1, description="images per optimizer step, over all processes together")
    gradient_accumulation_steps: int = Field(1, ge=1, description="parts a process splits its share of a batch into")
    num_epochs: float = Field(20, gt=0, description="passes over the images")
    max_train_steps: int | None = Field(None, ge=1, description="optimizer steps, instead of num_epochs")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    lr_scheduler: Literal["cosine", "linear", "constant"] = Field("cosine", description="decay after the warm-up")
    lr_warmup_steps: int = Field(500, ge=0, description="steps of linear warm-up")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's beta1")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's beta2")
    adam_weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm to clip to")
    ema_max_decay: float = Field(0.9999, ge=0, le=1, description="largest decay of the weight average; 0 means none")
    ema_inv_gamma: float = Field(1.0, gt=0, description="inverse gamma of the average's warm-up")
    ema_power: float = Field(0.75, gt=0, description="power of the average's warm-up")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = Field("auto", description="auto: bf16 where faster")
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory")

    # ---- what a run writes
    logging_steps: int = Field(50, ge=1, description="steps between lines of metrics.jsonl")
    checkpointing_steps: int = Field(500, ge=1, description="steps between checkpoints")
    checkpoints_total_limit: int = Field(2, ge=1, description="newest checkpoints that are kept")
    sample_steps: int = Field(1000, ge=1, description="steps between sample grids")
    num_samples: int = Field(20, ge=1, le=1000, description="images in a sample grid")

    @model_validator(mode="after")
    def _fit_together(self):
        factor = 2 ** (len(self.block_out_channels) - 1)
        if self.sample_size % factor:
            nearest_size = max(1, round(self.sample_size / factor)) * factor
            raise ValueError(
                f"sample_size={self.sample_size} is not divisible by {factor}, the downsampling factor of "
                f"{len(self.block_out_channels)} levels; the nearest size that works is {nearest_size}"
            )
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError("rescale_betas_zero_snr needs prediction_type v_prediction or sample")
        if self.loss_type == "weighted" and self.prediction_type != "epsilon":
            raise ValueError("loss_type weighted is the weight of the epsilon loss; use prediction_type epsilon")
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start={self.beta_start} must not exceed beta_end={self.beta_end}")
        return self

    def total_steps(self, num_images: int) -> int:
        """Optimizer steps of the whole run over ``num_images`` images."""
        return self.max_train_steps or max(1, math.ceil(self.num_epochs * num_images / self.train_batch_size))

    def save(self, path: Path):
        """Write all settings, defaults included, as YAML."""
        Path(path).write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def build_config(values: dict[str, Any]) -> TrainConfig:
    """Check ``values`` and build the config.

    Raises:
        UserError: for the first wrong setting, naming it and what would be right.
    """
    try:
        return TrainConfig(**values)
    except ValidationError as error:
        raise UserError(_first_line(error)) from None


def load_config(argv: list[str]) -> TrainConfig:
    """Build the config from ``--config FILE.yaml`` and ``--setting value`` pairs, which win over the file.

    Raises:
        UserError: for a missing or malformed file, an unknown setting or a wrong value.
    """
    parser = Parser(
        prog="train.py", allow_abbrev=False, description="Train a DDPM. The same command again resumes the run."
    )
    parser.add_argument("--config", help="YAML file with settings", metavar="FILE")
    for name, field in TrainConfig.model_fields.items():
        default = "required" if field.is_required() else f"default {field.default}"
        text = f"{field.description} ({default})".replace("%", "%%")
        parser.add_argument(f"--{name}", help=text, default=argparse.SUPPRESS, metavar="VALUE")
    parsed, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].split("=")[0].lstrip("-")
        raise UserError(f"unknown setting {unknown[0]!r}; {_nearest_setting(name)}")
    values = vars(parsed)
    config_file = values.pop("config")
    from_file = _read_yaml(config_file) if config_file else {}
    return build_config({**from_file, **{name: _parse(text) for name, text in values.items()}})


def _parse(text: str) -> Any:
    """A command-line value as YAML would read it: [1, 2], null, true; anything else stays text."""
    if text.lower() in ("null", "none"):
        return None
    if not text.startswith("["):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{text!r} is not a list such as [32, 64].") from None


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"config file {path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"config file {path}{where} is not YAML: {getattr(error, 'problem', error)}.") from None
    if not isinstance(values, dict):
        raise UserError(f"config file {path} must hold 'setting: value' lines.")
    return values


def _nearest_setting(name: str) -> str:
    match = difflib.get_close_matches(name, TrainConfig.model_fields, n=1, cutoff=0.6)
    return f"did you mean {match[0]!r}?" if match else "run with --help for all settings."


def _first_line(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][:1])
    if first["type"] == "extra_forbidden":
        return f"unknown setting {name!r}; {_nearest_setting(name)}"
    if first["type"] == "missing":
        return f"setting {name!r} is missing: {TrainConfig.model_fields[name].description}."
    message = first["msg"].removeprefix("Value error, ")
    if not name:
        return f"{message}."
    return f"setting {name!r}: {message[0].lower()}{message[1:]}, got {first['input']!r}."
