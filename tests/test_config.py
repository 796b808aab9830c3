"""TrainConfig and its command line: precedence, types, and what is said of a wrong setting."""

import re

import pytest
import yaml

from ddpm_hf.config import INSTEAD, SAME_AS, TrainConfig, build_config, load_config, settings_from
from ddpm_hf.errors import UserError


def write(path, text):
    path.write_text(text)
    return str(path)


def test_every_preset_in_the_repository_is_valid(root):
    presets = sorted((root / "configs").glob("*.yaml"))
    assert {preset.stem for preset in presets} >= {"fashion_mnist", "fashion_mnist_small", "flowers102", "smoke"}
    for preset in presets:
        load_config(["--config", str(preset)])


@pytest.mark.parametrize(
    ("name", "published"),
    [
        (
            "fashion_mnist",
            {"train_batch_size": 28, "learning_rate": 1e-3, "num_epochs": 20, "num_train_timesteps": 1000},
        ),
        (
            "flowers102",
            {"train_batch_size": 2, "learning_rate": 2e-4, "num_epochs": 10_000, "num_train_timesteps": 500},
        ),
    ],
)
def test_presets_hold_the_seeds_published_settings(root, name, published):
    config = load_config(["--config", str(root / "configs" / f"{name}.yaml")])
    assert {key: getattr(config, key) for key in published} == published
    assert (config.beta_start, config.beta_end, config.block_out_channels) == (1e-4, 0.02, (64, 128, 256, 512))


def test_the_command_line_wins_over_the_file(tmp_path):
    file = write(tmp_path / "a.yaml", "dataset: d\nlearning_rate: 1.0e-4\nseed: 5\n")
    config = load_config(
        ["--config", file, "--learning_rate", "2e-3", "--block_out_channels", "[8, 16]", "--residual=true"]
        + ["--attention_levels", "[1]", "--max_train_steps", "7", "--sample_size", "16"]
    )
    assert (config.learning_rate, config.seed, config.residual) == (2e-3, 5, True)
    assert (config.block_out_channels, config.attention_levels, config.max_train_steps) == ((8, 16), (1,), 7)
    assert load_config(["--config", file, "--max_train_steps", "null"]).max_train_steps is None


def test_a_number_in_a_yaml_string_is_a_number(tmp_path):
    """YAML 1.1 reads 1e-3, without a dot, as text."""
    assert (
        load_config(["--config", write(tmp_path / "a.yaml", "dataset: d\nlearning_rate: 1e-3")]).learning_rate == 1e-3
    )


def test_what_is_saved_builds_the_same_config(tmp_path):
    config = build_config({"dataset": "d", "block_out_channels": [8, 16], "label_names": ["a", "b"], "sample_size": 16})
    config.save(tmp_path / "config.yaml")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert set(saved) == set(TrainConfig.model_fields) - {"resume", "dry_run"}
    assert load_config(["--config", str(tmp_path / "config.yaml")]) == config


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lerning_rate", "1"], "unknown setting '--lerning_rate'; did you mean 'learning_rate'"),
        (["--batch_size=4"], "did you mean 'train_batch_size'"),
        (["--learning_rate", "fast"], "setting 'learning_rate': .*number.* got 'fast'"),
        (["--learning_rate", "nan"], "setting 'learning_rate'.*nan"),
        (["--learning_rate", "-1"], "setting 'learning_rate': .*greater than 0"),
        (["--train_batch_size", "0"], "setting 'train_batch_size': .*greater than or equal to 1"),
        (["--train_batch_size", "2.5"], "setting 'train_batch_size': .*integer"),
        (["--sample_size", "30"], "sample_size=30 is not divisible by 8.*nearest size that works is 32"),
        (
            ["--sample_size", "100", "--patch_size", "4"],
            "not divisible by 32, the downsampling factor of patches of 4 pixels and 4 levels; the nearest .* is 96",
        ),
        (["--model", "unet2d", "--patch_size", "4"], "patch_size is a setting of model my_unet; with model unet2d"),
        (["--prediction_type", "eps"], "setting 'prediction_type': .*'epsilon'"),
        (["--rescale_betas_zero_snr", "true"], "needs prediction_type v_prediction or sample"),
        (["--loss_type", "weighted", "--prediction_type", "sample"], "use prediction_type epsilon"),
        (["--beta_start", "0.1"], "must not exceed beta_end"),
        (["--block_out_channels", "[64, 128"], "is not a list such as"),
        (["--dataset", ""], "setting 'dataset': .*at least 1 character"),
        (["--learning_rate"], "argument --learning_rate: expected one argument"),
        (
            ["--dataset", "null", "--datasets", "[{dataset: x, foo: 1}]"],
            "entry 0: unknown setting 'foo'; known are",
        ),
        (["--dataset", "null", "--datasets", "[a]", "--streaming"], "streaming reads one dataset"),
        (["--ema_max_decay", "[0.9, 0.9]"], "setting 'ema_max_decay': the decays must differ"),
        (["--report_to", "[auto, wandb]"], "auto and none stand alone"),
        (["--loss_type", "min_snr", "--prediction_type", "sample", "--rescale_betas_zero_snr"], "the weight 0; use"),
        (["--model", "unet2d", "--class_conditional"], "takes no labels; use class_conditional: false"),
        (["--num_epochs", "1e300"], "setting 'num_epochs': .*less than or equal"),
        (["--nonsense", "1"], "unknown setting '--nonsense'; run with --help"),
        (["stray"], "unknown setting 'stray'"),
    ],
)
def test_wrong_settings_are_one_clear_line(tmp_path, argv, message):
    file = write(tmp_path / "a.yaml", "dataset: d")
    with pytest.raises(UserError, match=message) as error:
        load_config(["--config", file, *argv])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: d\nlerning_rate: 1", "unknown setting 'lerning_rate'; did you mean 'learning_rate'"),
        ("seed: 1", "setting 'dataset' is missing"),
        ("a: [1", "line .* is not YAML"),
        ("just words", "must hold 'setting: value' lines"),
        ("", "must hold 'setting: value' lines"),
    ],
)
def test_wrong_files_are_one_clear_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        load_config(["--config", write(tmp_path / "a.yaml", text)])
    assert "\n" not in str(error.value)


def test_a_missing_file():
    with pytest.raises(UserError, match=r"config file none\.yaml does not exist"):
        load_config(["--config", "none.yaml"])


def test_the_command_line_may_say_it_the_other_way(tmp_path):
    """Epochs given on the command line are not outdone by a preset's steps, nor a data set by a preset's several."""
    file = write(tmp_path / "a.yaml", "datasets: [a, b]\nmax_train_steps: 4000\n")
    config = load_config(["--config", file, "--num_epochs", "2", "--dataset", "mine"])
    assert (config.max_train_steps, config.total_steps(320), config.dataset) == (None, 10, "mine")
    assert config.datasets is None
    file = write(tmp_path / "b.yaml", "dataset: d\nnum_epochs: 7\n")
    config = load_config(["--config", file, "--max_train_steps", "30", "--datasets", "[a, b]"])
    assert (config.total_steps(320), len(config.sources)) == (30, 2)
    with pytest.raises(UserError, match="dataset or datasets, not both"):
        load_config(["--dataset", "a", "--datasets", "[b]"])


def test_the_word_no_in_yaml_is_the_word(tmp_path):
    file = write(tmp_path / "a.yaml", "dataset: d\nmixed_precision: no\ntorch_compile: no\nreport_to: none\n")
    config = load_config(["--config", file])
    assert (config.mixed_precision, config.torch_compile, config.report_to) == ("no", "no", "none")
    assert load_config(["--config", file, "--report_to", "none", "--streaming", "false"]).report_to == "none"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "else the defaults"),
        (["--config", "configs/smoke.yaml"], "configs/smoke.yaml; else the defaults"),
        (
            ["--config=/home/me/mine.yaml", "--dataset", "/home/me/x", "--seed=3", "--seed", "4"],
            "mine.yaml; dataset, seed on the command line; else the defaults",
        ),
    ],
)
def test_where_settings_come_from(root, monkeypatch, words, said):
    """Names alone: no folders of this machine, no values."""
    monkeypatch.chdir(root)
    assert settings_from(words) == said


@pytest.mark.parametrize("name", SAME_AS)
def test_names_of_diffusers_that_mean_the_same(tmp_path, name):
    ours, values = SAME_AS[name], {"resolution": 64, "random_flip": True, "eval_batch_size": 5, "logger": "wandb"}
    value = values.get(name, 7 if name.startswith(("ddpm", "num", "max")) else "x")
    data = [] if ours == "dataset" else ["--dataset", "d"]
    for words in ([f"--{name}", str(value)], [f"--{name.replace('_', '-')}={value}"]):
        assert getattr(load_config(data + words), ours) == value
    file = write(tmp_path / "a.yaml", f"{name}: {value}" + ("" if data == [] else "\ndataset: d"))
    assert getattr(load_config(["--config", str(file)]), ours) == value
    assert ours in settings_from([f"--{name}", str(value)])


@pytest.mark.parametrize("name", INSTEAD)
def test_names_of_diffusers_that_do_not_are_answered(tmp_path, name):
    file = write(tmp_path / "a.yaml", f"dataset: d\n{name}: 3")
    for words in (["--dataset", "d", f"--{name}", "3"], ["--dataset", "d", f"--{name}"], ["--config", str(file)]):
        with pytest.raises(UserError, match=re.escape(f"{name}'; {INSTEAD[name]}.")):
            load_config(words)


def test_diffusers_own_names_are_settings_or_answered():
    """Those of its script for unconditional images, and of text to image."""
    names = (
        "dataset_name dataset_config_name model_config_name_or_path train_data_dir output_dir overwrite_output_dir "
        "cache_dir resolution center_crop random_flip train_batch_size eval_batch_size dataloader_num_workers "
        "num_epochs "
        "save_images_epochs save_model_epochs gradient_accumulation_steps learning_rate lr_scheduler lr_warmup_steps "
        "adam_beta1 adam_beta2 adam_weight_decay adam_epsilon use_ema ema_inv_gamma ema_power ema_max_decay "
        "push_to_hub "
        "hub_token hub_model_id hub_private_repo logger logging_dir local_rank mixed_precision prediction_type "
        "ddpm_num_steps ddpm_num_inference_steps ddpm_beta_schedule checkpointing_steps checkpoints_total_limit "
        "resume_from_checkpoint enable_xformers_memory_efficient_attention preprocessing_num_workers image_column "
        "caption_column max_train_samples max_train_steps num_train_epochs scale_lr snr_gamma noise_offset "
        "max_grad_norm "
        "report_to seed validation_epochs gradient_checkpointing allow_tf32 pretrained_model_name_or_path"
    )
    unknown = {*names.split()} - {*TrainConfig.model_fields} - {*SAME_AS} - {*INSTEAD}
    assert not unknown
    assert not ({*SAME_AS} | {*INSTEAD}) & {*TrainConfig.model_fields}


@pytest.mark.parametrize("value", ["-1e-4", "-1", "-.5", "-0.5", "-inf"])
def test_negative_values_are_answered_as_values(value):
    with pytest.raises(UserError, match=rf"setting 'learning_rate': .* got '{value}'"):
        load_config(["--dataset", "d", "--learning_rate", value])


def test_hyphens_and_underscores_are_both_understood():
    for words in (["--dry-run"], ["--dry_run"], ["--dry-run", "true"]):
        assert load_config(["--dataset", "d", *words]).dry_run
    assert load_config(["--dataset", "d", "--sample-size=64"]).sample_size == 64
    with pytest.raises(UserError, match="unknown setting '--sampel-size'; did you mean 'sample_size'"):
        load_config(["--dataset", "d", "--sampel-size", "64"])


@pytest.mark.parametrize(
    ("line", "name", "expected"),
    [
        ("mixed_precision: no", "mixed_precision", "no"),
        ("torch_compile: no", "torch_compile", "no"),
        ("report_to: no", "report_to", "none"),
        ("validation_split: no", "validation_split", None),
        ("class_conditional: no", "class_conditional", False),
    ],
)
def test_what_yaml_makes_of_no(tmp_path, line, name, expected):
    assert getattr(load_config(["--config", str(write(tmp_path / "a.yaml", f"dataset: d\n{line}"))]), name) == expected


def test_a_word_that_yaml_reads_as_true_is_explained(tmp_path):
    file = write(tmp_path / "a.yaml", "dataset: d\nlabel_names: [yes, no]")
    with pytest.raises(UserError, match="YAML reads yes, no, on and off as true and false: put quotes around them"):
        load_config(["--config", str(file)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pixel_range", "[9, 1]"], r"setting 'pixel_range': expected auto, full or \[low, high\], the lower value"),
        (["--pixel_range", "some"], "setting 'pixel_range': "),
        (["--background", "#12"], "setting 'background': expected white, black, mean or a color"),
    ],
)
def test_settings_of_pixels(words, message):
    with pytest.raises(UserError, match=message):
        load_config(["--dataset", "d", *words])
