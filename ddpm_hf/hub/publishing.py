"""Push: a run, or an exported pipeline, as a model repository that explains itself."""

import fnmatch
import json
import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import yaml

from ddpm_hf.errors import UserError, echo
from ddpm_hf.hub.card import card_values, given_in
from ddpm_hf.hub.outgoing import check_readme
from ddpm_hf.hub.retries import USUAL, RetryLimits
from ddpm_hf.hub.run_files import (
    PARTS,
    STALE,
    TEXTS,
    RunFiles,
    is_from_us,
    is_private_run,
    run_files_of,
    without_paths,
)
from ddpm_hf.hub.upload import Upload, send
from ddpm_hf.ownership import INDEX_ORDER, PIPELINE, is_our_index
from ddpm_hf.reading import read_json, read_yaml

IMMUTABLE = ("*.safetensors", "*.png")  # files of a run that are written once


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    tag: str | None = None,
    tag_only: bool = False,
    license: str | None = None,
    dataset_license: str | None = None,
    step: int | None = None,
    limits: RetryLimits = USUAL,
    quiet: bool = False,
) -> str:
    """Upload a run, or an exported pipeline, in one commit, creating the repository if need be.

    What is there already is not sent again, and a push that changes nothing makes no commit. A folder without README.md
    of its own is given one there: the model card, filled in from the run. Scores of other weights are left out.

    Args:
        folder: output_dir of a run, also of one that goes on, or an exported pipeline.
        repo_id: name/model, or a model of the token's owner.
        private: True makes a new repository private, and refuses one that exists and is public. None is what the run's
            settings say, or else the account's default.
        token: None is the one that is logged in with.
        tag: for the commit.
        tag_only: leave the main branch as it is, and put the commit under its tag alone: an older checkpoint's, say.
        license: of the weights, for the card; None is what the run's settings say.
        dataset_license: of the images, for the card, where the Hub does not know it; None is what the settings say.
        step: of the checkpoint to take, of a run; None is its end, or its newest checkpoint.
        limits: how long to try.
        quiet: no progress bars.

    Returns:
        The repository's address.

    Raises:
        UserError: if the folder is no pipeline or holds a token, if a file is a link out of it or not what its name
            says, if the tag or README.md is not one for the Hub, or if the Hub refuses or cannot be reached. The
            repository is then as it was before; one that was made for the push is there, and empty.
    """
    refuse_bad_id(repo_id)
    if tag_only and not tag:
        raise UserError("what is pushed under its tag only needs one: give --tag.")
    folder = Path(folder)
    contents = run_files_of(folder, step)
    for line in contents.said:
        echo(line, error=True)
    private = is_private_run(folder) or None if private is None else private
    with tempfile.TemporaryDirectory(prefix="ddpm-hf-push-") as temporary:
        scratch = Path(temporary)
        if not is_from_us(contents.index, contents.files):
            contents = _exported_again(contents, folder, scratch / "pipeline")
        options = {"private": private, "tag": tag, "limits": limits}
        options |= {"license": license, "dataset_license": dataset_license}
        upload = frozen_upload_of(contents, repo_id, scratch, **options)
        return send(replace(upload, tag_only=tag_only), token, quiet=quiet)["url"]


def refuse_bad_id(repo_id: str):
    """Raise UserError unless ``repo_id`` can be the name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise UserError(f"{repo_id!r} is not a Hub id such as name/model.") from None


def upload_of(
    contents: RunFiles,
    repo_id: str,
    scratch: Path,
    *,
    private: bool | None = None,
    tag: str | None = None,
    license: str | None = None,
    dataset_license: str | None = None,
    limits: RetryLimits = USUAL,
) -> Upload:
    """The upload of ``contents``, without this machine's folders in its texts, which are written to ``scratch``.

    ``writer_of_readme`` decides later whether its card becomes README.md.

    Args:
        license, dataset_license: of the weights and of the images; None is what the run's settings say.
    """
    files = {name: str(path) for name, path in contents.files.items()}
    for name, path in contents.files.items():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in TEXTS):
            files[name] = str(_rewritten(path, scratch / name.replace("/", "-")))
    if not is_our_index(contents.index):  # what diffusers has saved: in our order, by which the next push knows it
        first = {name: contents.index[name] for name in INDEX_ORDER if name in contents.index}
        files[PIPELINE.index] = str(scratch / PIPELINE.index)
        Path(files[PIPELINE.index]).write_text(json.dumps(first | contents.index, indent=2) + "\n", encoding="utf-8")
    own = ""
    if "README.md" in contents.files:
        check_readme(contents.files["README.md"])
        own = contents.files["README.md"].read_text(encoding="utf-8")
    settings = contents.settings
    license = license or settings.get("hub_license") or given_in(own).get("license")
    card = card_values(contents, license, dataset_license or settings.get("dataset_license"))
    message = "Upload model" if contents.step is None else f"Upload model of step {contents.step:,}"
    return Upload(repo_id, files, message, stale=list(STALE), private=private, tag=tag, card=card, limits=limits)


def frozen_upload_of(contents: RunFiles, repo_id: str, scratch: Path, **options) -> Upload:
    """``upload_of``, from files that stay as they are; for a run may go on, and write to its own.

    Raises:
        UserError: if a file goes while it is read.
    """
    try:
        return frozen(upload_of(contents, repo_id, scratch, **options), scratch / "files")
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise UserError(f"{name} went while it was read, nothing was uploaded; do it again.") from None


def frozen(upload: Upload, folder: Path) -> Upload:
    """The same upload from files in ``folder`` that stay as they are while the run goes on.

    What is written once is linked where the file system can, and outlives the checkpoint it belongs to.
    """
    files = {}
    for name, source in upload.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        linked = any(fnmatch.fnmatchcase(name, pattern) for pattern in IMMUTABLE)
        try:
            if not linked:
                raise OSError
            os.link(os.path.realpath(source), target)  # a link to a relative one, as in the Hub's cache, would dangle
        except OSError:
            shutil.copyfile(source, target)
        files[name] = str(target)
    return replace(upload, files=files)


def _rewritten(path: Path, target: Path) -> Path:
    """A copy of a YAML or JSON file without this machine's folders; the file itself where it names none."""
    try:
        values = read_json(path) if path.suffix == ".json" else read_yaml(path)
    except ValueError:
        return path
    cleaned = _map_texts(values)
    if cleaned == values:
        return path
    if path.suffix == ".json":
        target.write_text(json.dumps(cleaned, indent=1), encoding="utf-8")
    else:
        target.write_text(yaml.safe_dump(cleaned, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return target


def _map_texts(value):
    if isinstance(value, dict):
        return {key: _map_texts(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_map_texts(entry) for entry in value]
    if not isinstance(value, str):
        return value
    whole = re.fullmatch(r"(?:/|~/|[A-Za-z]:\\)[^\n]*?([^/\\]+)[/\\]*", value)  # a path may have spaces in it
    return whole[1] if whole and " --" not in value else without_paths(value)


def _exported_again(contents: RunFiles, folder: Path, target: Path) -> RunFiles:
    """``contents`` with the pipeline written anew: what diffusers' save_pretrained wrote does not load."""
    from ddpm_hf.hub.export import as_stock, export_pipeline
    from ddpm_hf.hub.loading import load_pipeline

    export_pipeline(target, as_stock(load_pipeline(folder)))
    again = run_files_of(target)
    kept = {
        name: path for name, path in contents.files.items() if not re.match(rf"({'|'.join(PARTS)})/|\w+\.py$", name)
    }
    return replace(
        contents, files={**kept, **again.files}, index=again.index, unet=again.unet, scheduler=again.scheduler
    )
