"""Reports of sets that are good, broken, collapsed and copied, the command, and one line for every mistake."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from helpers import ROOT, moments_file, tiny_pipeline
from PIL import Image

import train as train_program
from ddpm_hf.__main__ import main
from ddpm_hf.commands.evaluate import run_config
from ddpm_hf.data import load_images
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.evaluate import evaluate
from ddpm_hf.evaluation.features import FeatureExtractor, load_features
from ddpm_hf.hub import export_pipeline
from ddpm_hf.image_sets import ImageSet, image_set, read_images
from ddpm_hf.run import weights_digest

DATA = str(ROOT / "data" / "fashion_mnist_tiny.parquet")


@pytest.fixture(autouse=True, scope="module")
def features_are_computed_once():
    """What the shipped classifier finds in the same images, in the same order, is the same for all tests."""
    compute, found = FeatureExtractor.__call__, {}

    def remember(self, images):
        if self.name != "fashion-mnist":
            return compute(self, images)
        key = images.shape, hashlib.sha256(images.numpy().tobytes()).digest()
        if key not in found:
            found[key] = compute(self, images)
        return found[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FeatureExtractor, "__call__", remember)
        yield


@pytest.fixture(scope="module")
def real() -> ImageSet:
    images = image_set(load_images(DATA))
    return images.take(torch.randperm(len(images), generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def extractor():
    return load_features("fashion-mnist", (1, 28, 28))


@pytest.fixture(scope="module")
def judge(real, extractor):
    """Scores a set against 300 real images, with 350 others as training images."""
    train, reference = real.take(slice(0, 350)), real.take(slice(350, 650))
    return lambda images: evaluate(images, train, reference, extractor, {"images": "of a test"}, num_classes=10)


@pytest.fixture(scope="module")
def fresh(real) -> ImageSet:
    return real.take(slice(650, 950))


# ---- what the report tells apart


def kinds(report) -> list[str]:
    return [finding.split(":")[0] for finding in report.findings]


def test_real_images_have_no_findings(judge, fresh):
    report = judge(fresh)
    assert report.findings == []
    assert report.scores.precision > 0.8 and report.scores.recall > 0.8 and report.scores.label_accuracy > 0.85
    assert report.scores.fid < 2 * report.floor.fid and report.fid_ratio == report.scores.fid / report.floor.fid
    assert 0.8 < report.memorisation.ratio < 1.25


def test_noise_is_broken(judge, fresh):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, fresh.images.shape, dtype=torch.uint8, generator=generator)
    report = judge(ImageSet(noise, fresh.labels))
    assert kinds(report) == ["broken", "wrong classes"]
    assert report.scores.fid > 10 * report.floor.fid


def test_training_images_are_copies(judge, real):
    report = judge(real.take(slice(0, 300)))
    assert kinds(report) == ["copies"]
    assert report.memorisation.ratio == 0 and report.memorisation.share_near == 1


def test_a_few_training_images_among_others_are_seen(judge, real, fresh):
    mixed = ImageSet(
        torch.cat((fresh.images[:240], real.images[:60])), torch.cat((fresh.labels[:240], real.labels[:60]))
    )
    report = judge(mixed)
    assert kinds(report) == ["copies"]
    assert all(torch.equal(image, nearest) for image, nearest in report.neighbours)


def test_one_kind_of_image_over_and_over_is_collapsed(judge, fresh):
    shirt = fresh.images[:1].int().repeat(300, 1, 1, 1)
    jitter = torch.randint(-2, 3, shirt.shape, generator=torch.Generator().manual_seed(0))
    report = judge(ImageSet((shirt + jitter).clamp(0, 255).byte(), fresh.labels[:1].repeat(300)))
    assert kinds(report) == ["collapsed"]
    assert report.scores.recall < 0.05


def test_another_order_changes_nothing(judge, fresh):
    order = torch.randperm(len(fresh), generator=torch.Generator().manual_seed(1))
    one, other = judge(fresh), judge(fresh.take(order))
    assert (one.scores, one.floor, one.memorisation) == (other.scores, other.floor, other.memorisation)


def test_blurred_images_are_broken(judge, fresh):
    blurred = torch.nn.functional.avg_pool2d(fresh.images.float(), 9, 1, 4).round().byte()
    assert kinds(judge(ImageSet(blurred))) == ["broken"]


def test_missing_classes_are_a_collapse(judge, fresh):
    two = torch.where((fresh.labels == 1) | (fresh.labels == 8))[0]
    report = judge(ImageSet(fresh.images[two].repeat(3, 1, 1, 1)))
    assert kinds(report) == ["collapsed"]
    assert report.scores.label_accuracy is None


def test_labels_that_mean_nothing_are_wrong_classes(judge, fresh):
    order = torch.randperm(len(fresh), generator=torch.Generator().manual_seed(2))
    report = judge(ImageSet(fresh.images, fresh.labels[order]))
    assert kinds(report) == ["wrong classes"]


def test_labels_of_other_classes_have_no_accuracy(real, extractor, fresh):
    sets = (fresh, real.take(slice(0, 350)), real.take(slice(350, 650)), extractor, {})
    for classes in ({"num_classes": 3}, {"label_names": [f"letter {i}" for i in range(10)], "num_classes": 10}, {}):
        assert evaluate(*sets, **classes).scores.label_accuracy is None


def test_without_a_reference_one_half_of_the_training_images_is_it(real, extractor, fresh):
    report = evaluate(fresh, real.take(slice(0, 650)), None, extractor, {})
    assert report.protocol["reference_images"] == 325
    assert report.fid_ratio < 2 and report.findings == []
    # a copy is one, whichever half it is of
    copies = ImageSet(torch.cat((fresh.images[:240], real.images[:650:11])))
    report = evaluate(copies, real.take(slice(0, 650)), None, extractor, {})
    assert kinds(report) == ["copies"] and report.memorisation.share_near >= 0.19


def test_copies_are_seen_where_the_reference_has_some_too(real, extractor, fresh):
    train = real.take(slice(0, 350))
    reference = ImageSet(torch.cat((real.images[350:640], real.images[:10])))
    copies = ImageSet(torch.cat((fresh.images[:150], real.images[:100])))
    assert kinds(evaluate(copies, train, reference, extractor, {})) == ["copies"]


def test_mirrored_copies_are_looked_for_where_images_were_mirrored(real, extractor):
    train, reference = real.take(slice(0, 350)), real.take(slice(350, 650))
    copies = ImageSet(real.images[:200].flip(-1))
    found = evaluate(copies, train, reference, extractor, {}, mirrored=True)
    assert "copies" in kinds(found) and found.memorisation.ratio == 0
    assert evaluate(copies, train, reference, extractor, {}).memorisation.ratio > 0


def test_the_ratio_is_of_equal_numbers(real, extractor, fresh):
    """Of 300 images and 160 real ones, the distance of 160 is compared: of fewer images it is larger."""
    report = evaluate(fresh, real.take(slice(0, 160)), real.take(slice(350, 650)), extractor, {})
    assert "160 training images" in report.protocol["floor"]
    assert report.scores.fid < 0.5 * report.floor.fid
    assert 0.4 < report.fid_ratio < 1.6


def test_images_of_another_size_are_one_line(judge, fresh):
    with pytest.raises(UserError, match=r"of a test are 1x20x28 .*, the real ones 1x28x28"):
        judge(ImageSet(fresh.images[:, :, 4:24]))


# ---- the command


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A pipeline of 28x28 garments that has learned nothing."""
    torch.manual_seed(0)
    pipeline = tiny_pipeline(sample_size=32, num_class_embeds=10, attention_levels=[], output_size=(28, 28))
    return str(export_pipeline(tmp_path_factory.mktemp("evaluate") / "model", pipeline))


def command(model, output, *arguments) -> list[str]:
    options = ["--dataset", DATA, "--num-images", "140", "--steps", "2", "--dtype", "bfloat16", "--output", str(output)]
    return ["evaluate", model, *options, *arguments]


def scores_of(path) -> dict:
    report = json.loads(path.read_text())
    return {name: report[name] for name in ("scores", "floor", "memorisation", "findings")}


def test_the_command_writes_its_protocol_and_pictures(model, tmp_path, capsys):
    split = ["--reference-split", "train"]
    assert main(command(model, tmp_path / "a.json", *split)) == 0
    out = capsys.readouterr().out
    assert "finding: broken" in out and "FID" in out
    for told in ("sampler: dpm-sde, steps: 2, guidance scale: 2.0, guidance interval: 0,8, seed: 0, dtype: bfloat16, "
                 "weights: as exported",
                 "split: train, reference split: one half of it", "padded to 32x32 for the network, its images cropped",
                 "preprocessing: 8-bit images; as they are, 28x28"):  # fmt: skip
        assert told in out
    report = json.loads((tmp_path / "a.json").read_text())
    told = report["protocol"]
    assert (told["sampler"], told["steps"], told["seed"], told["num_images"]) == ("dpm-sde", 2, 0, 140)
    assert told["features"] == "fashion-mnist" and told["dtype"] == "bfloat16" and told["dataset"]
    assert (told["reference_split"], told["weights"]) == ("one half of it", "as exported")
    (weights,) = Path(model).glob("unet/*.safetensors")
    assert told["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert told["resizing"] == "real 28x28 images padded to 32x32 for the network, its images cropped back"
    assert "--steps 2" in told["command"] and str(tmp_path) not in json.dumps(report)
    assert Image.open(tmp_path / "a-samples.png").mode == "L"
    assert Image.open(tmp_path / "a-samples.png").size == (10 * 86 - 2, 10 * 86 - 2 + 22)  # classes below the columns
    neighbours = Image.open(tmp_path / "a-neighbours.png")
    assert neighbours.width > 12 * 86 - 2 + 60 and neighbours.height == 2 * 86 - 2 + 22  # titles, distances
    assert main(command(model, tmp_path / "b.json", *split, "--batch-size", "9", "--no-figures")) == 0
    assert scores_of(tmp_path / "a.json") == scores_of(tmp_path / "b.json")
    assert not (tmp_path / "b-samples.png").exists()


def test_an_npz_and_a_folder_of_images(real, tmp_path):
    pixels = real.images[:200, 0].numpy()
    np.savez(tmp_path / "x.npz", images=pixels, labels=real.labels[:200].numpy())
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "folder" / f"{i:03}.png")
    for name in ("x.npz", "folder"):
        assert (
            main(
                [
                    "evaluate",
                    str(tmp_path / name),
                    "--dataset",
                    DATA,
                    "--reference-split",
                    "train",
                    "--output",
                    str(tmp_path / "r.json"),
                ]
            )
            == 0
        )
        found = scores_of(tmp_path / "r.json")
        assert found["memorisation"]["ratio"] == 0 and found["scores"]["precision"] > 0.8


def test_images_of_files_are_decoded_as_for_training(tmp_path):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    clear = Image.new("RGBA", (8, 8), (10, 10, 10, 0))
    clear.save(tmp_path / "clear.png")
    read = read_images(tmp_path).images
    assert read.shape == (2, 3, 8, 8)
    assert (read[0] == 255).all() and torch.equal(read[1, 0], torch.from_numpy((ramp >> 8).astype(np.uint8)))


def test_a_run_is_compared_with_what_it_did_not_train_on(tmp_path, capsys, recwarn):
    words = ["--dataset", DATA, "--output_dir", str(tmp_path / "run"), "--max_train_steps", "2", "--report_to", "none"]
    small = [
        "--block_out_channels",
        "[8, 16]",
        "--attention_levels",
        "[]",
        "--train_batch_size",
        "4",
        "--num_samples",
        "2",
    ]
    few = ["--validation_images", "20", "--ema_max_decay", "0.9", "--horizontal_flip"]
    train_program.main([*words, *small, *few])
    options = ["--features", moments_file(tmp_path / "moments.pt"), "--num-images", "20", "--steps", "2"]
    assert main(["evaluate", str(tmp_path / "run"), *options, "--output", str(tmp_path / "r.json")]) == 0
    told = json.loads((tmp_path / "r.json").read_text())["protocol"]
    assert (told["reference_images"], told["reference_split"]) == (20, "held out of train")
    assert told["weights"] == "average, largest decay 0.9" and "mirrored" in told["copies"]
    exported = weights_digest(tmp_path / "run" / "pipeline" / "unet")
    assert told["weights_sha256"] == exported
    assert str(tmp_path) not in json.dumps(told)
    assert (
        main(["evaluate", str(tmp_path / "run"), *options, "--weights", "raw", "--output", str(tmp_path / "r.json")])
        == 0
    )
    told = json.loads((tmp_path / "r.json").read_text())["protocol"]
    assert told["weights"] == "raw"
    raw = ["export", str(tmp_path / "run"), "--weights", "raw", "--output", str(tmp_path / "raw")]
    assert main(raw) == 0
    assert told["weights_sha256"] == weights_digest(tmp_path / "raw" / "unet") != exported
    for weights, told in ([], "average, largest decay 0.9"), (["--weights", "raw"], "raw"):
        assert main(["export", str(tmp_path / "run"), *weights, "--half", "--output", str(tmp_path / "exported")]) == 0
        words = [
            "evaluate",
            str(tmp_path / "exported"),
            *options,
            "--dataset",
            DATA,
            "--output",
            str(tmp_path / "r.json"),
        ]
        assert main(words) == 0
        assert json.loads((tmp_path / "r.json").read_text())["protocol"]["weights"] == told
    assert not any("_weights" in str(warning.message) for warning in recwarn)
    diffusers.DiffusionPipeline.from_pretrained(tmp_path / "exported", trust_remote_code=True)
    assert "_weights" not in capsys.readouterr().err  # diffusers does not mind the note


def test_settings_of_a_run_that_are_no_longer_known_are_ignored(tmp_path, capsys):
    export_pipeline(tmp_path / "run" / "pipeline", tiny_pipeline())
    settings = "datasets: [{dataset: d, codec: zip}]\nema_max_decay: 0.9\nwarp_factor: 9\n"
    (tmp_path / "run" / "config.yaml").write_text(settings)
    assert main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("has settings that this version does not know: datasets.0.codec, warp_factor")
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["_weights"] == "average, largest decay 0.9"
    assert run_config(str(tmp_path / "run")).sources[0].dataset == "d"
    (tmp_path / "run" / "config.yaml").write_text(settings + "sample_size: many\n")
    assert main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 2


def test_a_folder_is_judged_by_the_images_that_training_reads(tmp_path):
    for i, suffix in enumerate(("png", "PGM", "jpe", "jp2", "mpo", "txt")):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.{suffix}", {"mpo": "JPEG", "txt": "PNG"}.get(suffix))
    assert len(read_images(tmp_path)) == len(load_images(str(tmp_path), sample_size=8)) == 4


def test_subfolders_called_like_classes_are_labels(tmp_path):
    for name in ("Bag", "Sandal"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "x.png")
    assert read_images(tmp_path, ["Sandal", "Bag"]).labels.tolist() == [1, 0]
    assert read_images(tmp_path, ["Sandal"]).labels is None


@pytest.mark.slow
def test_two_processes_share_the_work_and_find_the_same(model, tmp_path):
    """As one process with all threads and two with one each: every number of the report is the same."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launchers = {"one": [], "two": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]}
    for name, launcher in launchers.items():
        arguments = command(model, tmp_path / f"{name}.json", "--reference-split", "train", "--no-figures")
        program = [sys.executable, *launcher, "-m", "ddpm_hf", *arguments]
        threads = environment if launcher else None
        done = subprocess.run(program, cwd=ROOT, timeout=300, env=threads, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote ") == 1  # one of them tells of what both have made
    assert scores_of(tmp_path / "one.json") == scores_of(tmp_path / "two.json")


# ---- mistakes


def npz(folder, **arrays):
    np.savez(folder / "x.npz", **arrays)
    return folder / "x.npz"


def folder_of(folder, *images):
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")
    return folder


def nan_images(folder):
    images = np.zeros((150, 28, 28), np.float32)
    images[3, 5, 5] = np.nan
    return npz(folder, images=images)


def empty_file(folder):
    (folder / "x.npz").write_bytes(b"")
    return folder / "x.npz"


def cut_off(folder):
    path = npz(folder, images=np.zeros((50, 8, 8), np.uint8))
    path.write_bytes(path.read_bytes()[:500])
    return path


def damaged(folder):
    path = folder / "x.npz"
    np.savez_compressed(path, images=np.zeros((50, 8, 8), np.uint8))
    content = bytearray(path.read_bytes())
    start = 30 + int.from_bytes(content[26:28], "little") + int.from_bytes(content[28:30], "little")
    content[start] = 0b111  # a block of the type that there is not
    path.write_bytes(content)
    return path


def an_array(folder):
    with open(folder / "x.npz", "wb") as file:
        np.save(file, np.zeros((5, 8, 8), np.uint8))
    return folder / "x.npz"


def truncated(folder):
    Image.new("L", (28, 28)).save(folder / "0.png")
    (folder / "1.png").write_bytes((folder / "0.png").read_bytes()[:40])
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder, "has no images; files ending in .png"),
        (empty_file, "x.npz cannot be read"),
        (cut_off, "x.npz cannot be read"),
        (damaged, "x.npz cannot be read .Error -3 while decompressing"),
        (an_array, "x.npz cannot be read .it is a single array"),
        (
            lambda folder: npz(folder, images=np.zeros((5, 8, 8), np.uint8), labels=np.full(5, -1)),
            "must be whole numbers",
        ),
        (
            lambda folder: npz(folder, images=np.zeros((5, 8, 8), np.uint8), labels=np.array(["Bag"] * 5)),
            "must be whole",
        ),
        (nan_images, "image 3 of .*x.npz has pixels that are not numbers"),
        (lambda folder: npz(folder, images=np.zeros((5, 28, 28), np.float32)), r"are float32 .*; expected uint8"),
        (lambda folder: npz(folder, pictures=np.zeros(3)), "cannot be read"),
        (lambda folder: npz(folder, images=np.zeros((0, 28, 28), np.uint8)), "has no images"),
        (
            lambda folder: npz(folder, images=np.zeros((5, 28, 28), np.uint8), labels=np.zeros(4)),
            r"labels of shape \(4,\) for 5 images",
        ),
        (truncated, "1.png is not a readable image"),
        (
            lambda folder: folder_of(folder, Image.new("L", (28, 28)), Image.new("L", (20, 28))),
            "1.png is 28x20, 0.png is 28x28",
        ),
    ],
)
def test_images_that_cannot_be_judged_are_one_line(tmp_path, make, message):
    with pytest.raises(UserError, match=message) as error:
        read_images(make(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((150, 20, 20), "are for images of 1x28x28 .*, these are 1x20x20"),
        ((150, 28, 28, 3), "are for images of 1x28x28 .*, these are 3x28x28"),
        ((100, 28, 28), "100 generated or given images are too few for the 128 features of fashion-mnist"),
    ],
)
def test_images_that_do_not_go_with_the_rest_are_one_line(tmp_path, capsys, shape, message):
    path, output = npz(tmp_path, images=np.zeros(shape, np.uint8)), tmp_path / "r.json"
    options = ["--dataset", DATA, "--features", "fashion-mnist", "--reference-split", "train", "--output", str(output)]
    assert main(["evaluate", str(path), *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and re.search(message, error)
    assert not output.exists()


def test_labels_that_the_real_images_have_not_are_one_line(real, tmp_path, capsys):
    path = npz(tmp_path, images=real.images[:200, 0].numpy(), labels=real.labels[:200].numpy() + 1)
    options = ["--dataset", DATA, "--reference-split", "train", "--output", str(tmp_path / "r.json")]
    assert main(["evaluate", str(path), *options]) == 2
    message = "x.npz has a label 10; the real images have 10 classes, so labels are in [0, 9]."
    assert capsys.readouterr().err.splitlines()[-1].endswith(message)


def test_accuracy_is_not_told_where_only_one_side_has_labels(real, extractor, fresh):
    reference = ImageSet(real.images[350:650])
    report = evaluate(fresh, real.take(slice(0, 350)), reference, extractor, {}, num_classes=10)
    assert report.floor.label_accuracy is None and report.findings == []
    assert "label accuracy" in str(evaluate(fresh, real.take(slice(0, 350)), reference, extractor, {**report.protocol},
                                            num_classes=10))  # fmt: skip


@pytest.mark.parametrize("command_name", ["evaluate", "sample", "noise"])
def test_guidance_of_a_model_without_classes_is_one_line(tmp_path, capsys, command_name):
    model = str(export_pipeline(tmp_path / "model", tiny_pipeline(attention_levels=[])))
    output = {"evaluate": "r.json", "sample": "r.png", "noise": "r.png"}[command_name]
    words = [command_name, model, "--guidance-scale", "2", "--output", str(tmp_path / output)]
    assert main(words + ([] if command_name == "sample" else ["--dataset", DATA])) == 2
    assert "--guidance-scale was given, but the model has no classes" in capsys.readouterr().err
    assert not (tmp_path / output).exists()


def test_a_model_that_makes_no_numbers_is_one_line(tmp_path, capsys):
    """Weights that are numbers, and an activation that is none."""
    pipeline = tiny_pipeline(attention_levels=[])
    for parameter in pipeline.unet.out_conv.parameters():
        parameter.data.fill_(1e38)
    model = str(export_pipeline(tmp_path / "model", pipeline))
    words = ["sample", model, "--num-images", "1", "--steps", "2", "--output", str(tmp_path / "r.png")]
    assert main([*words, "--scheduler", "euler"]) == 2
    assert "makes pixels that are not numbers" in capsys.readouterr().err
    assert not (tmp_path / "r.png").exists()


def test_what_cannot_be_written_is_told_before_the_work(tmp_path, capsys):
    """No data set and no model is looked at: both are missing, and the error is another one."""
    if not os.path.isdir("/proc/self"):
        pytest.skip("wants a folder that nobody can write in")
    for words in (
        ["evaluate", "nowhere", "--dataset", "nowhere", "--output", "/proc/self/x.json"],
        ["noise", "nowhere", "--dataset", "nowhere", "--output", "/proc/self/x.png"],
        ["sample", "nowhere", "--output", "/proc/self/x.png"],
        ["train-features", "--dataset", "nowhere", "--output", "/proc/self/x/y"],
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: --output /proc/self/x") and "cannot be written in /proc/self" in error
    (tmp_path / "file").touch()
    assert main(["train-features", "--dataset", "nowhere", "--output", str(tmp_path / "file" / "y")]) == 2
    assert "cannot be written in" in capsys.readouterr().err


def test_a_model_of_diffusers_own_is_judged_by_the_rule_that_is_named(tmp_path, capsys):
    unet = diffusers.UNet2DModel(
        32, 1, 1, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(20)).save_pretrained(tmp_path / "stock")
    words = ["evaluate", str(tmp_path / "stock"), "--dataset", DATA, "--features", moments_file(tmp_path / "m.pt")]
    words += ["--num-images", "12", "--steps", "2", "--output", str(tmp_path / "r.json")]
    assert main(words) == 2
    assert "makes images of 32x32, the real ones are 28x28; use --resize pad" in capsys.readouterr().err
    for rule, size in (("pad", "1x28x28"), ("crop", "1x32x32")):
        assert main([*words, "--resize", rule]) == 0
        protocol = json.loads((tmp_path / "r.json").read_text())["protocol"]
        assert protocol["size"] == size and f"--resize {rule}" in protocol["command"]


@pytest.mark.slow
@pytest.mark.slow
def test_a_mistake_that_one_process_sees_is_told_by_the_first(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os\n"
        "from ddpm_hf.devices import processes\n"
        "from ddpm_hf.errors import UserError, run_command\n"
        "from ddpm_hf.image_sets import on_all_ranks\n"
        "def work():\n"
        "    if processes().process_index == 1:\n"
        "        raise UserError('seen by the second')\n"
        "    return [1]\n"
        "processes()\n"
        "run_command(lambda: on_all_ranks(work))\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(launcher, cwd=ROOT, timeout=300, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("error: seen by the second") == 1, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--reference-split", "train", "--num-images", "100"],
            "100 generated images are too few for the 128 features",
        ),
        ([], "47 reference images are too few for the 128 features of fashion-mnist; it needs at least 129"),
        (["--num-images", "0"], "--num-images: it must be at least 1, got 0"),
        (["--seed", "-1"], "--seed: it must lie in [0, 4294967295]"),
        (["--reference-split", "train", "--steps", "0"], "num_inference_steps must be a whole number in"),
        (["--features", "nowhere"], "features 'nowhere' not found"),
        (["--features", "inception", "--inception-weights", "nowhere"], "--inception-weights nowhere does not exist"),
        (["--reference-split", "train", "--steps", "999"], "num_inference_steps must be a whole number in"),
        (["--output", "x.txt"], "--output x.txt must end in .json"),
        (["--batch-size", "0"], "--batch-size: it must be at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_one_line(model, tmp_path, capsys, arguments, message):
    assert main(command(model, tmp_path / "r.json", *arguments)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert list(tmp_path.iterdir()) == []


def test_a_missing_data_set_is_one_line(model, tmp_path, capsys):
    assert main(["evaluate", model, "--output", str(tmp_path / "r.json")]) == 2
    assert capsys.readouterr().err == "error: --dataset is missing: the real images to compare with, as for train.py.\n"
