"""Which checkpoint a run goes on from, and whether it is the same run."""

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from ddpm_hf.checkpoints import newest_whole, read_state
from ddpm_hf.config import TrainConfig
from ddpm_hf.errors import UserError
from ddpm_hf.run import RunFolder
from ddpm_hf.training.distributed import say

# settings that change what a run writes, not the weights it ends with
FREE_SETTINGS = {
    "output_dir",
    "logging_steps",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "validation_steps",
    "sample_steps",
    "num_samples",
    "report_to",
    "score_features",
    "score_steps",
    "score_images",
    "max_memory_gb",
    "max_bad_steps",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_strategy",
    "hub_tag_steps",
    "hub_license",
    "dataset_license",
}


def refuse_changes(config: TrainConfig, folder: Path) -> list[str]:
    """Compare the run in ``folder`` with ``config``; returns what differs, for ``resume: force``.

    Raises:
        UserError: if a setting differs that changes the weights a run ends with, and it is not forced.
    """
    before = RunFolder(folder).settings_to_resume()
    changes = []
    for name, value in config.model_dump(mode="json").items():
        same = value == before.get(name, value) or (name == "mixed_precision" and value == "auto")
        if not same and name not in FREE_SETTINGS:
            changes.append(f"{name}={before[name]}, not {value}")
    if changes and config.resume != "force":
        raise UserError(
            f"{folder} holds a run with {'; '.join(changes)}. Use the same settings to resume it, another output_dir "
            f"for a new run, or --resume force to go on with the new settings."
        )
    return changes


def agree_on_checkpoint(folder: Path, accelerator: Accelerator) -> Path | None:
    """The newest whole checkpoint as the main process finds it, the damaged newer ones named. Collective.

    Raises:
        UserError: if none is whole, or a process does not see it.
    """
    found = list(newest_whole(folder)) if accelerator.is_main_process else [None, []]
    checkpoint, complaints = broadcast_object_list(found)
    if complaints and checkpoint is None:
        raise UserError(f"{complaints[0]}, and there is no complete checkpoint; use another output_dir.")
    for complaint in complaints:
        say(accelerator, f"warning: {complaint}; {checkpoint.name} is the newest complete checkpoint and is used.")
    sees = checkpoint is None or checkpoint.is_dir()
    blind = [rank for rank, seen in gather_object([(accelerator.process_index, sees)]) if not seen]
    if blind:
        raise UserError(f"process {blind[0]} does not see {checkpoint}; output_dir must be on storage that all share.")
    return checkpoint


def refusal(config: TrainConfig, folder: Path, fingerprints: set[str], num_processes: int) -> str | None:
    """What resuming the run in ``folder`` would be refused for; None if it would not, or there is none."""
    checkpoint, complaints = newest_whole(folder)
    try:
        refuse_changes(config, folder)
        if complaints and checkpoint is None:
            raise UserError(f"{complaints[0]}, and there is no complete checkpoint.")
        if checkpoint is not None:
            compare_runs(read_state(checkpoint), config, fingerprints, num_processes)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def known_fingerprints(config: TrainConfig, data) -> set[str]:
    """What a checkpoint may call these data: labels that are not trained with may have been found since."""
    if config.streaming or config.class_conditional:
        return {data.fingerprint}
    return {data.fingerprint, data.unlabelled_fingerprint}


def counted_images(saved: dict, folder: Path) -> tuple[int, int]:
    """``images_seen`` and ``logged_images`` of a checkpoint of the run in ``folder``; 0.1.0 counted only steps."""
    progress = saved["progress"]
    if "images_seen" in progress:
        return progress["images_seen"], progress["logged_images"]
    batch_size = RunFolder(folder).settings_to_resume()["train_batch_size"]
    return progress["step"] * batch_size, progress["logged_steps"] * batch_size


def compare_runs(saved: dict, config: TrainConfig, fingerprints: set[str], num_processes: int) -> str | None:
    """Compare what a checkpoint says of its data and processes with this run's; returns a warning, or None.

    Raises:
        UserError: if the data changed, or the number of processes that read a stream, and it is not forced.
    """
    forced, ranks_before = config.resume == "force", saved["num_processes"]
    if saved["fingerprint"] not in fingerprints and not forced:
        raise UserError(
            f"{config.output_dir} holds a run on other images: the data set has changed since; --resume force goes on "
            f"with the new ones."
        )
    if ranks_before == num_processes:
        return None
    if config.streaming and not forced:
        raise UserError(
            f"{config.output_dir} holds a run of {ranks_before} process(es) that each read a stream, this one has "
            f"{num_processes}; start as many, or use --resume force to begin the stream anew."
        )
    return (
        f"this run had {ranks_before} process(es) and has {num_processes} now: the same images and noise, but sums "
        f"that round differently."
    )
