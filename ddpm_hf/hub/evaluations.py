"""Reports of ``evaluate`` that lie beside a model: which of them are of its weights."""

import fnmatch
import re
from pathlib import Path

from ddpm_hf.evaluation.report_schema import WEIGHTS_DIGEST, EvaluationReport, read_report
from ddpm_hf.run import weights_digest

REPORTS = "evaluation*.json"
FIGURES = ("samples", "neighbours")  # that a report has beside it, as NAME-samples.png


def fitting_reports(
    files: dict[str, Path], unet: Path, unet_at_the_end: Path | None = None
) -> tuple[dict[str, Path], EvaluationReport | None, list[str]]:
    """``files`` without the reports that are not of these weights or are no reports, and without figures of none.

    Args:
        files: name -> path.
        unet: folder of the weights that they are to be of.
        unet_at_the_end: of a checkpoint's run. A report that does not say which weights it is of is taken for one of
            these, so it is left out where they are others; None: they are the same.

    Returns:
        The files, evaluation.json if it is among them, and a line for each report that is left out or may be of other
        weights.
    """
    kept, said, evaluation = dict(files), [], None
    names = [name for name in files if fnmatch.fnmatchcase(name, REPORTS)]
    digest = weights_digest(unet) if names else None
    unsigned = not names or unet_at_the_end is None or weights_digest(unet_at_the_end) == digest
    for name in names:
        report = problem = None
        try:
            report = read_report(files[name])
        except (OSError, ValueError) as error:
            problem = f"{error}, so it is no report of evaluate"
        of = report and report.protocol.get(WEIGHTS_DIGEST)
        if of is not None and of != digest:
            problem = "it is of other weights"
        elif report and of is None and not unsigned:
            problem = "it does not say of which checkpoint it is"
        if problem:
            said.append(f"{name} is left out: {problem}; python -m ddpm_hf evaluate writes it anew.")
            del kept[name]
            continue
        if of is None:
            said.append(f"{name} does not say which weights it is of; it is taken to be of these.")
        if name == "evaluation.json":
            evaluation = report
    return {name: path for name, path in kept.items() if _report_of(name) in (None, *kept)}, evaluation, said


def _report_of(name: str) -> str | None:
    """The report that a figure belongs to; None for what is no such figure."""
    found = re.fullmatch(rf"(evaluation[^/]*)-({'|'.join(FIGURES)})\.png", name)
    return found and f"{found[1]}.json"
