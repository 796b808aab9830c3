"""Reports of ``evaluate`` that lie beside a model: which of them are of its weights, and are what they should be."""

import fnmatch
import hashlib
import json
import math
import re
from pathlib import Path

REPORTS = "evaluation*.json"
FIGURES = ("samples", "neighbours")  # that a report has beside it, as NAME-samples.png
DIGEST = "weights_sha256"  # in the protocol of a report


def weights_digest(unet: Path) -> str | None:
    """What tells weights from others: the SHA-256 of their file, as sha256sum and the Hub show it.

    Of weights in several files it is that of the files' digests, one a line, in the order of their names.

    Args:
        unet: folder of the network; None is returned where there are no safetensors weights in it.
    """
    files = sorted(unet.glob("diffusion_pytorch_model*.safetensors"))
    files = [path for path in files if path.name.count(".") == 1]  # a variant has its name in between
    digests = [_sha256(path) for path in files]
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def fitting_reports(
    files: dict[str, Path], unet: Path, unet_at_the_end: Path | None = None
) -> tuple[dict[str, Path], dict, list[str]]:
    """``files`` without the reports that are not of these weights or are no reports, and without figures of none.

    Args:
        files: name -> path.
        unet: folder of the weights that they are to be of.
        unet_at_the_end: of a checkpoint's run. A report that does not say which weights it is of is taken for one of
            these, so it is left out where they are others; None: they are the same.

    Returns:
        The files, what evaluation.json says ({} if it is none of them), and a line for each report that is left out
        or may be of other weights.
    """
    kept, said, report = dict(files), [], {}
    names = [name for name in files if fnmatch.fnmatchcase(name, REPORTS)]
    digest = weights_digest(unet) if names else None
    unsigned = not names or unet_at_the_end is None or weights_digest(unet_at_the_end) == digest
    for name in names:
        values, problem = _read(files[name])
        of = None if problem else values["protocol"].get(DIGEST)
        if problem:
            problem = f"{problem}, so it is no report of evaluate"
        elif of is not None and of != digest:
            problem = "it is of other weights"
        elif of is None and not unsigned:
            problem = "it does not say of which checkpoint it is"
        if problem:
            said.append(f"{name} is left out: {problem}; python -m ddpm_hf evaluate writes it anew.")
            del kept[name]
            continue
        if of is None:
            said.append(f"{name} does not say which weights it is of; it is taken to be of these.")
        if name == "evaluation.json":
            report = values
    return {name: path for name, path in kept.items() if _report_of(name) in (None, *kept)}, report, said


def _report_of(name: str) -> str | None:
    """The report that a figure belongs to; None for what is no such figure."""
    found = re.fullmatch(rf"(evaluation[^/]*)-({'|'.join(FIGURES)})\.png", name)
    return found and f"{found[1]}.json"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ---- what a report has to be

PARTS = {"protocol": dict, "scores": dict, "floor": dict, "memorisation": dict, "findings": list}
NEEDED = ("protocol", "scores")
NUMBERS = ("scores", "floor", "memorisation")  # hold nothing else
COUNTS = ("num_images", "reference_images")  # of the protocol
TEXTS = ("features", "dataset", "sampler", "command", DIGEST)


def is_finite(value) -> bool:
    """Whether it is a number that can be shown."""
    try:
        return _is_number(value) and math.isfinite(value)
    except OverflowError:  # JSON has whole numbers of any size
        return False


def _read(path: Path) -> tuple[dict, str | None]:
    """What a report says, and the first thing that is wrong with it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}, "it is not JSON"
    return values, _problem(values)


def _problem(values) -> str | None:
    if not isinstance(values, dict):
        return "it holds no object"
    for name, kind in PARTS.items():
        if not isinstance(values.get(name, None if name in NEEDED else kind()), kind):
            return f"{name} is no {'list' if kind is list else 'object'}"
    for name in COUNTS:
        count = values["protocol"].get(name)
        if not (is_finite(count) and count == int(count) >= 1):
            return f"protocol.{name} is no number of images"
    for name in TEXTS:
        if not isinstance(values["protocol"].get(name, None if name == "features" else ""), str):
            return f"protocol.{name} is no text"
    for part in NUMBERS:
        for name, value in values.get(part, {}).items():
            if value is not None and not _is_number(value):
                return f"{part}.{name} is no number"
    if not all(isinstance(finding, str) for finding in values.get("findings", ())):
        return "findings holds something else than texts"
    return None


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
