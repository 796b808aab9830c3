"""``distill``: a student that makes its teacher's pictures in a few steps."""

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from helpers import tiny_pipeline, tiny_unet
from tiny_runs import DATA, assert_same_weights, newest, tiny_run, tiny_trainer

from ddpm_hf.__main__ import main
from ddpm_hf.config import build_config
from ddpm_hf.errors import UserError
from ddpm_hf.hub import export_pipeline, load_pipeline
from ddpm_hf.hub.card import card_values, render_card
from ddpm_hf.hub.run_files import run_files_of
from ddpm_hf.sampling import own_sampling, with_sampler
from ddpm_hf.stopping import StopSignal
from ddpm_hf.training import Trainer
from ddpm_hf.training.distill import Teacher, load_teacher

STUDENT = {"validation_split": None, "max_train_steps": 6, "train_batch_size": 4, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A finished tiny run, by class."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    tiny_run(folder)
    return str(folder)


def with_own_steps(steps: int, **settings):
    pipeline = tiny_pipeline(num_class_embeds=3, num_train_timesteps=20, **settings)
    pipeline.register_to_config(num_inference_steps=steps, guidance_scale=2.0, guidance_interval=[0, 9])
    return pipeline


@pytest.mark.parametrize(("own", "steps", "stride"), [(20, 4, 5), (10, 4, 3), (4, 4, 1), (20, 1, 20)])
def test_a_trajectory_is_what_the_teachers_solver_makes(own, steps, stride):
    pipeline, noise, labels = with_own_steps(own), torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    points = Teacher(pipeline, steps).trajectory(noise, labels)
    options = {"guidance_scale": 2.0, "guidance_interval": (0, 9), "num_inference_steps": steps * stride}
    walked = list(with_sampler(pipeline, "dpm").denoise(2, labels, latents=noise, **options))
    assert len(points) == steps
    assert all(torch.equal(point, walked[stride * (i + 1) - 1].sample) for i, point in enumerate(points))


def test_steps_of_student_and_teacher_are_at_the_same_timesteps():
    teacher = Teacher(with_own_steps(20), 4)
    times = [step.timestep for step in teacher.pipeline.denoise(1, num_inference_steps=20)]
    assert teacher.scheduler.timesteps.tolist() == times[:: teacher.stride] == [19, 14, 9, 4]


def test_a_student_that_is_already_right_has_no_loss():
    """One step of the teacher's solver is one of the student's."""
    pipeline = with_own_steps(1)
    pipeline.register_to_config(guidance_scale=1.0)
    noise, labels = 0.1 * torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    loss, error = Teacher(pipeline, 1).loss(pipeline.unet, noise, labels)
    assert loss < 1e-5 and error < 1e-5


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_an_error_of_x0_counts_alike_at_every_step(kind):
    """A student whose x_0 is off by 0.5 in every pixel has the loss 0.5, wherever the step is."""
    from ddpm_hf.scheduler import MyDDPMScheduler

    pipeline = with_own_steps(4, scheduler=MyDDPMScheduler(20, prediction_type=kind))
    teacher, noise = Teacher(pipeline, 4), torch.randn(2, 1, 8, 8)
    for timestep in teacher.scheduler.timesteps:
        prediction = torch.randn(2, 1, 8, 8)
        signal = teacher.scheduler.alphas_cumprod[timestep] ** 0.5
        off = {"sample": 0.5, "epsilon": -0.5 * signal / (1 - signal**2) ** 0.5}.get(kind)
        if kind == "v_prediction":
            off = -0.5 / (1 - signal**2) ** 0.5
        after = [teacher.scheduler.step(each, timestep, noise).prev_sample for each in (prediction, prediction + off)]
        share = teacher._share_of_x0(int(timestep))
        torch.testing.assert_close((after[1] - after[0]) / share, torch.full_like(noise, 0.5), atol=1e-4, rtol=1e-3)


def test_a_student_learns_and_takes_its_own_few_steps(teacher, tmp_path):
    trainer = tiny_trainer(tmp_path / "s", distill_from=teacher, distill_steps=2, **STUDENT | {"max_train_steps": 40})
    noise, labels = torch.randn(8, 1, 32, 32), torch.arange(8)
    before = trainer.step.teacher.loss(trainer.state.unet, noise, labels)[0].item()
    trainer.train()
    assert trainer.step.teacher.loss(trainer.state.unet, noise, labels)[0].item() < 0.9 * before
    pipeline = load_pipeline(tmp_path / "s")
    assert type(pipeline.scheduler) is DDIMScheduler
    own = own_sampling(pipeline)
    assert (own.sampler, own.steps, own.guidance_scale) == ("ddim", 2, 1.0)
    calls = []
    pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    images = pipeline(batch_size=4, seed=0, output_type="pt").images
    assert len(calls) == 2
    alone = DiffusionPipeline.from_pretrained(tmp_path / "s" / "pipeline", trust_remote_code=True)
    torch.testing.assert_close(alone(batch_size=4, seed=0, output_type="pt").images, images)


def test_a_student_resumes_to_the_bit(teacher, tmp_path):
    settings = {"distill_from": teacher, "checkpointing_steps": 3, **STUDENT}
    tiny_run(tmp_path / "whole", **settings)

    class Stop(StopSignal):
        checks = 0

        def check(self):
            self.checks += 1
            if self.checks == 5:
                self.reason = "SIGTERM"
                raise_stop()

    def raise_stop():
        from ddpm_hf.stopping import StopRequested

        raise StopRequested

    tiny_run(tmp_path / "stopped", Stop(), **settings)
    assert newest(tmp_path / "stopped").name != "step-6"
    tiny_run(tmp_path / "stopped", **settings)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_the_command_takes_network_data_and_classes_from_the_teacher(teacher, tmp_path, capsys):
    out = tmp_path / "student"
    words = ["distill", teacher, "--output_dir", str(out), "--max-train-steps", "2", "--train_batch_size", "4"]
    words += ["--mixed_precision", "no", "--num_samples", "4", "--report_to", "none"]
    assert main(words) == 0
    settings = run_files_of(out).settings
    assert (settings["dataset"], settings["distill_steps"], settings["optimizer"]) == (DATA, 4, "adamw")
    assert settings["block_out_channels"] == [8, 16] and settings["num_train_timesteps"] == 50
    assert len(list((out / "samples").glob("*.png"))) == 1
    card = render_card(card_values(run_files_of(out)), "alice/m")
    assert "distilled from run, which was trained with 50 diffusion steps" in card
    assert "4 steps" in card and "num_inference_steps=" not in card
    student = str(tmp_path / "second")  # of a student
    assert main(["distill", str(out), "--output_dir", student, "--distill_steps", "2", *words[4:]]) == 0
    assert load_pipeline(student).config.num_inference_steps == 2


def test_a_plain_model_has_students_too(tmp_path):
    pipeline = tiny_pipeline(sample_size=32, num_train_timesteps=50, feed_forward_dim=1024, attention_levels=())
    export_pipeline(tmp_path / "m", pipeline)
    settings = {**STUDENT, "class_conditional": False, "distill_from": str(tmp_path / "m")}
    tiny_run(tmp_path / "s", max_train_steps=2, **{k: v for k, v in settings.items() if k != "max_train_steps"})
    assert load_pipeline(tmp_path / "s").config.num_inference_steps == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_out_channels": [8, 8]}, r"its unet has block_out_channels=.*8, 16.*takes over the teacher's settings"),
        ({"prediction_type": "sample"}, "its scheduler has prediction_type=epsilon, the student's has sample"),
        ({"num_train_timesteps": 40}, "num_train_timesteps=50"),
        ({"distill_steps": 51}, r"distill_steps must lie in \[1, 50\], the number of timesteps, got 51"),
        ({"distill_from": "/nowhere"}, "model /nowhere is not there"),
    ],
)
def test_a_student_of_another_kind_is_one_line(teacher, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        tiny_trainer(tmp_path / "s", **{"distill_from": teacher, **STUDENT, **settings})
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("settings", [{"model": "unet2d", "class_conditional": False}, {"init_from": "shipped"}])
def test_settings_that_exclude_each_other(settings):
    with pytest.raises(UserError, match="distill_from"):
        build_config({"dataset": DATA, "distill_from": "m", **settings})


def test_the_command_names_what_is_missing(tmp_path, capsys):
    export_pipeline(tmp_path / "m", tiny_pipeline())
    assert main(["distill", str(tmp_path / "m"), "--output_dir", str(tmp_path / "s")]) == 2
    assert "setting 'dataset' is missing" in capsys.readouterr().err
    assert main(["distill", str(tmp_path / "nothing"), "--output_dir", str(tmp_path / "s")]) == 2
    assert "is not there" in capsys.readouterr().err


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    export_pipeline(tmp_path / "m", tiny_pipeline(num_class_embeds=3))
    unet, scheduler = tiny_unet(num_class_embeds=2), load_pipeline(tmp_path / "m").scheduler
    with pytest.raises(UserError, match="num_class_embeds=3, the student's has 2"):
        load_teacher(str(tmp_path / "m"), 4, unet, scheduler, "cpu")


def test_two_teachers_are_not_confused(teacher, tmp_path):
    """The state is of one teacher: another one is refused when resuming."""
    settings = {"distill_from": teacher, **STUDENT, "max_train_steps": 2}
    tiny_run(tmp_path / "s", **settings)
    with pytest.raises(UserError, match="distill_from="):
        tiny_run(tmp_path / "s", **settings | {"distill_from": str(tmp_path / "s"), "max_train_steps": 2})
    assert isinstance(tiny_trainer(tmp_path / "s", **settings), Trainer)
