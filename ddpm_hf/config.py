"""TrainConfig: every setting of a training run, checked where it is built and saved beside the run."""

import argparse
import difflib
import math
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ddpm_hf.errors import Parser, UserError
from ddpm_hf.files import write_whole

TRACKERS = ("trackio", "tensorboard", "wandb")
ALTERNATIVES = (("num_epochs", "max_train_steps"), ("dataset", "datasets"))  # one says what the other would


class DataSource(BaseModel):
    """One of several data sets that a run mixes; an entry of ``datasets``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: str = Field(min_length=1, description="as the setting of that name; so are the next six")
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    label_names: tuple[str, ...] | None = None
    name: str | None = Field(None, description="what the set is called where class names need it; from its id if null")
    weight: float | None = Field(
        None, gt=0, description="share of the images drawn from it, for all sets or none; by their sizes if null"
    )

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, value):
        return {"dataset": value} if isinstance(value, str) else value


class TrainConfig(BaseModel):
    """Settings of a run. Names are diffusers' wherever it has one; ``Field`` descriptions are the reference."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    # ---- where
    output_dir: str = Field(
        "runs/ddpm", min_length=1, description="folder of the run; the same command again resumes it"
    )
    seed: int = Field(0, ge=0, description="seed of the weights, the order of the images and the noise")
    resume: Literal["auto", "force"] = Field(
        "auto", exclude=True, description="auto: only with the settings it was started with; force: with changed ones"
    )
    dry_run: bool = Field(False, exclude=True, description="print the plan, measure a few steps, write nothing")

    # ---- data
    dataset: str | None = Field(
        None, min_length=1, description="Hub id, image folder, or parquet, arrow or idx.gz file or folder"
    )
    datasets: tuple[DataSource, ...] | None = Field(
        None,
        min_length=1,
        description="several data sets instead, mixed: ids, or entries with dataset, config, split, revision, "
        "image_column, label_column, label_names, name, weight",
    )
    dataset_config: str | None = Field(None, description="configuration of a Hub data set that has several")
    dataset_split: str = Field("train", description="split to train on")
    dataset_revision: str | None = Field(None, description="branch, tag or commit of a Hub data set")
    image_column: str | None = Field(None, description="column with the images; found by its type when not named")
    label_column: str | None = Field(None, description="column with the labels; found by its type when not named")
    label_names: tuple[str, ...] | None = Field(None, description="class names, where the data set has none")
    max_images: int | None = Field(None, ge=1, description="train on the first so many images (of each set) only")
    validation_split: str | None = Field(
        "auto",
        description="split to validate on; auto: the set's own test or validation split, or a twentieth held out of "
        "the training images; null: no validation",
    )
    validation_images: int = Field(1000, ge=1, description="images to validate on, at most")
    sample_size: int = Field(32, ge=2, description="height and width the network works at, in pixels")
    image_mode: Literal["auto", "L", "RGB"] = Field("auto", description="auto: L (gray) where all images are gray")
    resize: Literal["auto", "pad", "crop", "area"] = Field(
        "auto",
        description="pad: zeros around, cropped back on output; crop: shorter side scaled to sample_size, centre "
        "kept; area: the whole image averaged to a square, scaled back on output; auto: pad where all images have "
        "one size that fits, else crop",
    )
    horizontal_flip: bool = Field(False, description="mirror every second image, at random")
    on_bad_image: Literal["error", "skip"] = Field("error", description="what an unreadable image does; skips count")
    max_memory_gb: float = Field(4.0, gt=0, description="images larger than this together are kept in an Arrow file")
    streaming: bool = Field(False, description="read the data set as it trains, for one larger than the disk")
    shuffle_buffer_size: int = Field(4096, ge=1, description="images shuffled together when streaming, a process")

    # ---- network
    model: Literal["my_unet", "unet2d"] = Field(
        "my_unet", description="unet2d: diffusers' UNet2DModel, exported with a stock scheduler and pipeline"
    )
    layers_per_block: int = Field(2, ge=1, description="blocks of each level; unet2d only")
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
    loss_type: Literal["simple", "weighted", "min_snr"] = Field(
        "simple",
        description="mean squared error; weighted: times beta^2 / (2 sigma^2 alpha (1 - alpha_bar)), epsilon only; "
        "min_snr: times the weight of Hang et al. 2023 for the prediction type",
    )
    snr_gamma: float = Field(5.0, gt=0, description="gamma of min_snr")

    # ---- optimisation
    train_batch_size: int = Field(64, ge=1, description="images per optimizer step, over all processes together")
    gradient_accumulation_steps: int = Field(1, ge=1, description="parts a process splits its share of a batch into")
    num_epochs: float = Field(20, gt=0, le=1e6, description="passes over the images")
    max_train_steps: int | None = Field(None, ge=1, description="optimizer steps, instead of num_epochs")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    lr_scheduler: Literal["cosine", "linear", "constant"] = Field("cosine", description="decay after the warm-up")
    lr_warmup_steps: int = Field(500, ge=0, description="steps of linear warm-up")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's beta1")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's beta2")
    adam_weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm to clip to")
    ema_max_decay: float | tuple[float, ...] = Field(
        0.9999,
        description="largest decay of the weight average, 0 means none; of several, the first is exported at the end",
    )
    ema_inv_gamma: float = Field(1.0, gt=0, description="inverse gamma of the average's warm-up")
    ema_power: float = Field(0.75, gt=0, description="power of the average's warm-up")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = Field("auto", description="auto: bf16 where faster")
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory")
    torch_compile: Literal["no", "default", "reduce-overhead", "max-autotune"] = Field(
        "no", description="mode of torch.compile"
    )
    max_bad_steps: int = Field(
        10, ge=0, description="steps in a row that may be skipped for a loss that exploded or is not finite"
    )

    # ---- what a run writes
    logging_steps: int = Field(50, ge=1, description="steps between lines of metrics.jsonl")
    checkpointing_steps: int = Field(500, ge=1, description="steps between checkpoints")
    checkpoints_total_limit: int = Field(2, ge=1, description="newest checkpoints that are kept, besides the best")
    validation_steps: int = Field(500, ge=1, description="steps between validation losses")
    sample_steps: int = Field(1000, ge=1, description="steps between sample grids")
    num_samples: int = Field(20, ge=1, le=1000, description="images in a sample grid")
    score_features: str | None = Field(
        None,
        description="features for a few-step Frechet distance in training, as for evaluate: fashion-mnist, inception, "
        "a folder of train-features or of an autoencoder, a TorchScript or .pt2 file; null: none",
    )
    score_steps: int = Field(2000, ge=1, description="steps between these distances")
    score_images: int = Field(500, ge=2, description="images that such a distance generates, and real ones")
    report_to: str | tuple[str, ...] = Field(
        "auto", description="trackers: trackio, tensorboard, wandb, or none; auto: trackio where it is installed"
    )

    # ---- the Hub
    push_to_hub: bool = Field(False, description="push the run to the Hub, in the background")
    hub_model_id: str | None = Field(None, min_length=1, description="name/model, the repository to push to")
    hub_private_repo: bool = Field(False, description="make it private, and refuse one that is public")
    hub_strategy: Literal["end", "every_save", "best"] = Field(
        "end",
        description="end: push when the run is done; every_save: at every checkpoint, too; best: the checkpoint with "
        "the lowest validation loss, whenever there is a new one",
    )
    hub_tag_steps: bool = Field(False, description="tag what is pushed as step-N")
    hub_license: str | None = Field(None, description="of the weights, for the model card, such as apache-2.0")
    dataset_license: str | None = Field(None, description="of the images, for the card, where the Hub does not know it")

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
        if self.loss_type == "min_snr" and self.rescale_betas_zero_snr:
            raise ValueError(
                "loss_type min_snr gives the step without signal, where rescale_betas_zero_snr starts sampling, the "
                "weight 0; use loss_type simple"
            )
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start={self.beta_start} must not exceed beta_end={self.beta_end}")
        return self

    @model_validator(mode="after")
    def _data_fit_together(self):
        if self.dataset is None and self.datasets is None:
            raise ValueError("setting 'dataset' is missing: a Hub id, a folder or a file of images")
        if self.dataset is not None and self.datasets is not None:
            raise ValueError("give dataset or datasets, not both")
        if self.datasets and self.streaming:
            raise ValueError("streaming reads one dataset, not several datasets")
        if self.datasets:
            given = {"dataset_config", "dataset_revision", "image_column", "label_column", "label_names"}
            if wrong := sorted(name for name in given if getattr(self, name) is not None):
                raise ValueError(f"{wrong[0]} belongs into the entries of datasets")
        if self.streaming and self.score_features and self.validation_split is None:
            raise ValueError("score_features needs images to compare with: give a streamed run a validation_split")
        if self.streaming and self.max_train_steps is None:
            raise ValueError("streaming needs max_train_steps: the number of images is not known")
        return self

    @model_validator(mode="after")
    def _can_be_pushed(self):
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("push_to_hub needs hub_model_id: name/model")
        if self.push_to_hub and self.hub_strategy == "best" and self.validation_split is None:
            raise ValueError("hub_strategy best goes by the validation loss: it needs a validation_split")
        return self

    @model_validator(mode="after")
    def _model_can(self):
        if self.model == "unet2d" and self.class_conditional:
            raise ValueError(
                "model unet2d is exported for diffusers' DDPMPipeline, which takes no labels; use class_conditional: "
                "false, or model my_unet"
            )
        if self.model == "my_unet" and "layers_per_block" in self.model_fields_set and self.layers_per_block != 2:
            raise ValueError("layers_per_block is a setting of model unet2d; my_unet has two blocks a level")
        return self

    @field_validator("ema_max_decay")
    @classmethod
    def _decays(cls, value):
        decays = value if isinstance(value, tuple) else (value,)
        if not decays or any(not 0 <= decay <= 1 for decay in decays):
            raise ValueError("decays lie in [0, 1]")
        if len(set(decays)) < len(decays):
            raise ValueError("the decays must differ")
        return value

    @field_validator("mixed_precision", "torch_compile", mode="before")
    @classmethod
    def _no(cls, value):
        return "no" if value is False else value  # what YAML makes of the word

    @field_validator("report_to", mode="before")
    @classmethod
    def _no_tracker(cls, value):
        return "none" if value is None else value  # what the command line makes of the word

    @field_validator("report_to")
    @classmethod
    def _trackers(cls, value):
        names = value if isinstance(value, tuple) else (value,)
        alone = {"auto", "none"}
        if unknown := [name for name in names if name not in {*TRACKERS, *alone}]:
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join([*TRACKERS, 'none', 'auto'])}")
        if len(names) > 1 and alone & set(names):
            raise ValueError("auto and none stand alone")
        return value

    @property
    def ema_max_decays(self) -> tuple[float, ...]:
        """Every average's largest decay, that of the exported one first."""
        return self.ema_max_decay if isinstance(self.ema_max_decay, tuple) else (self.ema_max_decay,)

    @property
    def sources(self) -> tuple[DataSource, ...]:
        """The data sets of the run, one or several."""
        if self.datasets is not None:
            return self.datasets
        return (
            DataSource(
                dataset=self.dataset,
                config=self.dataset_config,
                split=self.dataset_split,
                revision=self.dataset_revision,
                image_column=self.image_column,
                label_column=self.label_column,
                label_names=self.label_names,
            ),
        )

    def total_steps(self, num_images: int) -> int:
        """Optimizer steps of the whole run over ``num_images`` images."""
        return self.max_train_steps or max(1, math.ceil(self.num_epochs * num_images / self.train_batch_size))

    def save(self, path: Path):
        """Write all settings, defaults included, as YAML."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        write_whole(Path(path), lambda partial: partial.write_text(text))


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
        flag = {"nargs": "?", "const": "true"} if field.annotation is bool else {}
        parser.add_argument(f"--{name}", help=text, default=argparse.SUPPRESS, metavar="VALUE", **flag)
    parsed, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].split("=")[0].lstrip("-")
        raise UserError(f"unknown setting {unknown[0]!r}; {_nearest_setting(name)}")
    values = vars(parsed)
    config_file = values.pop("config")
    from_file = _read_yaml(config_file) if config_file else {}
    given = {name: _parse(text) for name, text in values.items()}
    return build_config({**_without_alternatives(from_file, given), **given})


def settings_from(argv: list[str]) -> str:
    """In words, where the settings of a command line come from: a file, by its name, and those given beside it."""
    file, given = None, []
    for word, value in zip(argv, [*argv[1:], ""]):
        name, _, joined = word.removeprefix("--").partition("=")
        if word.startswith("--") and name == "config":
            file = joined or value
        elif word.startswith("--") and name in TrainConfig.model_fields:
            given.append(name)
    sources = [_told(Path(file))] if file else []
    sources += [f"{', '.join(dict.fromkeys(given))} on the command line"] * bool(given)
    return "; ".join([*sources, "else the defaults"])


def _told(file: Path) -> str:
    """A preset by its path in the repository; of another file, which is nobody's business, the name."""
    presets = Path(__file__).resolve().parent.parent / "configs"
    return f"configs/{file.name}" if file.resolve().parent == presets else file.name


def _without_alternatives(from_file: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The file's settings but those that the command line says in the other way: epochs for steps, or steps."""
    replaced = {
        other
        for pair in ALTERNATIVES
        for name, other in (pair, pair[::-1])
        if given.get(name) is not None and other not in given
    }
    return {name: value for name, value in from_file.items() if name not in replaced}


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
    if len(first["loc"]) > 1 and name == "datasets":
        entry, *rest = first["loc"][1:]
        return f"setting 'datasets', entry {entry}: {'.'.join(map(str, rest))}: {first['msg'].lower()}."
    if first["type"] == "extra_forbidden":
        return f"unknown setting {name!r}; {_nearest_setting(name)}"
    if first["type"] == "missing":
        return f"setting {name!r} is missing: {TrainConfig.model_fields[name].description}."
    message = first["msg"].removeprefix("Value error, ")
    if not name:
        return f"{message}."
    return f"setting {name!r}: {message[0].lower()}{message[1:]}, got {first['input']!r}."
