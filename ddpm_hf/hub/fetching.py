"""Models of the Hub in the local cache: fetched again where that helps, resumed, or found there when offline.

Code that comes with a model is fetched too, so that it can be read; nothing here runs it.
"""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from ddpm_hf.errors import UserError, one_line
from ddpm_hf.hub.retries import LOG_IN, RetryLimits, again, cut_off, explained, is_passing, look_at
from ddpm_hf.ownership import OF_TOKENIZER
from ddpm_hf.reading import read_json

LIMITS = RetryLimits(silence=20.0)
TOLD = ["evaluation.json", "metrics.jsonl"]  # what the app shows about a model
FETCHED = ["model_index.json", "unet/config.json", "scheduler/*.json", "*.py", "*/*.py", *TOLD]
FETCHED += ["text_encoder/config.json", *(f"tokenizer/{name}" for name in OF_TOKENIZER)]


def weight_files(variant: str | None = None) -> list[str]:
    """Patterns of the files that a network's weights are in, whole or in parts; ``variant`` as in from_pretrained."""
    end = "" if variant is None else f".{variant}"
    return _weight_files("unet/diffusion_pytorch_model", end)


def encoder_files(variant: str | None = None) -> list[str]:
    """As ``weight_files``, of a text encoder."""
    return _weight_files("text_encoder/model", "" if variant is None else f".{variant}")


def _weight_files(name: str, end: str) -> list[str]:
    return [f"{name}{end}.safetensors", f"{name}{end}-*-of-*.safetensors", f"{name}.safetensors.index{end}.json"]


def fetch(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    variant: str | None = None,
    limits: RetryLimits = LIMITS,
) -> Path:
    """The folder of the cache that holds a model: its name is the hash of the commit.

    A connection that ends goes on where it stopped, and files that are whole are not fetched again, whatever broke
    in between. Where the Hub cannot be reached, or HF_HUB_OFFLINE is set, a model that is whole in the cache is taken.

    Args:
        revision: branch, tag or commit; None is the main branch.
        token: None is the one that is logged in with.
        variant: of the weights.
        limits: how long to try. What is in the cache is turned to after the second attempt.

    Raises:
        UserError: if there is no such model, or it cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    options = {"revision": revision, "allow_patterns": FETCHED + weight_files(variant) + encoder_files(variant)}

    def download():
        try:
            return snapshot_download(repo_id, token=token, **options)
        except LocalEntryNotFoundError as error:  # what the client makes of a failure on the way
            raise error.__cause__ if isinstance(error.__cause__, Exception) else error from None

    try:
        cached = snapshot_download(repo_id, local_files_only=True, **options)
    except LocalEntryNotFoundError:
        cached = None
    except HFValidationError:
        raise UserError(f"{repo_id!r} is neither a folder here nor a Hub id such as name/model.") from None
    if cached is not None and not _is_whole(Path(cached), variant):
        cached = None  # of single files that were fetched, the client does not know that others are missing
    if cached is not None and Path(cached).name == revision:
        return Path(cached)  # a commit never changes
    if cut_off():
        if cached is None:
            raise UserError(
                f"model {repo_id} is no folder, and not, or not wholly, in the cache; the Hub cannot be reached from "
                f"here: no network. Give a folder, or load it once where there is one."
            )
        return Path(cached)
    attempts = replace(limits, attempts=2) if cached else limits
    try:
        again(partial(look_at, repo_id, revision, token, limits), attempts)  # what comes next has no time-out
        return Path(again(download, attempts))
    except OfflineModeIsEnabled:
        if cached is None:
            wanted = repo_id if revision is None else f"{repo_id} of revision {revision}"
            raise UserError(
                f"model {wanted} is not, or not wholly, in the cache, and HF_HUB_OFFLINE is set; load it once online."
            ) from None
    except Exception as error:  # the client's, its HTTP library's, Xet's and the system's
        if cached is None or not is_passing(error):
            raise refusal(error, repo_id, revision, limits) from None
    return Path(cached)


def fetch_newest_samples(repo_id: str, commit: str, max_bytes: int, limits: RetryLimits = LIMITS) -> bool:
    """Put the newest grid of ``samples/`` beside a model in the cache. False without one, or if it cannot be had now.

    Args:
        commit: the name of the folder that ``fetch`` returned.
        max_bytes: of the file; a larger one is left where it is.
    """
    from huggingface_hub import HfApi, hf_hub_download

    try:
        info = HfApi().model_info(repo_id, revision=commit, files_metadata=True, timeout=limits.silence)
        sizes = {file.rfilename: file.size for file in info.siblings or ()}
        grids = sorted(name for name in sizes if re.fullmatch(r"samples/step-\d+\.png", name))
        if not grids or not 0 < (sizes[grids[-1]] or 0) <= max_bytes:
            return False
        hf_hub_download(repo_id, grids[-1], revision=commit)
    except Exception:  # as above; a model is as good without them
        return False
    return True


def _is_whole(folder: Path, variant: str | None) -> bool:
    """Whether the settings and all parts of the weights are there."""
    names = ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"]
    sets = [weight_files(variant)]
    try:
        if read_json(folder / "model_index.json").get("text_encoder"):
            names += ["text_encoder/config.json", "tokenizer/tokenizer_config.json"]
            sets.append(encoder_files(variant))
        for single, _, index in sets:
            if (folder / index).is_file() and not (folder / single).is_file():
                parts = read_json(folder / index)["weight_map"].values()
                names += {f"{index.split('/')[0]}/{part}" for part in parts}
            else:
                names.append(single)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return all((folder / name).is_file() for name in names)


def refusal(error: Exception, repo_id: str, revision: str | None, limits: RetryLimits = LIMITS) -> UserError:
    """One line: why a model cannot be loaded, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, UserError):
        return error
    if isinstance(error, GatedRepoError):
        return UserError(f"model {repo_id} is gated: ask for access on {constants.ENDPOINT}/{repo_id}, and {LOG_IN}.")
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"model {repo_id} is neither a folder here nor a repository you can see on the Hub; for a private one, "
            f"{LOG_IN}."
        )
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"model {repo_id} has no revision {revision!r}.")
    if isinstance(error, OSError) and error.errno is not None and not is_passing(error):
        return UserError(f"model {repo_id} cannot be kept in the cache: {one_line(error)}")
    return UserError(f"model {repo_id}: {explained(error, limits)}")
