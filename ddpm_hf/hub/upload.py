"""One commit to a repository of the Hub, in a process of its own: ``python -m ddpm_hf.hub.upload < request.json``.

A process of its own, because the client freezes its retry settings at import and sets no time limits on most requests;
because training must not wait; and because one that hangs can be ended. Neither torch nor diffusers is needed here.
The request is an ``Upload`` as JSON; the token comes from the environment. The answer is one JSON object on standard
output: ``{"url", "commit", "changed"}`` or ``{"error"}``.
"""

import contextlib
import fnmatch
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ddpm_hf.errors import UserError, one_line
from ddpm_hf.hub.retries import MOVED_ON, Limits, again, explained

# What the Xet client makes of its own retries; without, it takes five minutes to give up.
XET = {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "4", "HF_XET_CLIENT_RETRY_MAX_DURATION": "120s"}


@dataclass(frozen=True)
class Upload:
    """What a repository is to hold.

    Args:
        repo_id: name/model; a name alone is one of the token's owner.
        files: path in the repository -> file here.
        message: of the commit.
        stale: patterns of files that go unless they are among ``files``.
        repo_type: model or space.
        private: of a new repository; True refuses one that is public. None is the account's default.
        tag: for the commit.
        card: what README.md is filled with, if it is to be a model card.
        space_sdk, variables, secrets, hardware: of a Space.
        limits: how long to try.
    """

    repo_id: str
    files: dict[str, str] = field(default_factory=dict)
    message: str = "Upload"
    stale: list[str] = field(default_factory=list)
    repo_type: str = "model"
    private: bool | None = None
    tag: str | None = None
    card: dict | None = None
    space_sdk: str | None = None
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    hardware: str | None = None
    limits: Limits = Limits()


# ---- in this process


class Sending:
    """An upload that has begun, in another process."""

    def __init__(self, upload: Upload, token: str | None = None, *, quiet: bool = False):
        environment = {**XET, **os.environ, "PYTHONPATH": _with_us(os.environ.get("PYTHONPATH"))}
        if token is not None:
            environment["HF_TOKEN"] = token
        self.upload = upload
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ddpm_hf.hub.upload"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C and the launcher's signals are for the trainer, which decides
        )
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(asdict(upload)))
            self._process.stdin.close()
        self._process.stdin = None  # for communicate()

    def is_done(self) -> bool:
        return self._process.poll() is not None

    def result(self, timeout: float | None = None) -> dict:
        """The answer, waited for.

        Raises:
            UserError: if the upload failed, or was not done in ``timeout`` seconds, after which it is ended.
        """
        try:
            answer, _ = self._process.communicate(timeout=timeout)
        except BaseException as error:
            self.end()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise UserError(
                f"{self.upload.repo_id}: the upload was not done in {timeout:.0f} s and was ended."
            ) from None
        try:
            result = json.loads(answer.splitlines()[-1])
        except (IndexError, ValueError):
            raise UserError(
                f"{self.upload.repo_id}: the upload ended with status {self._process.returncode} and said nothing."
            ) from None
        if "error" in result:
            raise UserError(result["error"])
        return result

    def end(self):
        """End the upload now; what has not been committed is not seen by anybody."""
        self._process.kill()
        self._process.wait()


def send(upload: Upload, token: str | None = None, *, quiet: bool = False) -> dict:
    """Upload and wait: ``{"url", "commit", "changed"}``.

    Raises:
        UserError: what went wrong, and what would be right. The repository is as it was, or whole.
    """
    return Sending(upload, token, quiet=quiet).result()


def _with_us(path: str | None) -> str:
    ours = str(Path(__file__).resolve().parent.parent.parent)
    return os.pathsep.join(part for part in (ours, path) if part)


# ---- in the process of its own


def carry_out(upload: Upload) -> dict:
    """Create the repository if need be, make the commit unless it is there, look whether all of it arrived, tag it."""
    from huggingface_hub import HfApi

    api, where, limits = HfApi(), {"repo_type": upload.repo_type}, upload.limits
    options = {"private": upload.private, "space_sdk": upload.space_sdk, "space_hardware": upload.hardware}
    url = again(lambda: api.create_repo(upload.repo_id, exist_ok=True, **where, **options), limits)
    repo_id = url.repo_id
    info = again(lambda: api.repo_info(repo_id, timeout=limits.silence, **where), limits)
    if upload.private and not info.private:
        raise UserError(
            f"{repo_id} exists and is public: nothing was uploaded. Make it private on its settings page, choose another "
            f"name, or push without asking for a private one."
        )
    for key, value in upload.variables.items():
        again(lambda key=key, value=value: api.add_space_variable(repo_id, key, value), limits)
    for key, value in upload.secrets.items():
        again(lambda key=key, value=value: api.add_space_secret(repo_id, key, value), limits)
    with tempfile.TemporaryDirectory() as scratch:
        if upload.card is not None:
            upload = _with_card(api, repo_id, upload, Path(scratch))
        commit = again(lambda: _commit(api, repo_id, upload), limits, also=MOVED_ON)
        again(lambda: _check(api, repo_id, commit, upload), limits)
    if upload.tag:
        again(lambda: api.create_tag(repo_id, tag=upload.tag, revision=commit, exist_ok=True, **where), limits)
    return {"url": str(url), "commit": commit, "changed": commit != info.sha}


def _with_card(api, repo_id: str, upload: Upload, scratch: Path) -> Upload:
    """The upload with its model card, in which the data sets have the licences that the Hub knows of."""
    from ddpm_hf.hub.card import render_card

    data = []
    for entry in upload.card["data"]:
        licence = None
        with contextlib.suppress(Exception):  # one line of the card; without it, it is left out
            info = again(
                lambda entry=entry: api.dataset_info(entry["id"], timeout=upload.limits.silence), upload.limits
            )
            licence = info.card_data and info.card_data.get("license")
        licence = ", ".join(licence) if isinstance(licence, list) else licence
        data.append({**entry, "license": licence} if isinstance(licence, str) else entry)
    path = scratch / "README.md"
    path.write_text(render_card({**upload.card, "data": data}, repo_id))
    return replace(upload, files={**upload.files, "README.md": str(path)})


def _commit(api, repo_id: str, upload: Upload) -> str:
    """The commit that holds the files, made if the newest one does not; its hash.

    What to change is found out from the newest commit, and committed only on top of that one. So an attempt after one
    whose answer was lost finds the files there, and makes no second commit.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    head = api.repo_info(repo_id, repo_type=upload.repo_type, timeout=upload.limits.silence)
    present = _tree(api, repo_id, head.sha, upload)
    new = {name: path for name, path in upload.files.items() if not _is_same(present.get(name), Path(path))}
    old = [name for name in present if name not in upload.files and _matches(name, upload.stale)]
    if not new and not old:
        return head.sha
    added = [CommitOperationAdd(name, path) for name, path in sorted(new.items())]
    commit = api.create_commit(
        repo_id,
        added + [CommitOperationDelete(name) for name in old],
        commit_message=upload.message,
        repo_type=upload.repo_type,
        parent_commit=head.sha,
    )
    return commit.oid


def _check(api, repo_id: str, commit: str, upload: Upload):
    present = _tree(api, repo_id, commit, upload)
    for name, path in upload.files.items():
        if not _is_same(present.get(name), Path(path)):
            raise UserError(f"{repo_id}: {name} of commit {commit[:8]} is not what was sent; push again.")


def _tree(api, repo_id: str, commit: str, upload: Upload) -> dict:
    """Path -> file of a commit."""
    from huggingface_hub.hf_api import RepoFile

    entries = api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=upload.repo_type)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _is_same(entry, path: Path) -> bool:
    """Whether a file of the repository has the content of the one here."""
    if entry is None or entry.size != path.stat().st_size:
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == _digest(path, hashlib.sha256())
    blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size)  # git's name of a file's content
    return entry.blob_id == _digest(path, blob)


def _digest(path: Path, digest) -> str:
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _limit_silence(seconds: float):
    """Give the client's requests a time-out where they have none."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def limit(request):
        timeouts = request.extensions.get("timeout") or {}
        kinds = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {kind: timeouts.get(kind) or seconds for kind in kinds}

    def factory():
        client = default_client_factory()
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "request": [*hooks.get("request", []), limit]}
        return client

    set_client_factory(factory)


def main() -> int:
    request = json.loads(sys.stdin.read())
    upload = Upload(**{**request, "limits": Limits(**request["limits"])})
    os.environ.setdefault("HF_XET_CLIENT_READ_TIMEOUT", f"{upload.limits.silence:.0f}s")
    os.environ.setdefault("HF_XET_CLIENT_CONNECT_TIMEOUT", f"{upload.limits.silence:.0f}s")
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the answer
        try:
            _limit_silence(upload.limits.silence)
            answer = carry_out(upload)
        except Exception as error:  # the client raises its own, the HTTP library's, Xet's and the system's
            answer = {"error": _without_tokens(str(explained(error, upload.repo_id, upload.limits)))}
    print(json.dumps(answer))
    return 0


def _without_tokens(text: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    return one_line(ValueError(text.replace(token, "<token>") if token else text))


if __name__ == "__main__":
    sys.exit(main())
