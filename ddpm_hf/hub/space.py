"""A Space that shows a model: the files of its repository, and their upload."""

import contextlib
import fnmatch
import os
import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ddpm_hf.errors import UserError, one_line
from ddpm_hf.hub.fetching import FETCHED, LIMITS, TOLD, encoder_files, refusal, weight_files
from ddpm_hf.hub.headers import Weight
from ddpm_hf.hub.outgoing import refuse_links_out
from ddpm_hf.hub.publishing import frozen_upload_of, refuse_bad_id
from ddpm_hf.hub.retries import USUAL, RetryLimits, again, look_at
from ddpm_hf.hub.run_files import is_private_run, read_object, run_files_of
from ddpm_hf.hub.upload import Upload, check_upload, send
from ddpm_hf.ownership import OF_WORDS, WEB

CHECKOUT = Path(__file__).resolve().parent.parent.parent
OF_PACKAGE = ("*.py", "*/*.py", "*.jinja", *(f"ui/static/*.{kind}" for kind in ("css", "html", "js", "svg")))
# What only training, data sets, evaluation and model cards need; what is not named here, a Space installs.
NOT_OF_SPACE = {"datasets", "jinja2", "matplotlib", "pydantic", "torch-fidelity", "torchvision"}
ZERO_GPU = {"hardware": "zero-a10g", "python": "3.12", "torch": "torch>=2.8,<2.12"}  # what ZeroGPU has
FREE = "cpu-basic"
# of a model that is not on the Hub: what is loaded, besides the weights, and what the page shows about it
OF_MODEL = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json", *TOLD, *OF_WORDS)
IN_SPACE = "model"  # its folder
MOST_PARTS = 100  # files of weights
EXAMPLES = "data/fashion_mnist_tiny.parquet"  # pictures of the embedded model's classes
MADE_WITH = "Made with ddpm_hf: `python -m ddpm_hf deploy-space"  # in the README.md of a Space that is deployed here


@dataclass(frozen=True)
class Shown:
    """The model of a Space.

    model_id: what MODEL_ID is to be. preload: entry of preload_from_hub. files: of a model that goes into the Space.
    said: lines for whoever deploys it. words: whether it reads words, for which the Space needs transformers.
    """

    model_id: str | None
    title: str
    on_hub: bool = False
    private: bool = False
    preload: str | None = None
    datasets: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    words: bool = False


def deploy_space(
    space_id: str,
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    title: str | None = None,
    hardware: str | None = None,
    zero_gpu: bool = False,
    secrets: Sequence[str] = (),
    limits: RetryLimits = USUAL,
    quiet: bool = False,
) -> str:
    """Make a Space that shows a model, or bring one up to date; nothing is committed where nothing has changed.

    Args:
        space_id: name/space, or a Space of the token's owner.
        model: Hub id, which the Space fetches; or a folder, which is uploaded with it; None is the embedded model.
        revision: branch, tag or commit of a Hub id; None follows its main branch.
        private: True makes a new Space private, and refuses one that exists and is public. None is what the settings
            of a run's folder say, or else the account's default.
        token: None is the one that is logged in with.
        title: of the page of the Space; None is made of the model's name.
        hardware: that a new Space asks for, such as t4-small; None is the free one.
        zero_gpu: the hardware, requirements and Python version of ZeroGPU.
        secrets: names of environment variables that become secrets of the Space, HF_TOKEN for one; none by itself.
        limits: how long to try.
        quiet: no progress bars.

    Returns:
        The Space's address.

    Raises:
        UserError: if the model cannot be shown, a Space of that name is another app, or the Hub refuses.
    """
    options = {"revision": revision, "private": private, "token": token, "title": title, "hardware": hardware}
    options |= {"zero_gpu": zero_gpu, "secrets": secrets, "limits": limits}
    with prepared_space(space_id, model, **options) as (upload, advice):
        url = send(upload, token, quiet=quiet)["url"]
    for line in advice:
        warnings.warn(line, stacklevel=2)
    return url


@contextlib.contextmanager
def prepared_space(
    space_id: str,
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    title: str | None = None,
    hardware: str | None = None,
    zero_gpu: bool = False,
    secrets: Sequence[str] = (),
    limits: RetryLimits = USUAL,
) -> Iterator[tuple[Upload, list[str]]]:
    """The upload that ``deploy_space`` sends, and lines of advice; its files exist as long as the context lasts."""
    refuse_bad_id(space_id)
    if not (CHECKOUT / "app.py").is_file():
        raise UserError("app.py is not beside the package: deploy-space takes it from a checkout of the repository.")
    if zero_gpu and hardware not in (None, ZERO_GPU["hardware"]):
        raise UserError(f"--zero-gpu is hardware of its own; {hardware} would be another: give one of both.")
    hardware = ZERO_GPU["hardware"] if zero_gpu else hardware
    zero_gpu = hardware == ZERO_GPU["hardware"]
    values = _secrets(secrets)
    with tempfile.TemporaryDirectory(prefix="ddpm-hf-space-") as temporary:
        shown = _shown(model, revision, token, Path(temporary))
        if private is None and model is not None and not shown.on_hub:
            private = is_private_run(Path(model)) or None  # its weights go into the Space
        written = {
            "README.md": space_card(shown, space_id, title=title, hardware=hardware or FREE, revision=revision),
            "requirements.txt": space_requirements(zero_gpu) + "transformers\n" * shown.words,
        }
        package, left_out = _package_files()
        own = {name: CHECKOUT / name for name in ("app.py", "README.md", "requirements.txt")}
        refuse_links_out({**package, **own}, CHECKOUT)
        files = {"app.py": own["app.py"], **package, **shown.files}
        for name, text in written.items():
            files[name] = Path(temporary) / name
            files[name].write_text(text, encoding="utf-8")
        upload = Upload(
            space_id,
            {name: str(path) for name, path in sorted(files.items())},
            f"Show {shown.title}",
            stale=_stale(),
            repo_type="space",
            private=private,
            space_sdk="gradio",
            marker=("ddpm_hf/__init__.py", MADE_WITH),
            variables={"MODEL_ID": shown.model_id, "MODEL_REVISION": revision},
            secrets=values,
            hardware=hardware,
            limits=limits,
        )
        check_upload(upload, token)
        yield upload, [*left_out, *_advice(shown, values)]


def static_space(
    space_id: str, page: Path, title: str, model_id: str | None, private: bool | None, limits: RetryLimits = USUAL
) -> Upload:
    """The upload of a page of ``export-web``, which runs its model in the visitor's browser.

    Args:
        page: folder of the page; its README.md is written.
        model_id: of a model of the Hub, for the Space's card.

    Raises:
        UserError: if a Space of that name is another app.
    """
    refuse_bad_id(space_id)
    front = {"title": title, "emoji": "🎲", "colorFrom": "blue", "colorTo": "indigo", "sdk": "static", "pinned": False}
    # with these, the browser gives the page all its threads
    isolated = {"cross-origin-embedder-policy": "require-corp", "cross-origin-opener-policy": "same-origin"}
    front |= {"custom_headers": isolated | {"cross-origin-resource-policy": "cross-origin"}}
    front |= {"models": [model_id]} if model_id else {}
    (page / "README.md").write_text(
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n# {title}\n\n"
        f"The model runs in your browser.\n\n{MADE_WITH} --static --space-id {space_id}`, which also brings it up to "
        f"date.\n",
        encoding="utf-8",
    )
    names = [path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()]
    upload = Upload(
        space_id,
        {name: str(page / name) for name in sorted(names)},
        f"Show {title}",
        stale=list(WEB.names),
        repo_type="space",
        private=private,
        space_sdk="static",
        marker=("sampler.js", MADE_WITH),
        limits=limits,
    )
    check_upload(upload)
    return upload


# ---- the model


def _shown(model: str | Path | None, revision: str | None, token: str | None, scratch: Path) -> Shown:
    """What a Space is to show, looked at before anything is uploaded.

    Raises:
        UserError: if there is no such model, or the app could not load it there, where no code of a model is run.
    """
    from ddpm_hf.hub.loading import EMBEDDED_MODEL, is_hub_id

    if model is not None and is_hub_id(model):
        return _on_hub(str(model), revision, token)
    if revision is not None:
        raise UserError(f"--revision is for a model of the Hub; {model} is none.")
    if model is not None:
        files, said = _model_files(Path(model), scratch, IN_SPACE)
        words = any(name.startswith(f"{IN_SPACE}/text_encoder/") for name in files)
        return Shown(IN_SPACE, Path(model).resolve().name, files=files, said=said, words=words)
    files, said = _model_files(EMBEDDED_MODEL, scratch, EMBEDDED_MODEL.relative_to(CHECKOUT).as_posix())
    return Shown(None, EMBEDDED_MODEL.name, files={**files, EXAMPLES: CHECKOUT / EXAMPLES}, said=said)


def _model_files(folder: Path, scratch: Path, where: str) -> tuple[dict[str, Path], list[str]]:
    """The files of a model, to be in ``where`` of the Space, and what is to be said of them."""
    from ddpm_hf.hub.loading import check_classes

    contents = run_files_of(folder)
    check_classes(contents.index, folder)
    if not _matching(contents.files, weight_files()):
        raise UserError(f"model {folder} has no safetensors weights; a Space loads no others.")
    files = frozen_upload_of(contents, "a/model", scratch).files  # as a push would send them
    names = _matching(files, [*OF_MODEL, *weight_files()])
    return {f"{where}/{name}": Path(files[name]) for name in names}, contents.said


def _on_hub(repo_id: str, revision: str | None, token: str | None) -> Shown:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    api = HfApi(token=token)
    try:
        again(lambda: look_at(repo_id, revision, token, LIMITS), LIMITS)
        info = again(lambda: api.model_info(repo_id, revision=revision, timeout=LIMITS.silence), LIMITS)
        files = [
            Path(again(lambda name=name: api.hf_hub_download(repo_id, name, revision=info.sha), LIMITS))
            for name in OF_MODEL[:3]
        ]
        names = _matching([sibling.rfilename for sibling in info.siblings], weight_files()[:2])
        names = [name for name in names if name == weight_files()[0]] or names  # whole, or in parts
        if not 0 < len(names) <= MOST_PARTS:
            raise UserError(f"model {repo_id} has no safetensors weights, or too many; a Space loads no others.")
        found = {}
        for name in names:
            header = again(
                lambda name=name: api.parse_safetensors_file_metadata(repo_id, name, revision=info.sha), LIMITS
            )
            found |= {key: Weight(str(tensor.dtype), tuple(tensor.shape)) for key, tensor in header.tensors.items()}
    except HFValidationError:
        raise UserError(f"{repo_id!r} is neither a folder here nor a Hub id such as name/model.") from None
    except EntryNotFoundError as error:
        name = next((name for name in OF_MODEL if name in str(error)), "all files of a model")
        raise UserError(f"model {repo_id} has no {name}: it is not an exported pipeline.") from None
    except Exception as error:
        raise refusal(error, repo_id, revision) from None
    _refuse_what_does_not_load(repo_id, files, found)
    data = (info.card_data or {}).get("datasets") or []
    return Shown(
        repo_id,
        repo_id.split("/")[-1],
        on_hub=True,
        private=bool(info.private or info.gated),
        preload=repo_id if revision is None else _preloaded(info),
        datasets=[data] if isinstance(data, str) else list(data),
        words=bool(read_object(files[0], repo_id).get("text_encoder")),
    )


def _refuse_what_does_not_load(repo_id: str, files: Sequence[Path], found: dict[str, Weight]):
    """Raise a UserError unless settings and weights of a model of the Hub go together, as ``load_pipeline`` would.

    Args:
        files: the model's index, and the settings of its network and of its scheduler.
        found: its weights, by the headers of their files.
    """
    from ddpm_hf.hub.loading import check_classes, check_settings, check_weights, network_without_weights

    index, network, process = (read_object(file, repo_id) for file in files)
    unet_class, _ = check_classes(index, repo_id)
    try:
        check_settings(network, process)
        check_weights(found, network_without_weights(unet_class, network))
    except Exception as error:  # of any network that cannot be built
        raise UserError(f"model {repo_id} cannot be loaded: {one_line(error)}") from None


def _preloaded(info) -> str:
    """An entry of preload_from_hub for a commit, "id file,file commit"; the Hub takes a commit with files alone."""
    names = [sibling.rfilename for sibling in info.siblings if not re.search(r"[\s,]", sibling.rfilename)]
    return f"{info.id} {','.join(_matching(names, [*FETCHED, *weight_files(), *encoder_files()]))} {info.sha}"


def _matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


# ---- the files


def _package_files() -> tuple[dict[str, Path], list[str]]:
    """The package's own files, and lines on files that look like them and are left out.

    In a git repository these are the tracked files, so that local settings and notes stay where they are.
    """
    paths = (path for pattern in OF_PACKAGE for path in (CHECKOUT / "ddpm_hf").glob(pattern))
    names = {path.relative_to(CHECKOUT).as_posix() for path in paths}
    names = {name for name in names if not re.search(r"(^|/)[.]", name)}
    tracked = _tracked("ddpm_hf")
    left = sorted(names - tracked) if tracked else []
    said = [f"left out, because git does not track them: {', '.join(left)}"] if left else []
    return {name: CHECKOUT / name for name in sorted(names - set(left))}, said


def _tracked(folder: str) -> set[str]:
    """Files in a folder of the checkout that git tracks; none where the checkout is no git repository."""
    if not (CHECKOUT / ".git").exists():
        return set()
    command = ["git", "ls-files", "-z", "--", folder]
    try:
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return set()
    return set(os.fsdecode(done.stdout).split("\0")) - {""}


def _stale() -> list[str]:
    """Patterns of what an earlier deployment put into a Space; other files there are its owner's."""
    from ddpm_hf.hub.loading import EMBEDDED_MODEL

    models = (IN_SPACE, EMBEDDED_MODEL.relative_to(CHECKOUT).as_posix())
    of_models = [f"{folder}/{name}" for folder in models for name in (*OF_MODEL, *weight_files())]
    return [*(f"ddpm_hf/*{suffix}" for suffix in OF_PACKAGE), *of_models, EXAMPLES]


def space_requirements(zero_gpu: bool = False) -> str:
    """requirements.txt of a Space: the repository's own without what the app does not need."""
    lines = [] if not zero_gpu else ["spaces"]
    for line in (CHECKOUT / "requirements.txt").read_text().splitlines():
        name = re.match(r"[\w.-]*", line)[0].lower().replace("_", "-")
        if name and name not in NOT_OF_SPACE:
            lines.append(ZERO_GPU["torch"] if zero_gpu and name == "torch" else line)
    return "\n".join(lines) + "\n"


def space_card(
    shown: Shown, space_id: str, *, title: str | None = None, hardware: str = FREE, revision: str | None = None
) -> str:
    """README.md of a Space: the repository's own front matter, made that of the model, and what it shows."""
    zero_gpu = hardware == ZERO_GPU["hardware"]
    front = front_matter((CHECKOUT / "README.md").read_text(encoding="utf-8"))
    front |= {"title": title or shown.title, "suggested_hardware": hardware}
    if zero_gpu:
        front["python_version"] = ZERO_GPU["python"]
    if shown.on_hub:
        front["models"] = [shown.model_id]
        if not shown.private:  # a Space is built without its owner's rights
            front["preload_from_hub"] = [shown.preload]
    if shown.datasets:
        front["datasets"] = shown.datasets
    what = f"[{shown.model_id}](https://huggingface.co/{shown.model_id})" if shown.on_hub else shown.title
    options = [f"--space-id {space_id}"]
    if shown.model_id is not None:
        options += [f"--model {shown.model_id if shown.on_hub else 'FOLDER'}"]
    options += [f"--revision {revision}"] * (revision is not None)
    options += ["--zero-gpu"] * zero_gpu
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n"
        f"# {front['title']}\n\n"
        f"Watch {what} turn noise into pictures, step by step; programs call `/generate`.\n\n"
        f"{MADE_WITH} {' '.join(options)}`, which also brings it up to date.\n"
    )


def front_matter(text: str) -> dict:
    """The YAML at the start of a README."""
    return yaml.safe_load(re.match(r"---\n(.*?\n)---\n", text, flags=re.DOTALL)[1])


# ---- the Space


def _advice(shown: Shown, secrets: dict[str, str]) -> list[str]:
    if not shown.private or "HF_TOKEN" in secrets:
        return shown.said
    return [
        *shown.said,
        f"{shown.model_id} is not public: the Space needs a token that may read it. Set HF_TOKEN to one that may only "
        f"read, and deploy again with --secret HF_TOKEN.",
    ]


def _secrets(names: Sequence[str]) -> dict[str, str]:
    """Values of environment variables. No error shows a name that may be a secret, given by mistake."""
    values = {}
    for number, name in enumerate(names, 1):
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UserError("--secret takes the name of an environment variable, such as HF_TOKEN, not the secret.")
        if not os.environ.get(name):
            shown = name if re.fullmatch(r"[A-Z_]{1,40}", name) else f"number {number}"
            raise UserError(
                f"--secret {shown}: the environment variable of that name is not set; it takes the name of one that "
                "holds the secret."
            )
        values[name] = os.environ[name]
    return values
