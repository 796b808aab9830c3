"""``python -m ddpm_hf push``: a run, or a pipeline, as a model repository of the Hub."""

import argparse
from pathlib import Path

from ddpm_hf.errors import UserError, echo
from ddpm_hf.run import RunFolder


def add_parser(commands):
    parser = commands.add_parser(
        "push",
        help="upload a run, or a pipeline, to the Hub",
        description="Upload a run, or a pipeline, in one commit. What is there already is not sent again.",
    )
    parser.add_argument("folder", help="output_dir of a run, which may still be going, or exported pipeline")
    parser.add_argument("--repo-id", help="name/model (default: the run's hub_model_id)")
    parser.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="make a new repository private, and refuse a public one (default: the run's hub_private_repo)",
    )
    parser.add_argument("--checkpoint", help="of a run: a step, or best, by validation loss (default: its end)")
    parser.add_argument("--tag", help="for the commit")
    parser.add_argument(
        "--tag-only",
        action="store_true",
        help="leave the main branch as it is: for one older than what is there",
    )
    parser.add_argument(
        "--license", help="of the weights, for the card, such as apache-2.0 (default: the run's hub_license)"
    )
    parser.add_argument("--dataset-license", help="of the images, where the Hub does not know it (default: the run's)")
    parser.set_defaults(run=_push)


def _push(arguments):
    from ddpm_hf.hub import push

    folder = Path(arguments.folder)
    repo_id = arguments.repo_id or RunFolder(folder).settings().get("hub_model_id")
    if not repo_id:
        raise UserError("--repo-id is missing: name/model, where to push to.")
    step = None if arguments.checkpoint is None else _step(folder, arguments.checkpoint)
    url = push(
        folder,
        repo_id,
        private=arguments.private,
        tag=arguments.tag,
        tag_only=arguments.tag_only,
        license=arguments.license,
        dataset_license=arguments.dataset_license,
        step=step,
    )
    echo(f"pushed to {url}")


def _step(folder: Path, checkpoint: str) -> int:
    """The step of the checkpoint that was asked for."""
    if checkpoint.isdecimal():
        return int(checkpoint)
    if checkpoint != "best":
        raise UserError(f"--checkpoint {checkpoint} must be a step, or best.")
    best = RunFolder(folder).best_step()
    if best is None:
        raise UserError(f"{folder} has no checkpoint with a validation loss; give a step.")
    return best
