"""One commit to a repository of the Hub, in a process of its own: ``python -m ddpm_hf.hub.upload``.

A process of its own, because the client freezes its retry settings at import and sets no time limits on most requests;
because training must not wait; and because one that hangs can be ended. Neither torch nor diffusers is needed here.
The request is a line of standard input, an ``Upload`` as JSON; the token comes from the environment. The answer is a
line of standard output, ``{"url", "commit", "changed"}`` or ``{"error", "left", "not_ours"}``. When standard input
closes, whoever asked is gone, and the upload ends.
"""

import contextlib
import fnmatch
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ddpm_hf.errors import UserError, echo
from ddpm_hf.hub.outgoing import check
from ddpm_hf.hub.retries import (
    LARGEST_ANSWER,
    MOVED_ON,
    NOT_A_HUB,
    USUAL,
    RetryLimits,
    again,
    asked_to_wait,
    explained,
    http_library,
    is_refusal,
    status_of,
    without_reason,
)
from ddpm_hf.ownership import PIPELINE, is_our_index, mapping
from ddpm_hf.reading import parse_json

INDEX = PIPELINE.index
# What the Xet client makes of its own retries; without, it takes five minutes to give up.
XET = {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "4", "HF_XET_CLIENT_RETRY_MAX_DURATION": "120s"}
SLOWEST = 10_000  # bytes a second that a commit sends at least: what its files take at this pace is its deadline
LONGEST_ERROR = 2000  # characters: a line, and it fits into a pipe
IN_BACKGROUND = "--in-background"


class NotOurs(UserError):
    """The repository is somebody else's, or public where it must not be: nothing can be pushed to it."""


@dataclass(frozen=True)
class Upload:
    """What a repository is to hold.

    Args:
        repo_id: name/model; a name alone is one of the token's owner.
        files: path in the repository -> file here. Without any, the repository is only created.
        message: of the commit.
        stale: patterns of files that go unless they are among ``files``.
        taken: patterns of files that later uploads will bring: a repository in which another program has such is
            refused, but nothing of it goes.
        repo_type: model or space.
        private: of a new repository; True refuses one that is public. None is the account's default.
        tag: for the commit.
        keep_tag: what becomes of a tag that another commit has: it is kept there, or (False) nothing is uploaded.
        tag_only: the commit is on top of the main branch, but under its tag alone: the main branch stays as it is.
        card: what README.md is filled with, where a model card is written (``card.writer_of_readme``).
        marker: a file that a Space must have if it is not empty, and a text in its README.md; one without is somebody
            else's. A model repository is known by its model_index.json, or by its card.
        space_sdk, variables, secrets, hardware: of a Space; a variable that is None is deleted.
        limits: how long to try.
    """

    repo_id: str
    files: dict[str, str] = field(default_factory=dict)
    message: str = "Upload"
    stale: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    repo_type: str = "model"
    private: bool | None = None
    tag: str | None = None
    keep_tag: bool = False
    tag_only: bool = False
    card: dict | None = None
    marker: tuple[str, str] | None = None
    space_sdk: str | None = None
    variables: dict[str, str | None] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    hardware: str | None = None
    limits: RetryLimits = USUAL


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
            kind = NotOurs if result["not_ours"] else UserError
            raise kind(f"{failed}: {result['error']}" + (f" {result['left']}" if result["left"] else ""))
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
        NotOurs: if the repository is somebody else's.
        UserError: what went wrong, and what to do. The repository is unchanged or complete.
    """
    return Sending(upload, token, quiet=quiet).result()


def _with_us(path: str | None) -> str:
    ours = str(Path(__file__).resolve().parent.parent.parent)
    return os.pathsep.join(part for part in (ours, path) if part)


# ---- in the process of its own


@dataclass
class UploadProgress:
    """How far an upload came, for the message of one that fails.

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


def carry_out(upload: Upload, progress: UploadProgress, watch: "Watch") -> dict:
    """Check the files, create the repository if need be, make the commit unless it is there, look whether all of it
    arrived, tag it."""
    from huggingface_hub import HfApi

    check_upload(upload)
    api, limits = HfApi(), upload.limits
    upload = replace(upload, repo_id=_full_name(api, upload))
    repo_id, where = upload.repo_id, {"repo_type": upload.repo_type}
    before = _repository(api, upload)
    if before is not None:
        _refuse_others(api, before, upload)
    with tempfile.TemporaryDirectory() as scratch:
        if upload.card is not None:
            upload = _with_card(api, upload, Path(scratch), is_new=before is None)
        _check_card(upload)
        if before is None:
            before = _created(api, upload, progress)
            _refuse_others(api, before, upload)
        tagged = _tagged(api, upload) if upload.tag else None
        # A Space that runs keeps its settings until the files that go with them are there, so that a commit which is
        # refused changes nothing. A new one has them first: its first start needs them, and each change restarts it.
        runs = upload.marker is not None and upload.marker[0] in _names(before)
        changed = False if runs else _set_variables_and_secrets(api, upload)
        branch = f"for-{upload.tag}" if upload.tag_only else None  # a commit needs one
        if branch and tagged is None:
            again(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True, **where), limits)
            progress.branch = branch
        commit = again(lambda: _commit(api, upload, watch, tagged, branch), limits, also=MOVED_ON)
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


def check_upload(upload: Upload, token: str | None = None):
    """Raise a UserError unless everything that is to be published can be.

    Args:
        token: that must not be in it; None is the one that is logged in with.
    """
    from huggingface_hub import get_token

    published = {name: value for name, value in asdict(upload).items() if name not in ("secrets", "files", "limits")}
    secrets = (token or get_token(), *upload.secrets.values())
    check(upload.files, [json.dumps(published), *upload.files], upload.tag, secrets)


def _repository(api, upload: Upload):
    """What the Hub knows of the repository; None if there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    def look():
        return api.repo_info(upload.repo_id, timeout=upload.limits.silence, repo_type=upload.repo_type)

    try:
        found = again(look, upload.limits)
    except RepositoryNotFoundError:
        return None
    if not re.fullmatch(r"[0-9a-f]{40}", str(found.sha)):
        raise UserError(NOT_A_HUB)
    return found


def _created(api, upload: Upload, progress: UploadProgress):
    """What the Hub knows of the repository, which is created."""

    def create():
        api.create_repo(
            upload.repo_id,
            private=upload.private,
            exist_ok=True,  # also where an answer was lost
            repo_type=upload.repo_type,
            space_sdk=upload.space_sdk,
            space_hardware=upload.hardware,
        )

    again(create, upload.limits, also=MOVED_ON)
    progress.made = True
    created = _repository(api, upload)
    if created is None:
        raise UserError("it was created, but cannot be seen; push again in a minute.")
    return created


def _check_card(upload: Upload):
    """Let the Hub check the YAML at the start of README.md, as it does for a commit."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, hf_raise_for_status

    if "README.md" not in upload.files:
        return
    text = Path(upload.files["README.md"]).read_text(encoding="utf-8")
    if not text.lstrip().startswith("---"):
        return

    def ask():  # RepoCard.validate of older clients asks the public Hub, whatever HF_ENDPOINT says
        url, body = f"{constants.ENDPOINT}/api/validate-yaml", {"repoType": upload.repo_type, "content": text}
        answer = get_session().post(url, json=body, headers={"Accept": "text/plain"})
        if answer.status_code == 400:
            said = " ".join(answer.text.split())
            raise UserError(f"the Hub does not accept the YAML at the start of README.md: {said}")
        hf_raise_for_status(answer)

    again(ask, upload.limits)


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


def _refuse_others(api, before, upload: Upload):
    """Raise NotOurs for a repository that is public and must not be, or whose files, which this project did not put
    there, the upload would replace or delete."""
    from ddpm_hf.hub.card import is_sealed

    if upload.private and not before.private:
        raise NotOurs(
            "it exists and is public, nothing was uploaded; make it private on its settings page, choose another name, "
            "or push without asking for a private one."
        )
    names = _names(before)
    if upload.marker is not None:
        name, text = upload.marker
        if names and not (name in names and text in (_text(api, upload, "README.md") or "")):
            raise NotOurs("it exists and holds something else, nothing was uploaded; choose another name.")
        return
    taken = sorted(name for name in names if name in upload.files or _matches(name, upload.stale + upload.taken))
    if not taken or is_sealed(_text(api, upload, "README.md") or ""):
        return
    if INDEX in names and is_our_index(mapping(parse_json, _text(api, upload, INDEX) or "")):
        return
    others = f" and {len(taken) - 1} more files" if len(taken) > 1 else ""
    raise NotOurs(
        f"it exists and holds {taken[0]}{others} of another program, nothing was uploaded; choose another name, or "
        f"delete them there."
    )


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


def _with_card(api, upload: Upload, scratch: Path, is_new: bool) -> Upload:
    """The upload with the README.md that ``writer_of_readme`` chooses.

    A licence and a base model that were given there stay, and the data sets have the licences that the Hub knows of.
    """
    from ddpm_hf.hub.card import given_in, render_card, writer_of_readme

    files, own = dict(upload.files), upload.files.get("README.md")
    own = own and Path(own).read_text(encoding="utf-8")
    if writer_of_readme(upload.card, own) == "folder":
        return upload
    present = None if is_new else _text(api, upload, "README.md")
    if writer_of_readme(upload.card, own, present) == "repository":
        echo(f"{upload.repo_id} has a README.md of somebody's own, which is kept.", error=True)
        files.pop("README.md", None)
        return replace(upload, files=files)
    values, given = dict(upload.card), given_in(present)
    values |= {name: values[name] or given.get(name) for name in ("license", "base_model")}
    licences = [_licence_of_data(api, entry["id"], upload.limits) for entry in values["data"]]
    values["data"] = [{**entry, "license": licence} for entry, licence in zip(values["data"], licences)]
    path = scratch / "README.md"
    path.write_text(render_card(values, upload.repo_id), encoding="utf-8")
    return replace(upload, files={**files, "README.md": str(path)})


def _text(api, upload: Upload, name: str) -> str | None:
    """A text file of the newest commit; None if it is not there."""
    from huggingface_hub.errors import EntryNotFoundError

    def fetch() -> str | None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = api.hf_hub_download(
                    upload.repo_id, name, repo_type=upload.repo_type, local_dir=folder, force_download=True
                )
            except EntryNotFoundError:
                return None
            return Path(path).read_text(encoding="utf-8", errors="replace")

    return again(fetch, upload.limits)


def _licence_of_data(api, name: str, limits: RetryLimits) -> str | None:
    """What the Hub says of a data set; one line of the card: where it does not say, it is left out."""
    try:
        info = again(lambda: api.dataset_info(name, timeout=limits.silence), limits)
    except Exception:
        return None
    licence = info.card_data and info.card_data.get("license")
    licence = ", ".join(map(str, licence)) if isinstance(licence, list) else licence
    return licence if isinstance(licence, str) else None


def _commit(api, upload: Upload, watch: "Watch", tagged: str | None, branch: str | None = None) -> str:
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
    size = sum(os.path.getsize(path) for path in new.values())
    with watch.whole(size / SLOWEST):
        commit = api.create_commit(
            upload.repo_id,
            added + [CommitOperationDelete(name) for name in old],
            commit_message=upload.message,
            **where,
            parent_commit=head.sha,
        )
    if not re.fullmatch(r"[0-9a-f]{40}", str(commit.oid)):
        raise UserError(NOT_A_HUB)
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


class Watch:
    """The requests under way in this process, with the times at which they last sent something."""

    def __init__(self):
        self._times: dict[object, float] = {}

    @contextlib.contextmanager
    def request(self):
        """As long as a request lasts; yields what is to be called when it has sent something."""
        key = object()

        def sent():
            self._times[key] = time.monotonic()

        sent()
        try:
            yield sent
        finally:
            del self._times[key]

    @contextlib.contextmanager
    def whole(self, seconds: float):
        """As long as something lasts that may take so many seconds more than one request: the Xet client's requests
        cannot be watched one by one."""
        key = object()
        self._times[key] = time.monotonic() + seconds
        try:
            yield
        finally:
            del self._times[key]

    def end_after(self, seconds: float, end: Callable[[], object]):
        """Call ``end`` when a request has sent nothing, and not got its answer, for so long. Returns only then.

        The client's own time-outs are for each piece of an answer: a server that sends a byte a minute, or
        "100 Continue" again and again, would hold it for ever.
        """
        while not any(time.monotonic() - last > seconds for last in list(self._times.values())):
            time.sleep(min(1.0, seconds / 10))
        end()


def limit_client(limits: RetryLimits, watch: Watch):
    """Give the client's requests a time-out where they have none, and an end to what it would do for ever.

    Answers are bounded: all that a push asks for is small. Each request is entered in ``watch``.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import hf_raise_for_status
    from huggingface_hub.utils._http import default_client_factory

    library = http_library()

    class Sent(library.SyncByteStream):
        """The body of a request; ``sent`` is called for each piece of it."""

        def __init__(self, stream, sent: Callable[[], object]):
            self._stream, self._sent = stream, sent

        def __iter__(self):
            for piece in self._stream:
                yield piece
                self._sent()

        def close(self):
            self._stream.close()

    class Bounded(library.SyncByteStream):
        """The body of an answer, up to a size and a time."""

        def __init__(self, stream):
            self._stream = stream

        def __iter__(self):
            size, deadline = 0, time.monotonic() + limits.answer
            for piece in self._stream:
                size += len(piece)
                if size > LARGEST_ANSWER:
                    raise UserError(f"{NOT_A_HUB} It is larger than {LARGEST_ANSWER // 2**20} MB.")
                if time.monotonic() > deadline:
                    raise library.ReadTimeout(f"an answer was not whole after {limits.answer:.0f} s")
                yield piece

        def close(self):
            self._stream.close()

    def prepare(request):
        timeouts = request.extensions.get("timeout") or {}
        kinds = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {kind: timeouts.get(kind) or limits.silence for kind in kinds}
        request.headers["Accept-Encoding"] = "identity"  # a few bytes can unpack to any number

    def examine(response):
        response.stream = Bounded(response.stream)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise UserError(f"{NOT_A_HUB} It is compressed, which was not asked for.")
        if response.status_code >= 400:
            response.read()
            # the client would wait for hours if asked to, and repeat itself without a pause
            conflict = response.status_code == 409 and "conflicting operation" in response.text
            if conflict or (asked_to_wait(response) or 0) > limits.patience:
                hf_raise_for_status(response)

    def factory():
        client = default_client_factory()
        hooks, send = client.event_hooks, client.send
        client.event_hooks = {
            "request": [*hooks.get("request", []), prepare],
            "response": [*hooks.get("response", []), examine],
        }

        def send_watched(request, **options):
            with watch.request() as sent:
                request.stream = Sent(request.stream, sent)
                return send(request, **options)

        client.send = send_watched
        return client

    set_client_factory(factory)


def answer_to(upload: Upload, progress: UploadProgress | None = None, watch: Watch | None = None) -> dict:
    """``carry_out``, with its failure as ``{"error": line, "left": sentence, "not_ours": whether it is NotOurs}``."""
    progress, watch = progress or UploadProgress(), watch or Watch()
    try:
        limit_client(upload.limits, watch)
        return carry_out(upload, progress, watch)
    except Exception as error:  # the client raises its own, the HTTP library's, Xet's and the system's
        error = _with_reason(error, upload)
        line = _without_secrets(explained(error, upload.limits), upload)[:LONGEST_ERROR]
        return {"error": line, "left": progress.left(error), "not_ours": isinstance(error, NotOurs)}


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
    upload = Upload(**{**request, "limits": RetryLimits(**request["limits"])})
    if IN_BACKGROUND in arguments and hasattr(os, "nice"):
        os.nice(19)
    os.environ.setdefault("HF_XET_CLIENT_READ_TIMEOUT", f"{upload.limits.silence:.0f}s")
    os.environ.setdefault("HF_XET_CLIENT_CONNECT_TIMEOUT", f"{upload.limits.silence:.0f}s")
    progress, watch, answers = UploadProgress(), Watch(), sys.stdout

    def answer(values: dict):
        print(json.dumps(values), file=answers, flush=True)

    def give_up():
        error = http_library().ReadTimeout(f"no whole answer in {upload.limits.answer:.0f} s")
        answer({"error": explained(error, upload.limits), "left": progress.left(error), "not_ours": False})
        os._exit(0)

    threading.Thread(target=watch.end_after, args=(upload.limits.answer, give_up), daemon=True).start()
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the answer
        answer(answer_to(upload, progress, watch))
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
