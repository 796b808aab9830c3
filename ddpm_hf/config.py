"""TrainConfig: every setting of a training run, checked where it is built and saved beside the run."""

import argparse
import copy
import difflib
import functools
import math
import operator
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ddpm_hf.errors import Parser, UserError, nearest
from ddpm_hf.files import write_whole
from ddpm_hf.reading import parse_yaml, read_yaml
from ddpm_hf.source import Source

TRACKERS = ("trackio", "tensorboard", "wandb")
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # what pydantic says of a setting's name
SOURCE_SETTINGS = tuple(Source.__dataclass_fields__)
DATA_SETTINGS = (
    *("sample_size", "image_mode", "resize", "random_crop", "pixel_range", "background"),
    *("on_bad_image", "max_images", "max_memory_gb"),
    *("validation_split", "validation_images", "seed"),
)
ALTERNATIVES = (("num_epochs", "max_train_steps"), ("dataset", "datasets"))  # one says what the other would

# names of diffusers' training scripts: those that mean the same, and what to use for those that do not
SAME_AS = {
    "resolution": "sample_size",
    "train_data_dir": "dataset",
    "dataset_name": "dataset",
    "dataset_config_name": "dataset_config",
    "random_flip": "horizontal_flip",
    "ddpm_num_steps": "num_train_timesteps",
    "num_train_epochs": "num_epochs",
    "max_train_samples": "max_images",
    "logger": "report_to",
    "eval_batch_size": "num_samples",
    "pretrained_model_name_or_path": "init_from",
}
INSTEAD = {
    "center_crop": "use resize: crop, which scales the shorter side and keeps the centre",
    "use_ema": "the weights are averaged unless ema_max_decay is 0",
    "save_images_epochs": "use sample_steps, which counts optimizer steps",
    "save_model_epochs": "use checkpointing_steps, which counts optimizer steps",
    "validation_epochs": "use validation_steps, which counts optimizer steps",
    "ddpm_num_inference_steps": "choose the steps when sampling: python -m ddpm_hf sample MODEL --steps N",
    "ddpm_beta_schedule": "betas are linear; beta_start and beta_end are their ends",
    "beta_schedule": "betas are linear; beta_start and beta_end are their ends",
    "adam_epsilon": "it is not a setting; adam_beta1, adam_beta2 and adam_weight_decay are",
    "resume_from_checkpoint": "the same command with the same output_dir resumes",
    "overwrite_output_dir": "choose another output_dir, or remove the folder",
    "cache_dir": "set the environment variable HF_HOME",
    "hub_token": "log in with hf auth login, or set HF_TOKEN",
    "logging_dir": "trackers write into output_dir",
    "dataloader_num_workers": "images are decoded before training; leave it out",
    "preprocessing_num_workers": "images are decoded by as many threads as there are processors; leave it out",
    "allow_tf32": "use mixed_precision: bf16",
    "enable_xformers_memory_efficient_attention": "PyTorch's own attention is used; leave it out",
    "model_config_name_or_path": "use block_out_channels and the other settings of the network",
    "local_rank": "start several processes with accelerate launch",
    "noise_offset": "it is not supported",
    "scale_lr": "set learning_rate itself",
}

# Upper bounds: above all that is of use, below what exhausts a machine at once. Memory is estimated besides.
MANY, HUGE = 10**9, 1e12
MOST_TIMESTEPS, MOST_LEVELS, LONGEST_TEXT = 100_000, 12, 4096
Timesteps = Annotated[int, Field(ge=1, le=MOST_TIMESTEPS)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Width = Annotated[int, Field(ge=1, le=16_384)]
Channels = Annotated[int, Field(ge=1, le=256)]


class TrainConfig(BaseModel):
    """Settings of a run. Names are diffusers' wherever it has one; ``Field`` descriptions are the reference."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), str_max_length=LONGEST_TEXT
    )

    # ---- where
    output_dir: str = Field(
        "runs/ddpm", min_length=1, description="folder of the run; the same command again resumes it"
    )
    seed: int = Field(0, ge=0, le=2**63 - 1, description="seed of the weights, the order of the images and the noise")
    resume: Literal["auto", "force"] = Field(
        "auto", exclude=True, description="auto: only with the settings it was started with; force: with changed ones"
    )
    dry_run: bool = Field(False, exclude=True, description="print the plan, measure a few steps, write nothing")

    # ---- data
    dataset: str | None = Field(
        None, min_length=1, description="Hub id, folder of pictures, or archive, array or table; see the page on data"
    )
    datasets: tuple[Source, ...] | None = Field(
        None,
        min_length=1,
        description="several data sets instead, mixed: ids, or entries with dataset, config, split, revision, "
        "image_column, label_column, label_names, caption_column, name, weight",
    )
    dataset_config: str | None = Field(None, description="configuration of a Hub data set that has several")
    dataset_split: str = Field("train", description="split to train on")
    dataset_revision: str | None = Field(None, description="branch, tag or commit of a Hub data set")
    image_column: str | None = Field(None, description="column with the images; found by its type when not named")
    label_column: str | None = Field(None, description="column with the labels; found by its type when not named")
    caption_column: str | None = Field(None, description="column with the captions; found by its name when not named")
    caption_template: str | None = Field(
        None, description="caption of images that have none, of their class: 'a picture of {}'"
    )
    label_names: tuple[str, ...] | None = Field(
        None, max_length=100_000, description="class names, where the data set has none"
    )
    max_images: int | None = Field(
        None, ge=1, le=MANY, description="train on so many images of each set only: the first, evenly of all classes"
    )
    validation_split: str | None = Field(
        "auto",
        description="split to validate on; auto: the set's own test or validation split, or a twentieth held out of "
        "the training images; null: no validation",
    )
    validation_images: int = Field(1000, ge=1, le=MANY, description="images to validate on, at most")
    sample_size: int = Field(32, ge=2, le=4096, description="height and width the network works at, in pixels")
    image_mode: Literal["auto", "L", "RGB"] = Field("auto", description="auto: L (gray) where all images are gray")
    resize: Literal["auto", "pad", "crop", "area"] = Field(
        "auto",
        description="pad: zeros around, cropped back on output; crop: shorter side scaled to sample_size, centre "
        "kept; area: the whole image averaged to a square, scaled back on output; auto: pad where all images have "
        "one size that fits, else crop",
    )
    random_crop: bool = Field(
        False,
        description="with resize crop: a square anywhere along the longer side, another one in every epoch; validation "
        "and scores use the centre",
    )
    pixel_range: Literal["auto", "full"] | tuple[float, float] = Field(
        "auto",
        description="values that become black and white: auto: of more than 8 bits the range that the images use, or "
        "all 16 bits; full: all 16 bits; [low, high]: these, of any depth",
    )
    background: str = Field(
        "white",
        description="what shows where an image is transparent: white, black, mean (of its own color) or #rrggbb",
    )
    horizontal_flip: bool = Field(False, description="mirror every second image, at random")
    on_bad_image: Literal["error", "skip"] = Field("error", description="what an unreadable image does; skips count")
    max_memory_gb: float = Field(
        4.0, gt=0, le=1e6, description="images larger than this together are kept in a file of the cache"
    )
    streaming: bool = Field(False, description="read the data set as it trains, for one larger than the disk")
    shuffle_buffer_size: int = Field(
        4096, ge=1, le=10**7, description="images shuffled together when streaming, a process"
    )

    # ---- network
    model: Literal["my_unet", "unet2d"] = Field(
        "my_unet", description="unet2d: diffusers' UNet2DModel, exported with a stock scheduler and pipeline"
    )
    layers_per_block: int = Field(2, ge=1, le=100, description="blocks of each level; unet2d only")
    block_out_channels: tuple[Width, ...] = Field(
        (64, 128, 256, 512), max_length=MOST_LEVELS, description="width of each level"
    )
    time_embed_dim: int = Field(256, ge=2, le=16_384, description="width of the time embedding")
    attention_levels: tuple[int, ...] | None = Field(
        None, max_length=MOST_LEVELS, description="levels with attention; null means all"
    )
    num_attention_heads: int = Field(4, ge=1, le=1024, description="heads of every attention")
    feed_forward_dim: int = Field(
        1024, ge=1, le=65_536, description="hidden width of every attention's feed-forward part"
    )
    norm_num_groups: int = Field(8, ge=1, le=1024, description="groups of every GroupNorm")
    residual: bool = Field(False, description="residual blocks; the original has plain ones")
    normalize_input: bool = Field(True, description="LayerNorm on the raw input, as the original has it")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout inside blocks and attention")
    patch_size: int = Field(
        1,
        ge=1,
        le=256,
        description="side of the pixel patches that become channels; 4 works on maps of sample_size / 4",
    )
    class_conditional: bool = Field(False, description="train with the labels, for guidance and choice of class")
    class_dropout_prob: float = Field(
        0.1, ge=0, le=1, description="share of labels replaced by the null class, or of captions by no words"
    )
    text_encoder: str | None = Field(
        None,
        min_length=1,
        description="train with the captions, read by this encoder of transformers, which is not trained: Hub id or "
        "folder of a CLIP text model, a BERT or a T5; null: without words",
    )

    init_from: str | None = Field(
        None,
        min_length=1,
        description="model to start from, its weights wherever they fit: folder, run, Hub id or shipped; null: random "
        "weights",
    )
    distill_from: str | None = Field(
        None,
        min_length=1,
        description="teacher: model whose pictures the run learns to make in distill_steps steps: folder, run, Hub id "
        "or shipped; null: learn from the images",
    )
    distill_steps: int = Field(4, ge=1, le=100, description="steps, each one network call, that the student takes")

    # ---- diffusion (MyDDPMScheduler)
    num_train_timesteps: int = Field(1000, ge=1, le=MOST_TIMESTEPS, description="diffusion steps T")
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
    snr_gamma: float = Field(5.0, gt=0, le=HUGE, description="gamma of min_snr")
    timestep_sampling: Literal["uniform", "stratified"] = Field(
        "uniform", description="stratified: one timestep from each of as many equal ranges as the batch has images"
    )

    # ---- optimisation
    train_batch_size: int = Field(
        64, ge=1, le=65_536, description="images per optimizer step, over all processes together"
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=65_536, description="parts a process splits its share of a batch into"
    )
    num_epochs: float = Field(20, gt=0, le=1e6, description="passes over the images")
    max_train_steps: int | None = Field(None, ge=1, le=MANY, description="optimizer steps, instead of num_epochs")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="muon: orthogonalised momentum for the hidden weight matrices and kernels, AdamW for the rest",
    )
    learning_rate: float = Field(1e-3, gt=0, le=HUGE, description="peak learning rate of AdamW")
    muon_learning_rate: float = Field(0.02, gt=0, le=HUGE, description="peak learning rate of Muon")
    muon_momentum: float = Field(0.95, ge=0, lt=1, description="Muon's momentum")
    lr_scheduler: Literal["cosine", "linear", "constant"] = Field("cosine", description="decay after the warm-up")
    lr_warmup_steps: int = Field(500, ge=0, le=MANY, description="steps of linear warm-up")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's beta1")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's beta2")
    adam_weight_decay: float = Field(0.0, ge=0, le=HUGE, description="weight decay of AdamW, and of Muon")
    max_grad_norm: float = Field(1.0, gt=0, le=HUGE, description="gradient norm to clip to")
    ema_max_decay: float | tuple[float, ...] = Field(
        0.9999,
        description="largest decay of the weight average, 0 means none; of several, the first is exported at the end",
    )
    ema_inv_gamma: float = Field(1.0, gt=0, le=HUGE, description="inverse gamma of the average's warm-up")
    ema_power: float = Field(0.75, gt=0, le=1000, description="power of the average's warm-up")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = Field("auto", description="auto: bf16 where faster")
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory")
    torch_compile: Literal["no", "default", "reduce-overhead", "max-autotune"] = Field(
        "no", description="mode of torch.compile"
    )
    max_bad_steps: int = Field(
        10, ge=0, le=MANY, description="steps in a row that may be skipped for a loss that exploded or is not finite"
    )

    # ---- what a run writes
    logging_steps: int = Field(50, ge=1, le=MANY, description="steps between lines of metrics.jsonl")
    checkpointing_steps: int = Field(500, ge=1, le=MANY, description="steps between checkpoints")
    checkpoints_total_limit: int = Field(
        2, ge=1, le=MANY, description="newest checkpoints that are kept, besides the best"
    )
    validation_steps: int = Field(500, ge=1, le=MANY, description="steps between validation losses")
    sample_steps: int = Field(1000, ge=1, le=MANY, description="steps between sample grids")
    num_samples: int = Field(20, ge=1, le=1000, description="images in a sample grid")
    sample_prompts: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="prompts of the sample grids, in turn; null: captions of images that are validated on",
    )
    score_features: str | None = Field(
        None,
        description="features for a few-step Frechet distance in training, as for evaluate: fashion-mnist, inception, "
        "a folder of train-features or of an autoencoder, a TorchScript or .pt2 file; null: none",
    )
    score_steps: int = Field(2000, ge=1, le=MANY, description="steps between these distances")
    score_images: int = Field(500, ge=2, le=10**6, description="images that such a distance generates, and real ones")
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
        factor = self.patch_size * 2 ** (len(self.block_out_channels) - 1)
        if self.sample_size % factor:
            nearest_size = max(1, round(self.sample_size / factor)) * factor
            patches = f"patches of {self.patch_size} pixels and " if self.patch_size > 1 else ""
            raise ValueError(
                f"sample_size={self.sample_size} is not divisible by {factor}, the downsampling factor of {patches}"
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
            given.add("caption_column")
            if wrong := sorted(name for name in given if getattr(self, name) is not None):
                raise ValueError(f"{wrong[0]} belongs into the entries of datasets")
        if self.random_crop and self.resize != "crop":
            raise ValueError(f"random_crop needs resize: crop, got {self.resize}")
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
        if self.model == "unet2d" and self.distill_from:
            raise ValueError("distill_from is a setting of model my_unet")
        if self.distill_from and self.init_from:
            raise ValueError("a student starts from its teacher: leave init_from out, or distill_from")
        if self.model == "unet2d" and self.text_encoder:
            raise ValueError("model unet2d reads no words; use model my_unet with text_encoder")
        if self.text_encoder and self.class_conditional:
            raise ValueError(
                "train with classes or with words: class_conditional or text_encoder; caption_template makes captions "
                "of the class names"
            )
        if self.text_encoder and self.distill_from:
            raise ValueError("models that read words cannot be distilled: leave distill_from out, or text_encoder")
        if self.text_encoder and self.streaming:
            raise ValueError("text_encoder reads all captions before the training: use streaming: false")
        if self.text_encoder is None and (self.caption_template or self.sample_prompts):
            name = "caption_template" if self.caption_template else "sample_prompts"
            raise ValueError(f"{name} does nothing without text_encoder")
        if self.caption_template is not None and "{}" not in self.caption_template:
            raise ValueError("caption_template needs {} where the name of the class goes, as in 'a picture of {}'")
        if self.model == "unet2d" and self.patch_size > 1:
            raise ValueError("patch_size is a setting of model my_unet; with model unet2d use patch_size: 1")
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

    @field_validator("background")
    @classmethod
    def _color(cls, value):
        if value not in ("white", "black", "mean") and not re.fullmatch("#[0-9a-fA-F]{6}", value):
            raise ValueError("expected white, black, mean or a color such as #7f7f7f")
        return value

    @field_validator("pixel_range")
    @classmethod
    def _levels(cls, value):
        if isinstance(value, tuple) and value[0] >= value[1]:
            raise ValueError("expected auto, full or [low, high], the lower value first")
        return value

    @field_validator("report_to", mode="before")
    @classmethod
    def _no_tracker(cls, value):
        return "none" if value is None or value is False else value  # what the command line, or YAML, makes of it

    @field_validator("validation_split", "score_features", "hub_license", "dataset_license", mode="before")
    @classmethod
    def _nothing(cls, value):
        return None if value is False else value  # YAML's no

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
    def data_settings(self) -> dict[str, Any]:
        """The settings that decide which images are read and what they become, as ``open_data`` takes them."""
        return {name: getattr(self, name) for name in DATA_SETTINGS}

    @property
    def sources(self) -> tuple[Source, ...]:
        """The data sets of the run, one or several."""
        if self.datasets is not None:
            return self.datasets
        return (
            Source(
                dataset=self.dataset,
                config=self.dataset_config,
                split=self.dataset_split,
                revision=self.dataset_revision,
                image_column=self.image_column,
                label_column=self.label_column,
                label_names=self.label_names,
                caption_column=self.caption_column,
            ),
        )

    def total_steps(self, num_images: int, step: int = 0, images_seen: int = 0) -> int:
        """Optimizer steps of the whole run over ``num_images`` images, of which it has taken ``step`` so far.

        With ``num_epochs`` the images count: a run that goes on with another batch size takes more steps, or fewer.
        """
        if self.max_train_steps:
            return self.max_train_steps
        images_left = max(0, math.ceil(self.num_epochs * num_images) - images_seen)
        return step + math.ceil(images_left / self.train_batch_size)

    def save(self, path: Path):
        """Write all settings, defaults included, as YAML."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        write_whole(Path(path), lambda partial: partial.write_text(text))


class _ModelPart(BaseModel):
    """Numbers in a configuration that came with a model. Settings that are not named here only have to be small."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, str_max_length=LONGEST_TEXT)

    @model_validator(mode="after")
    def _others(self):
        for name, value in self.model_extra.items():
            for item in value if isinstance(value, list) else [value]:
                too_large = isinstance(item, int) and abs(item) > MOST_TIMESTEPS
                if too_large or item != item or len(str(item)) > LONGEST_TEXT:
                    raise ValueError(f"{name} must be a smaller number or text, got {item!r}")
        return self


class NetworkPart(_ModelPart):
    """unet/config.json of a MyUNet or a UNet2DModel; each has some of these."""

    sample_size: Pixels | Annotated[list[Pixels], Field(min_length=2, max_length=2)] | None = None
    in_channels: Channels = 3
    out_channels: Channels = 3
    block_out_channels: Annotated[list[Width], Field(max_length=MOST_LEVELS)] = []
    layers_per_block: Annotated[int, Field(ge=1, le=100)] = 2
    num_train_timesteps: Timesteps | None = None
    time_embed_dim: Width = 256
    attention_levels: Annotated[list[int], Field(max_length=MOST_LEVELS)] | None = None
    feed_forward_dim: Annotated[int, Field(ge=1, le=65_536)] = 1024
    num_class_embeds: Annotated[int, Field(ge=1, le=MOST_TIMESTEPS)] | None = None
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    patch_size: Annotated[int, Field(ge=1, le=256)] = 1
    cross_attention_dim: Width | None = None


class SchedulerPart(_ModelPart):
    """scheduler/scheduler_config.json of a MyDDPMScheduler or one of diffusers' own; each has some of these."""

    num_train_timesteps: Timesteps = 1000
    beta_start: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    beta_end: Annotated[float, Field(ge=0, lt=1)] = 0.02
    trained_betas: list[Annotated[float, Field(ge=0, le=1)]] | None = None
    dynamic_thresholding_ratio: Annotated[float, Field(ge=0, le=1)] = 0.995
    clip_sample_range: Annotated[float, Field(gt=0, le=HUGE)] = 1.0
    sample_max_value: Annotated[float, Field(gt=0, le=HUGE)] = 1.0
    solver_order: Annotated[int, Field(ge=1, le=10)] = 2

    @model_validator(mode="after")
    def _one_beta_each(self):
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(f"trained_betas has {len(self.trained_betas)} values for {self.num_train_timesteps} steps")
        return self


class TextEncoderPart(_ModelPart):
    """text_encoder/config.json of one of transformers' encoders; each has some of these."""

    vocab_size: Annotated[int, Field(ge=1, le=10**7)] = 1
    hidden_size: Width = 1
    d_model: Width = 1
    intermediate_size: Annotated[int, Field(ge=1, le=65_536)] = 1
    d_ff: Annotated[int, Field(ge=1, le=65_536)] = 1
    num_hidden_layers: Annotated[int, Field(ge=0, le=1000)] = 1
    num_layers: Annotated[int, Field(ge=0, le=1000)] = 1


def check_part(part: type[BaseModel], values: dict[str, Any], file: str):
    """Check the configuration of a model's network or scheduler before anything is built from it.

    Raises:
        ValueError: for the first wrong setting, naming it and ``file``.
    """
    try:
        part.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{file}: {_first_line(error)}") from None


def build_config(values: dict[str, Any]) -> TrainConfig:
    """Check ``values`` and build the config.

    Raises:
        UserError: for the first wrong setting, naming it and what it accepts.
    """
    try:
        return TrainConfig(**values)
    except ValidationError as error:
        raise UserError(_first_line(error)) from None


def known_settings(values: dict[str, Any]) -> tuple[TrainConfig, list[str]]:
    """The config of a run that another version wrote, and the names in ``values`` that are unknown to this one.

    Raises:
        ValueError, TypeError: if a known setting has a wrong value, or ``values`` is no dict.
    """
    try:
        return TrainConfig(**values), []
    except ValidationError as error:
        unknown = [problem["loc"] for problem in error.errors() if problem["type"] in UNKNOWN]
    values = copy.deepcopy(values)
    for *path, name in unknown:
        functools.reduce(operator.getitem, path, values).pop(name)
    return TrainConfig(**values), [".".join(map(str, path)) for path in unknown]


def load_config(argv: list[str], defaults: dict[str, Any] | None = None) -> TrainConfig:
    """Build the config from ``--config FILE.yaml`` and ``--setting value`` pairs, which win over the file.

    defaults: settings for what neither says.

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
    for other, name in SAME_AS.items():
        flag = {"nargs": "?", "const": "true"} if TrainConfig.model_fields[name].annotation is bool else {}
        parser.add_argument(f"--{other}", dest=name, help=argparse.SUPPRESS, default=argparse.SUPPRESS, **flag)
    parsed, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].split("=")[0].lstrip("-").replace("-", "_")
        raise UserError(f"unknown setting {unknown[0]!r}; {_nearest_setting(name)}")
    values = vars(parsed)
    config_file = values.pop("config")
    from_file = _read_yaml(config_file) if config_file else {}
    from_file = {SAME_AS.get(name, name) if isinstance(name, str) else name: value for name, value in from_file.items()}
    given = {name: _parse(text) for name, text in values.items()}
    from_file = {**_without_alternatives(defaults or {}, from_file), **from_file}
    return build_config({**_without_alternatives(from_file, given), **given})


def settings_from(argv: list[str]) -> str:
    """In words, where the settings of a command line come from: a file, by its name, and those given beside it."""
    file, given = None, []
    for word, value in zip(argv, [*argv[1:], ""]):
        name, _, joined = word.removeprefix("--").partition("=")
        name = SAME_AS.get(name.replace("-", "_"), name.replace("-", "_"))
        if word.startswith("--") and name == "config":
            file = joined or value
        elif word.startswith("--") and name in TrainConfig.model_fields:
            given.append(name)
    sources = [_told(Path(file))] if file else []
    sources += [f"{', '.join(dict.fromkeys(given))} on the command line"] * bool(given)
    return "; ".join([*sources, "else the defaults"])


def _told(file: Path) -> str:
    """A preset by its path in the repository; any other file by its name alone, since its folder is private."""
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
        return parse_yaml(text)
    except ValueError:
        raise UserError(f"{text!r} is not a list such as [32, 64].") from None


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"config file {path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"config file {path} cannot be read: {error}.") from None
    if not isinstance(values, dict):
        raise UserError(f"config file {path} must hold 'setting: value' lines.")
    return values


def _nearest_setting(name: str) -> str:
    if name in INSTEAD:
        return f"{INSTEAD[name]}."
    longer = [setting for setting in TrainConfig.model_fields if setting.endswith(f"_{name}")]  # train_batch_size
    match = longer or difflib.get_close_matches(name, TrainConfig.model_fields, n=1, cutoff=0.6)
    return f"did you mean {match[0]!r}?" if match else "run with --help for all settings."


def _first_line(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][:1])
    if len(first["loc"]) > 1 and name == "datasets":
        entry, *rest = first["loc"][1:]
        if first["type"] in UNKNOWN:
            return (
                f"setting 'datasets', entry {entry}: unknown setting {rest[-1]!r}; {nearest(rest[-1], SOURCE_SETTINGS)}"
            )
        return f"setting 'datasets', entry {entry}: {'.'.join(map(str, rest))}: {first['msg'].lower()}."
    if first["type"] == "extra_forbidden":
        return f"unknown setting {name!r}; {_nearest_setting(name)}"
    if first["type"] == "missing":
        return f"setting {name!r} is missing: {TrainConfig.model_fields[name].description}."
    message = first["msg"].removeprefix("Value error, ")
    if not name:
        return f"{message}."
    if first["type"] == "string_type" and isinstance(first["input"], bool):
        message += "; YAML reads yes, no, on and off as true and false: put quotes around them"
    return f"setting {name!r}: {message[0].lower()}{message[1:]}, got {first['input']!r}."
