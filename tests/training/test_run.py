"""A run from its start to its export: what it writes, how it averages, and what it refuses."""

import math

import pytest
import torch
import yaml
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from tiny_runs import TINY, metrics, tiny_run, tiny_trainer

from ddpm_hf.config import TrainConfig
from ddpm_hf.errors import UserError
from ddpm_hf.hub import load_pipeline


def test_a_run_writes_what_it_promises(tmp_path, real_report):
    run = tmp_path / "run"
    trainer = tiny_run(run)
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.yaml", "checkpoints", "metrics.jsonl", "samples", "pipeline", "loss.png", "report.html"}
    assert not [name for name in names - {".lock"} if name.startswith(".")]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-8", "step-12"}
    assert {path.name for path in (run / "samples").iterdir()} == {"step-0000006.png", "step-0000012.png"}
    saved = set(yaml.safe_load((run / "config.yaml").read_text()))
    assert saved == set(TrainConfig.model_fields) - {"resume", "dry_run"}
    lines = metrics(run)
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert lines[-1]["images_seen"] == 96
    assert {"loss", "lr", "images_per_second", "epoch", "grad_norm", "skipped_steps"} <= set(lines[0])
    assert ["validation_loss" in line for line in lines] == [False, True, False, True]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)

    exported = load_pipeline(run)
    (average,) = trainer.state.averages.values()
    averaged = dict(zip((name for name, _ in trainer.state.unet.named_parameters()), average.shadow_params))
    assert all(torch.equal(parameter, averaged[name]) for name, parameter in exported.unet.named_parameters())
    raw = dict(trainer.state.unet.named_parameters())
    assert not torch.equal(exported.unet.out_conv.weight, raw["out_conv.weight"])
    assert exported.config.id2label["8"] == "Bag"
    image = exported(1, 3, num_inference_steps=2, seed=0).images[0]
    assert (image.mode, image.size) == ("L", (28, 28))


def test_the_averages_are_the_recurrence(tmp_path):
    """e <- d e + (1 - d) w with d = min(1 - (1 + step)^-power, max), written out, for two maxima at once."""
    trainer = tiny_trainer(tmp_path, ema_power=0.6, ema_max_decay=[0.9999, 0.5])
    names = [name for name, _ in trainer.state.unet.named_parameters()]
    parameter = dict(trainer.state.unet.named_parameters())["out_conv.weight"]
    expected = {"0.9999": parameter.detach().clone(), "0.5": parameter.detach().clone()}
    for step in range(5):
        trainer.train_step()
        for name in expected:
            decay = min(1 - (1 + step) ** -0.6, float(name))
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
    index = names.index("out_conv.weight")
    for name, average in trainer.state.averages.items():
        assert (average.shadow_params[index] - expected[name]).abs().max() < 1e-6
    assert (expected["0.9999"] - expected["0.5"]).abs().max() > 1e-5


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradient_is_the_batchs(tmp_path, parts):
    """Noise and timesteps belong to the images of a batch, so its parts' gradients add up to that of the whole."""
    steps = []
    for count in (1, parts):
        settings = {"gradient_accumulation_steps": count, "mixed_precision": "no", "max_grad_norm": 1e9}
        trainer = tiny_trainer(tmp_path / str(count), **settings)
        gradients = []
        trainer.state.optimizer.optimizer.register_step_pre_hook(
            lambda optimizer, *_, into=gradients: into.extend(
                p.grad.clone() for group in optimizer.param_groups for p in group["params"] if p.grad is not None
            )
        )
        trainer.train_step()
        steps.append((trainer.state.progress.loss_sum, gradients))
    (loss, whole), (parts_loss, added) = steps
    assert parts_loss == pytest.approx(loss, rel=1e-4)
    assert max((a - b).abs().max() for a, b in zip(whole, added, strict=True)) < 1e-5


def test_a_finished_run_is_only_exported_again(tmp_path, finished_run):
    finished_run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    tiny_run(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_its_pipeline_is_what_saving_it_again_writes(tmp_path, finished_run):
    """To the byte; and so is what push sends, and export_pipeline writes (tests/habits/test_saving.py)."""
    exported = finished_run(tmp_path / "run") / "pipeline"
    load_pipeline(exported).save_pretrained(tmp_path / "saved")
    files = {path.relative_to(exported): path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    saved = {path.relative_to(tmp_path / "saved"): path.read_bytes() for path in (tmp_path / "saved").rglob("*.*")}
    assert saved == files and len(files) == 7  # three of code, three of settings, the weights


def test_all_ranks_take_the_precision_that_the_main_one_found(tmp_path, monkeypatch):
    """On a CPU it is measured; on a busy one, ranks measured differently, and trained in two precisions."""
    import ddpm_hf.training.distributed as distributed

    monkeypatch.setattr(distributed, "best_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(distributed, "bf16_is_faster", lambda: True)
    assert tiny_trainer(tmp_path, mixed_precision="auto").accelerator.mixed_precision == "bf16"
    AcceleratorState._reset_state(True)
    monkeypatch.setattr(distributed, "broadcast_object_list", lambda found: [{"bf16": "no"}[found[0]]])
    assert tiny_trainer(tmp_path, mixed_precision="auto").accelerator.mixed_precision == "no"


@pytest.mark.parametrize(
    "settings",
    [
        {"block_out_channels": [64]},
        {"norm_num_groups": 7},
        {"attention_levels": [9]},
        {"time_embed_dim": 7},
        {"block_out_channels": [0, 8]},
        {"num_attention_heads": 3, "attention_levels": [0]},
        {"train_batch_size": 9, "gradient_accumulation_steps": 2},
        {"mixed_precision": "fp16"},
        {"report_to": "wandb"},
        {"model": "unet2d", "class_conditional": False, "attention_levels": [9]},
        {"model": "unet2d", "class_conditional": False, "norm_num_groups": 7},
        {"model": "unet2d", "class_conditional": False, "attention_levels": [0], "num_attention_heads": 3},
    ],
    ids=str,
)
def test_settings_that_do_not_fit_leave_nothing_behind(tmp_path, settings):
    with pytest.raises(UserError) as error:
        tiny_run(tmp_path / "run", **settings)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


# ---- steps that must not be taken


def poison(trainer, steps: set[int], value: float):
    """Multiply the loss of some steps."""
    whole = trainer.step.loss

    def loss(*arguments):
        loss, error = whole(*arguments)
        factor = value if trainer.state.step in steps else 1.0
        return loss * factor, error * factor

    trainer.step.loss = loss


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e4])
def test_a_step_that_explodes_is_skipped_and_counted(tmp_path, value):
    trainer = tiny_trainer(tmp_path)
    poison(trainer, {7, 8}, value)
    trainer.train()
    lines = metrics(tmp_path)
    assert [line["skipped_steps"] for line in lines] == [0, 0, 2, 2]
    assert all(math.isfinite(line["loss"]) and line["loss"] < 10 for line in lines)
    assert all(torch.isfinite(parameter).all() for parameter in trainer.state.unet.parameters())
    (average,) = trainer.state.averages.values()
    assert average.optimization_step == 10


def test_a_skipped_step_changes_nothing(tmp_path):
    trainer = tiny_trainer(tmp_path)
    for _ in range(3):
        trainer.train_step()
    before = {name: tensor.clone() for name, tensor in trainer.state.unet.state_dict().items()}
    (average,) = trainer.state.averages.values()
    shadow = [tensor.clone() for tensor in average.shadow_params]
    poison(trainer, {3}, math.nan)
    trainer.train_step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.state.unet.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(average.shadow_params, shadow))
    assert (trainer.state.step, trainer.state.progress.skipped_steps) == (4, 1)


def test_a_loss_that_stays_bad_ends_the_run_and_keeps_the_last_good_state(tmp_path):
    trainer = tiny_trainer(tmp_path, max_bad_steps=3)
    poison(trainer, set(range(6, 12)), math.nan)
    with pytest.raises(UserError, match=r"for 4 steps in a row .*last good state is .*step-4; go on with a lower"):
        trainer.train()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-4"]  # none of step 8
    resumed = tiny_run(tmp_path, max_bad_steps=3)
    assert (resumed.state.step, resumed.state.progress.skipped_steps) == (12, 0)


def test_a_run_that_ends_with_broken_weights_says_so(tmp_path):
    trainer = tiny_trainer(tmp_path)
    step = trainer.train_step

    def spoil():
        if trainer.state.step == 10:
            for parameter in trainer.state.unet.parameters():
                parameter.data.fill_(math.nan)
        step()

    trainer.train_step = spoil
    with pytest.raises(UserError, match=r"the last good state is .*step-8"):
        trainer.train()
    assert not (tmp_path / "pipeline").exists()


def test_a_loss_scale_that_skips_a_step_is_counted_and_restored(tmp_path):
    """fp16's scaler, here on the CPU with a scale that overflows once: no step, no average, no bad step."""
    trainer = tiny_trainer(tmp_path, mixed_precision="no")
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38, backoff_factor=1e-36)
    trainer.accelerator.scaler = trainer.state.scaler = scaler
    trainer.state.optimizer = AcceleratedOptimizer(trainer.state.optimizer.optimizer, scaler=scaler)
    # what Accelerate does before it clips, in fp16 only
    trainer.accelerator.unscale_gradients = lambda: scaler.unscale_(trainer.state.optimizer.optimizer)
    poison(trainer, {0}, 1e3)  # a large gradient, that the scale makes infinite
    before = trainer.state.unet.out_conv.weight.clone()
    trainer.train_step()
    progress = trainer.state.progress
    assert torch.equal(trainer.state.unet.out_conv.weight, before)
    assert (progress.skipped_steps, progress.bad_steps, progress.good_steps) == (1, 0, 0)
    trainer.train_step()
    assert not torch.equal(trainer.state.unet.out_conv.weight, before)
    assert (progress.skipped_steps, progress.good_steps) == (1, 1)

    trainer.config.save(tmp_path / "config.yaml")
    trainer.save()
    AcceleratorState._reset_state(True)
    again = tiny_trainer(tmp_path, mixed_precision="no")
    again.state.scaler = torch.amp.GradScaler("cpu", init_scale=7.0)
    again.state.load(tmp_path / "checkpoints" / "step-2")
    assert again.state.scaler.get_scale() == scaler.get_scale() != 7.0


def test_a_batch_is_that_of_its_step_whatever_was_fetched_ahead(tmp_path):
    feed = tiny_trainer(tmp_path).batches
    first = feed.batch(0)[0]
    feed.batch(40)
    assert torch.equal(feed.batch(0)[0], first)
    assert torch.equal(feed.batch(8)[0], feed.data.take(feed.share_of(8))[0])


def test_settings_that_do_nothing_are_told(tmp_path, capsys):
    tiny_run(tmp_path, model="unet2d", class_conditional=False, residual=True, max_train_steps=1)
    assert "residual, time_embed_dim are settings of model my_unet" in capsys.readouterr().out


def test_a_file_in_the_way_of_the_pipeline_is_found_before_training(tmp_path):
    (tmp_path / "pipeline").write_text("mine")
    with pytest.raises(UserError, match="pipeline is in the way"):
        tiny_trainer(tmp_path)


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    trainer = tiny_trainer(tmp_path, max_bad_steps=0)
    poison(trainer, {1}, math.inf)
    with pytest.raises(UserError, match=r"no checkpoint yet; start with a lower learning_rate than 0\.001\."):
        trainer.train()


def test_tiny_is_what_the_tests_think(tmp_path):
    """The intervals of TINY fall on different steps, so that every order of events is met."""
    assert TINY["max_train_steps"] % TINY["checkpointing_steps"] == 0
    assert TINY["logging_steps"] != TINY["checkpointing_steps"] != TINY["validation_steps"]
