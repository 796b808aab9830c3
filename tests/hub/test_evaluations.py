"""Reports of evaluate beside a model: those of its weights are in its card, others are named and left out."""

import json
from pathlib import Path

import pytest
from example_runs import EVALUATION, FACTS, a_run, card_of
from helpers import tiny_pipeline
from huggingface_hub import ModelCard
from PIL import Image

from ddpm_hf import samplers
from ddpm_hf.checkpoints import write_checkpoint
from ddpm_hf.hub import card, export_pipeline, push
from ddpm_hf.hub.run_files import run_files_of
from ddpm_hf.run import weights_digest

pytestmark = pytest.mark.usefixtures("uploads_here")


def test_the_sampler_of_a_card_is_the_one_of_models_without_their_own():
    default = samplers.SAMPLERS[samplers.DEFAULT_SAMPLER]
    assert default.settings == card.SAMPLER
    assert default.scheduler_class.__name__ == "DPMSolverMultistepScheduler"
    assert card.STEPS == samplers.DEFAULT_STEPS
    assert f'"{samplers.DEFAULT_SAMPLER}"' in card.TEMPLATE.read_text()


def signed(folder: Path, **protocol) -> str:
    """A report of the weights in the pipeline ``folder``."""
    digest = weights_digest(folder / "unet")
    return json.dumps({**EVALUATION, "protocol": {**EVALUATION["protocol"], "weights_sha256": digest, **protocol}})


def test_scores_of_other_weights_are_left_out(hub, tmp_path, capfd):
    run = a_run(tmp_path / "run")
    (run / "evaluation.json").write_text(signed(run / "pipeline"))
    for name in ("evaluation-samples.png", "evaluation-neighbours.png"):
        Image.new("L", (8, 8)).save(run / name)
    (run / "evaluation-1000.json").write_text(signed(run / "pipeline", weights_sha256="0" * 64))
    push(run, "alice/m", quiet=True)
    assert card_of(hub).data.metrics == ["fid", "kid"]
    names = set(hub.repos["model", "alice/m"].resolve("main").files)
    assert {"evaluation.json", "evaluation-samples.png", "evaluation-neighbours.png"} <= names
    assert "evaluation-1000.json" not in names
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("evaluation-1000.json is left out: it is of other weights; python -m ddpm_hf evaluate")

    pipeline = tiny_pipeline()
    pipeline.unet.out_conv.bias.data += 1.0
    export_pipeline(run / "pipeline", pipeline)  # trained on
    push(run, "alice/m", quiet=True)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(" is left out")[0] for line in lines] == ["evaluation-1000.json", "evaluation.json"]
    card = card_of(hub)
    assert "metrics" not in card.data.to_dict() and "Evaluation" not in card.text
    names = set(hub.repos["model", "alice/m"].resolve("main").files)
    assert not [name for name in names if name.startswith("evaluation")]  # nor what was pushed of the weights before


def test_figures_without_their_report_are_left_out(tmp_path):
    folder = export_pipeline(tmp_path / "model", tiny_pipeline())
    for name in ("evaluation-samples.png", "evaluation-a-neighbours.png", "evaluation-b-samples.png", "loss.png"):
        Image.new("L", (8, 8)).save(folder / name)
    (folder / "evaluation-b.json").write_text(signed(folder))
    contents = run_files_of(folder)
    assert [name for name in contents.files if name.endswith(".png")] == ["evaluation-b-samples.png", "loss.png"]
    assert contents.said == [] and contents.evaluation is None


def test_weights_in_several_files_and_variants_have_a_digest_too(tmp_path):
    whole, split, both = (tmp_path / name for name in ("whole", "split", "both"))
    pipeline = tiny_pipeline()
    export_pipeline(whole, pipeline)
    export_pipeline(both, pipeline, fp16_variant=True)
    export_pipeline(split, pipeline, max_shard_size="20KB")
    assert weights_digest(whole / "unet") == weights_digest(both / "unet")
    assert len(list(split.glob("unet/*.safetensors"))) > 1
    before = weights_digest(split / "unet")
    assert before not in (None, weights_digest(whole / "unet"))
    next(split.glob("unet/*-00001-of-*")).write_bytes(b"other")
    assert weights_digest(split / "unet") != before
    assert weights_digest(tmp_path) is None


def test_an_older_report_says_that_it_may_be_of_others(hub, tmp_path, capfd):
    run = a_run(tmp_path / "run")
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    push(run, "alice/m", quiet=True)
    expected = "evaluation.json does not say which weights it is of; it is taken to be of these.\n"
    assert capfd.readouterr().err == expected
    assert card_of(hub).data.metrics == ["fid", "kid"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "it is not JSON"),
        ("[1]", "it is not a JSON object"),
        ('{"scores": {"fid": 1}}', "protocol: field required"),
        ('{"protocol": {"num_images": 5, "reference_images": 5, "features": "x"}}', "scores: field required"),
        (json.dumps({**EVALUATION, "floor": 3}), "floor: input should be a valid dictionary or instance of Scores"),
        (json.dumps({**EVALUATION, "findings": "bad"}), "findings: input should be a valid list"),
        (json.dumps({**EVALUATION, "findings": [{}]}), "findings.0: input should be a valid string"),
        (json.dumps({**EVALUATION, "scores": {"fid": "12"}}), "scores.fid: input should be a valid number"),
        (
            json.dumps({**EVALUATION, "memorisation": {"ratio": []}}),
            "memorisation.ratio: input should be a valid number",
        ),
        (json.dumps({**EVALUATION, "protocol": {"reference_images": 1}}), "protocol.num_images: field required"),
        (signed(Path("."), num_images="100"), "protocol.num_images: input should be a valid integer"),
        (signed(Path("."), num_images=float("inf")), "protocol.num_images: input should be a valid integer"),
        (
            signed(Path("."), reference_images=10**400),
            "protocol.reference_images: input should be less than",
        ),
        (signed(Path("."), features=None), "protocol.features: input should be a valid string"),
        (signed(Path("."), command=[1], weights_sha256=""), "protocol.command: input should be a valid string"),
    ],
)
def test_what_is_no_report_is_left_out_and_named(tmp_path, text, said):
    folder = export_pipeline(tmp_path / "model", tiny_pipeline())
    (folder / "evaluation.json").write_text(text)
    contents = run_files_of(folder)
    assert contents.evaluation is None and "evaluation.json" not in contents.files
    (line,) = contents.said
    assert line.startswith(f"evaluation.json is left out: {said}") and ", so it is no report of evaluate; " in line
    card.card_values(contents)


def test_scores_that_are_not_finite_are_left_out(hub, tmp_path):
    run = a_run(tmp_path / "run")
    scores = {"fid": float("nan"), "kid": float("inf"), "precision": 0.5, "recall": 10**400}
    rest = {"floor": {"precision": float("nan")}, "memorisation": {"ratio": float("inf")}}
    (run / "evaluation.json").write_text(json.dumps({**EVALUATION, "scores": scores, **rest}))
    push(run, "alice/m", quiet=True)
    card = card_of(hub)
    assert card.data.metrics == ["precision"] and "| Precision | 0.500 |  |" in card.text
    assert not [word for word in ("| FID", "| KID", "| Recall", "nan", "| inf", "inf times") if word in card.text]


def test_a_checkpoint_has_its_own_scores_and_time(hub, tmp_path, capfd):
    """Not those of the end of the run, which its files are of."""
    run = a_run(tmp_path / "run")
    (run / "facts.json").write_text(json.dumps(FACTS))
    for step, shift in ((600, 1.0), (1200, 0.0)):
        pipeline = tiny_pipeline()
        pipeline.unet.out_conv.bias.data += shift

        def write(part, pipeline=pipeline, step=step):
            export_pipeline(part / "pipeline", pipeline)
            (part / "state.json").write_text(json.dumps({"progress": {"step": step, "wall_seconds": 3.6 * step}}))

        write_checkpoint(run / "checkpoints" / f"step-{step}", write)
    export_pipeline(run / "pipeline", tiny_pipeline())  # its end, written last
    last, first = run / "checkpoints" / "step-1200", run / "checkpoints" / "step-600"
    (run / "metrics.jsonl").write_text('{"step": 600, "loss": 0.5}\n{"step": 1200, "loss": 0.25}\n')

    def pushed(report: str, step: int | None) -> ModelCard:
        (run / "evaluation.json").write_text(report)
        push(run, "alice/m", step=step, quiet=True)
        return card_of(hub)

    of_end = signed(run / "pipeline")
    card = pushed(of_end, None)
    assert "26.5 hours" in card.text and card.data.metrics and "0.2500" in card.text
    card = pushed(of_end, 600)
    assert "0.6 hours of training on 2 x GPU 9000" in card.text and "600 steps" in card.text
    assert "metrics" not in card.data.to_dict()
    assert "evaluation.json is left out: it is of other weights" in capfd.readouterr().err
    card = pushed(signed(first / "pipeline"), 600)
    assert card.data.metrics == ["fid", "kid"]
    card = pushed(json.dumps(EVALUATION), 600)
    assert "metrics" not in card.data.to_dict()
    assert "it does not say of which checkpoint it is" in capfd.readouterr().err
    card = pushed(json.dumps(EVALUATION), 1200)  # the weights of the end
    assert card.data.metrics == ["fid", "kid"] and "1.2 hours" in card.text
    assert weights_digest(last / "pipeline" / "unet") == weights_digest(run / "pipeline" / "unet")
