"""One commit to a repository of the Hub, in a process of its own: ``python -m ddpm_hf.hub.upload``.

A process of its own, because the client freezes its retry settings at import and sets no time limits on most requests;
because training must not wait; and because one that hangs can be ended. Neither torch nor diffusers is needed here.
The request is a line of standard input, an ``Upload`` as JSON; the token comes from the environment. The answer is a
line of standard output, ``{"url", "commit", "changed"}`` or ``{"error", "left"}``. When standard input closes, whoever
asked is gone, and the upload ends.
"""

import contextlib
import fnmatch
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ddpm_hf.errors import UserError
from ddpm_hf.hub.retries import (
    MOVED_ON,
    USUAL,
    Limits,
    again,
    asked_to_wait,
    explained,
    is_refusal,
    status_of,
    without_reason,
)

# What the Xet client makes of its own retries; without, it takes five minutes to give up.
XET = {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "4", "HF_XET_CLIENT_RETRY_MAX_DURATION": "120s"}
LONGEST_ERROR = 2000  # characters: a line, and it fits into a pipe
IN_BACKGROUND = "--in-background"


@dataclass(frozen=True)
class Upload:
    """What a repository is to hold.

    Args:
        repo_id: name/model; a name alone is one of the token's owner.
        files: path in the repository -> file here. Without any, the repository is only created.
        message: of the commit.
        stale: patterns of files that go unless they are among ``files``.
        repo_type: model or space.
        private: of a new repository; True refuses one that is public. None is the account's default.
        tag: for the commit.
        keep_tag: what becomes of a tag that another commit has: it is kept there, or (False) nothing is uploaded.
        tag_only: the commit is on top of the main branch, but under its tag alone: the main branch stays as it is.
        card: what README.md is filled with, if it is to be a model card.
        marker: a file that the repository must have if it is not empty; one without is somebody else's.
        space_sdk, variables, secrets, hardware: of a Space; a variable that is None is deleted.
        limits: how long to try.
    """

    repo_id: str
    files: dict[str, str] = field(default_factory=dict)
    message: str = "Upload"
    stale: list[str] = field(default_factory=list)
    repo_type: str = "model"
    private: bool | None = None
    tag: str | None = None
    keep_tag: bool = False
    tag_only: bool = False
    card: dict | None = None
    marker: str | None = None
    space_sdk: str | None = None
    variables: dict[str, str | None] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    hardware: str | None = None
    limits: Limits = USUAL


# ---- in this process


class Sending:
    """An upload that has begun, in another process.

    Args:
        upload: its files must stay as they are until it is done.
        token: None is the one that is logged in with.
        quiet: no progress bars.
        in_background: at the lowest priority, and quiet.
    """

    def __init__(self, upload: Upload, token: str | None = None, *, quiet: bool = False, in_background: bool = False):
        environment = {**XET, **os.environ, "PYTHONPATH": _with_us(os.environ.get("PYTHONPATH")), "PYTHONSAFEPATH": "1"}
        if token is not None:
            environment["HF_TOKEN"] = token
        self.upload = upload
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ddpm_hf.hub.upload", *[IN_BACKGROUND] * in_background],
            stdin=subprocess.PIPE,  # stays open as long as somebody waits for the answer
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet or in_background else None,
            env=environment,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C and the launcher's signals are for those who wait, and decide
        )
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(asdict(upload)) + "\n")
            self._process.stdin.flush()

    def is_done(self) -> bool:
        return self._process.poll() is not None

    def result(self, timeout: float | None = None) -> dict:
        """The answer, waited for: ``{"url", "commit", "changed"}``.

        Raises:
            UserError: if the upload failed, or was not done in ``timeout`` seconds, after which it is ended.
        """
        failed = f"pushing to {self.upload.repo_id} failed"
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.end()
            raise UserError(f"{failed}: it was not done in {timeout:.0f} s and was ended.") from None
        except BaseException:
            self.end()
            raise
        try:
            result = json.loads(self._process.stdout.read().splitlines()[-1])
        except (IndexError, ValueError):
            raise UserError(f"{failed}: its process ended with status {self._process.returncode}.") from None
        finally:
            self._close()
        if "error" in result:
            raise UserError(f"{failed}: {result['error']}" + (f" {result['left']}" if result["left"] else ""))
        return result

    def end(self):
        """End the upload now; what has not been committed is not seen by anybody."""
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self):
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close()


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


@dataclass
class Progress:
    """How far an upload came, which is to be told of one that fails.

    made: whether it created the repository. branch: that was made for the commit. commit: that the files are in.
    missing: what is to come after it.
    """

    made: bool = False
    branch: str | None = None
    commit: str | None = None
    missing: str = ""

    def left(self, error: Exception) -> str:
        """A sentence on what a failure leaves behind; "" where that is what was there before.

        A repository that was made stays: what was sent to it need not be sent again, a token that may write may not be
        allowed to delete, and nobody's repository is ever deleted by mistake.
        """
        if self.commit is not None and self.missing:
            return f"The files are there, as commit {self.commit[:8]}; {self.missing}."
        if self.branch is not None:
            return f"The branch {self.branch} was made for it, and goes with the same command."
        if self.made and is_refusal(error):  # otherwise, a commit may have arrived
            return "The repository, which was made for it, is empty."
        return "The repository was made for it." if self.made else ""


def carry_out(upload: Upload, progress: Progress | None = None) -> dict:
    """Create the repository if need be, make the commit unless it is there, look whether all of it arrived, tag it."""
    from huggingface_hub import HfApi

    api, limits, progress = HfApi(), upload.limits, progress or Progress()
    upload = replace(upload, repo_id=_full_name(api, upload))
    repo_id, where = upload.repo_id, {"repo_type": upload.repo_type}
    before = _repository(api, upload, progress)
    if upload.private and not before.private:
        raise UserError(
            "it exists and is public, nothing was uploaded; make it private on its settings page, choose another name, "
            "or push without asking for a private one."
        )
    _refuse_others(before, upload)
    tagged = _tagged(api, upload) if upload.tag else None
    # A Space that runs keeps its settings until the files that go with them are there, so that a commit which is
    # refused changes nothing. A new one has them first: its first start needs them, and each change restarts it.
    runs = upload.marker in _names(before)
    changed = False if runs else _set_variables_and_secrets(api, upload)
    branch = f"for-{upload.tag}" if upload.tag_only else None  # a commit needs one
    if branch and tagged is None:
        again(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True, **where), limits)
        progress.branch = branch
    with tempfile.TemporaryDirectory() as scratch:
        if upload.card is not None:
            upload = _with_card(api, upload, Path(scratch))
        commit = again(lambda: _commit(api, upload, tagged, branch), limits, also=MOVED_ON)
        progress.commit, progress.missing = commit, "whether all of them are whole could not be seen"
        again(lambda: _check(api, upload, commit), limits)
    if runs:
        progress.missing = "not all of its variables and secrets are set yet"
        changed = _set_variables_and_secrets(api, upload)
    if upload.tag and tagged is None:
        progress.missing = f"the tag {upload.tag} is not set yet"
        again(lambda: api.create_tag(repo_id, tag=upload.tag, revision=commit, exist_ok=True, **where), limits)
    if branch:
        progress.missing = f"the branch {branch}, which is needed no more, is there yet"
        again(lambda: _remove_branch(api, upload, branch), limits)
    folder = "" if upload.repo_type == "model" else f"{upload.repo_type}s/"
    url = f"{api.endpoint}/{folder}{repo_id}" + (f"/tree/{upload.tag}" if upload.tag_only else "")
    return {"url": url, "commit": commit, "changed": changed or commit != before.sha}


def _full_name(api, upload: Upload) -> str:
    if "/" in upload.repo_id:
        return upload.repo_id
    return f"{again(api.whoami, upload.limits)['name']}/{upload.repo_id}"


def _repository(api, upload: Upload, progress: Progress):
    """What the Hub knows of the repository, which is created if it is not there."""
    from huggingface_hub.errors import RepositoryNotFoundError

    where, limits = {"repo_type": upload.repo_type}, upload.limits

    def look():
        return api.repo_info(upload.repo_id, timeout=limits.silence, **where)

    def create():
        api.create_repo(
            upload.repo_id,
            private=upload.private,
            exist_ok=True,  # also where an answer was lost
            space_sdk=upload.space_sdk,
            space_hardware=upload.hardware,
            **where,
        )

    try:
        return again(look, limits)
    except RepositoryNotFoundError:
        again(create, limits, also=MOVED_ON)
        progress.made = True
        return again(look, limits)


def _tagged(api, upload: Upload) -> str | None:
    """The commit that has the upload's tag already."""
    refs = again(lambda: api.list_repo_refs(upload.repo_id, repo_type=upload.repo_type), upload.limits)
    return next((ref.target_commit for ref in refs.tags if ref.name == upload.tag), None)


def _remove_branch(api, upload: Upload, branch: str):
    """Remove a branch, if it is there yet; the tag keeps its commit."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.delete_branch(upload.repo_id, branch=branch, repo_type=upload.repo_type)
    except HfHubHTTPError as error:
        if status_of(error) != 404:
            raise


def _names(before) -> set[str]:
    """The files of a repository, without those that the Hub puts into a new one."""
    return {sibling.rfilename for sibling in before.siblings or ()} - {"README.md", ".gitattributes"}


def _refuse_others(before, upload: Upload):
    names = _names(before)
    if upload.marker and names and upload.marker not in names:
        raise UserError("it exists and holds something else, nothing was uploaded; choose another name.")


def _set_variables_and_secrets(api, upload: Upload) -> bool:
    """Give a Space its settings; whether a variable changed. One that is so already is left alone: each change
    restarts the Space."""
    repo_id, limits, changed = upload.repo_id, upload.limits, False
    present = again(lambda: api.get_space_variables(repo_id), limits) if upload.variables else {}
    for key, value in upload.variables.items():
        if value is None and key in present:
            again(lambda key=key: api.delete_space_variable(repo_id, key), limits)
        elif value is not None and (key not in present or present[key].value != value):
            again(lambda key=key, value=value: api.add_space_variable(repo_id, key, value), limits)
        else:
            continue
        changed = True
    for key, value in upload.secrets.items():
        again(lambda key=key, value=value: api.add_space_secret(repo_id, key, value), limits)
    return changed


def _with_card(api, upload: Upload, scratch: Path) -> Upload:
    """The upload with its model card; without, if the one that is there was written or changed by somebody.

    A licence and a base model that were given there stay, and the data sets have the licences that the Hub knows of.
    """
    from ddpm_hf.hub.card import given_in, is_ours, render_card

    present = _readme(api, upload)
    if present is not None and not is_ours(present):
        print(f"{upload.repo_id} has a README.md of somebody's own, which is kept.", file=sys.stderr)
        return upload
    values, given = dict(upload.card), given_in(present)
    values |= {name: values[name] or given.get(name) for name in ("license", "base_model")}
    licences = [_licence_of_data(api, entry["id"], upload.limits) for entry in values["data"]]
    values["data"] = [{**entry, "license": licence} for entry, licence in zip(values["data"], licences)]
    path = scratch / "README.md"
    path.write_text(render_card(values, upload.repo_id), encoding="utf-8")
    return replace(upload, files={**upload.files, "README.md": str(path)})


def _readme(api, upload: Upload) -> str | None:
    """README.md of the newest commit."""
    from huggingface_hub.errors import EntryNotFoundError

    def fetch() -> str | None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = api.hf_hub_download(
                    upload.repo_id, "README.md", repo_type=upload.repo_type, local_dir=folder, force_download=True
                )
            except EntryNotFoundError:
                return None
            return Path(path).read_text(encoding="utf-8", errors="replace")

    return again(fetch, upload.limits)


def _licence_of_data(api, name: str, limits: Limits) -> str | None:
    """What the Hub says of a data set; one line of the card: where it does not say, it is left out."""
    try:
        info = again(lambda: api.dataset_info(name, timeout=limits.silence), limits)
    except Exception:
        return None
    licence = info.card_data and info.card_data.get("license")
    licence = ", ".join(map(str, licence)) if isinstance(licence, list) else licence
    return licence if isinstance(licence, str) else None


def _commit(api, upload: Upload, tagged: str | None, branch: str | None = None) -> str:
    """The commit that holds the files, made if the newest one does not; its hash.

    ``branch`` is the main one if None; of one that is made for a tag, the tag counts once it is set.

    What to change is found out from the newest commit, and committed only on top of that one. So an attempt after one
    whose answer was lost finds the files there, and makes no second commit.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    where = {"repo_type": upload.repo_type, "revision": tagged if branch and tagged else branch}
    head = api.repo_info(upload.repo_id, timeout=upload.limits.silence, **where)
    present = _tree(api, upload, head.sha)
    new = {name: path for name, path in upload.files.items() if not _is_same(present.get(name), Path(path))}
    old = [name for name in present if name not in upload.files and _matches(name, upload.stale)]
    unchanged = not new and not old
    if tagged is not None and not upload.keep_tag and not (unchanged and tagged == head.sha):
        raise UserError(
            f"the tag {upload.tag} is there already, on commit {tagged[:8]}, nothing was uploaded; choose another."
        )
    if unchanged:
        return head.sha
    added = [CommitOperationAdd(name, path) for name, path in sorted(new.items())]
    commit = api.create_commit(
        upload.repo_id,
        added + [CommitOperationDelete(name) for name in old],
        commit_message=upload.message,
        **where,
        parent_commit=head.sha,
    )
    return commit.oid


def _check(api, upload: Upload, commit: str):
    present = _tree(api, upload, commit)
    for name, path in upload.files.items():
        if name not in present:
            raise UserError(f"{name} is not in commit {commit[:8]}; does a .gitignore there exclude it?")
        if not _is_same(present[name], Path(path)):
            raise UserError(f"{name} of commit {commit[:8]} is not what was sent; push again.")


def _tree(api, upload: Upload, commit: str) -> dict:
    """Path -> file of a commit."""
    from huggingface_hub.hf_api import RepoFile

    entries = api.list_repo_tree(upload.repo_id, recursive=True, revision=commit, repo_type=upload.repo_type)
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
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def limit_client(limits: Limits):
    """Give the client's requests a time-out where they have none, and an end to what it would do for ever."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import hf_raise_for_status
    from huggingface_hub.utils._http import default_client_factory

    def time_out(request):
        timeouts = request.extensions.get("timeout") or {}
        kinds = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {kind: timeouts.get(kind) or limits.silence for kind in kinds}

    def raise_at_once(response):
        if response.status_code >= 400:
            response.read()
            # the client would wait for hours if asked to, and repeat itself without a pause
            conflict = response.status_code == 409 and "conflicting operation" in response.text
            if conflict or (asked_to_wait(response) or 0) > limits.patience:
                hf_raise_for_status(response)

    def factory():
        client = default_client_factory()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks.get("request", []), time_out],
            "response": [*hooks.get("response", []), raise_at_once],
        }
        return client

    set_client_factory(factory)


def answer_to(upload: Upload) -> dict:
    """``carry_out``, with its failure as ``{"error": line, "left": sentence}``."""
    progress = Progress()
    try:
        limit_client(upload.limits)
        return carry_out(upload, progress)
    except Exception as error:  # the client raises its own, the HTTP library's, Xet's and the system's
        error = _with_reason(error, upload)
        line = _without_secrets(explained(error, upload.limits), upload)[:LONGEST_ERROR]
        return {"error": line, "left": progress.left(error)}


def _with_reason(error: Exception, upload: Upload) -> Exception:
    """A refusal of the Xet storage as the Hub itself words it: its client tells the status alone.

    The storage works with a token that the Hub gives; for an account without room it gives none, and says why.
    """
    if not without_reason(error):
        return error
    from huggingface_hub import HfApi
    from huggingface_hub.utils import get_session, hf_raise_for_status

    api = HfApi()
    try:
        repo_id = _full_name(api, upload)
        url = f"{api.endpoint}/api/{upload.repo_type}s/{repo_id}/xet-write-token/main"
        hf_raise_for_status(get_session().get(url, headers=api._build_hf_headers()))
    except Exception as reason:
        return reason if is_refusal(reason) else error
    return error


def main(arguments: list[str]) -> int:
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_asker, daemon=True).start()
    upload = Upload(**{**request, "limits": Limits(**request["limits"])})
    if IN_BACKGROUND in arguments and hasattr(os, "nice"):
        os.nice(19)
    os.environ.setdefault("HF_XET_CLIENT_READ_TIMEOUT", f"{upload.limits.silence:.0f}s")
    os.environ.setdefault("HF_XET_CLIENT_CONNECT_TIMEOUT", f"{upload.limits.silence:.0f}s")
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the answer
        answer = answer_to(upload)
    print(json.dumps(answer))
    return 0


def _end_with_the_asker():
    while os.read(0, 1):  # not sys.stdin, whose lock could not be had at exit
        pass
    os._exit(1)


def _without_secrets(text: str, upload: Upload) -> str:
    from huggingface_hub import get_token

    for secret in (get_token(), *upload.secrets.values()):
        text = text.replace(secret, "<secret>") if secret else text
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
