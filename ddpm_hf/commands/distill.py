"""``python -m ddpm_hf distill``: a student that makes its teacher's pictures in a few steps."""

import argparse

from ddpm_hf.errors import UserError, echo
from ddpm_hf.stopping import StopRequested, StopSignal

# of the student's training, where the command line says nothing else (benchmarks/NOTES.md)
TRAINING = {
    "train_batch_size": 16,
    "max_train_steps": 1500,
    "optimizer": "adamw",
    "learning_rate": 2e-4,
    "lr_scheduler": "linear",
    "lr_warmup_steps": 20,
    "ema_max_decay": 0.99,
    "class_dropout_prob": 0.05,
    "validation_split": None,
    "logging_steps": 20,
    "checkpointing_steps": 100,
    "sample_steps": 250,
}
# of the teacher's run: what it was trained on, and what becomes of the licences
KEPT = ("dataset", "datasets", "dataset_config", "dataset_split", "dataset_revision", "image_column", "label_column")
KEPT += ("label_names", "max_images", "image_mode", "resize", "pixel_range", "background", "on_bad_image")
KEPT += ("hub_license", "dataset_license")
NETWORK = ("sample_size", "block_out_channels", "time_embed_dim", "attention_levels", "num_attention_heads")
NETWORK += ("feed_forward_dim", "norm_num_groups", "residual", "normalize_input", "patch_size")
PROCESS = ("num_train_timesteps", "beta_start", "beta_end", "prediction_type", "rescale_betas_zero_snr")


def add_parser(commands):
    parser = commands.add_parser(
        "distill",
        help="train a student that makes a model's pictures in a few steps",
        usage="%(prog)s MODEL --output_dir DIR [--distill_steps 4] [--dataset DATASET] [--SETTING VALUE ...]",
        description="Train a student that makes a model's pictures in a few steps, one network call each. It has the "
        "teacher's network and data set; every setting of train.py can be given (python train.py --help). The same "
        "command again resumes the run, which samples, evaluates and pushes as any other.",
    )
    parser.add_argument("model", help="the teacher: output_dir of a training run, folder of a pipeline, or Hub id")
    parser.add_argument("settings", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(arguments):
    from ddpm_hf.config import load_config

    with StopSignal() as stop:
        try:
            config = load_config(arguments.settings, defaults=settings_of_student(arguments.model))
            from ddpm_hf.training import Trainer, print_plan

            trainer = Trainer(config, stop, f"python -m ddpm_hf distill; {arguments.model}")
            print_plan(trainer) if config.dry_run else trainer.train()
        except StopRequested:
            echo(f"stopped before the first step ({stop.reason}); the same command goes on.")


def settings_of_student(model: str) -> dict:
    """The settings of a student of ``model``, as far as the teacher decides them."""
    from ddpm_hf.commands.evaluate import run_config
    from ddpm_hf.hub import EMBEDDED_MODEL, load_pipeline

    pipeline = load_pipeline(None if model == "shipped" else model)
    unet, process = pipeline.unet.config, pipeline.scheduler.config
    if type(pipeline.unet).__name__ != "MyUNet":
        raise UserError(f"distill {model}: its network is a {type(pipeline.unet).__name__}, expected a MyUNet.")
    values = {name: unet[name] for name in NETWORK} | {name: process[name] for name in PROCESS if name in process}
    values |= {"class_conditional": pipeline.num_classes is not None, "distill_from": model}
    if (teacher := run_config(str(EMBEDDED_MODEL) if model == "shipped" else model)) is not None:
        values |= {name: getattr(teacher, name) for name in KEPT}
    return TRAINING | values
