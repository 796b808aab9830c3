"""What a run says before its first step: its images by split and class, what is left out and why, what to expect."""

import re
import shlex
import time

import numpy as np
import pytest
from PIL import Image
from tiny_runs import DATA, tiny_run, tiny_trainer

import train
from ddpm_hf.__main__ import main

RNG = np.random.default_rng(0)
ALL_OF_THEM = {"max_images": None, "max_train_steps": 2}


def made(root, *names) -> str:
    """Gray pictures of noise, or, of another suffix, files of text; "cat/*3.png" is three of them."""
    for name in names:
        before, star, after = name.partition("*")
        for number in range(int(after[0])) if star else [""]:
            path = root / f"{before}{number}{after[1:]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".png":
                Image.fromarray(RNG.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
            else:
                path.write_bytes(b"file_name,label\n")
    return str(root)


# name -> (files, settings, the first line from the images on, with the numbers of pixels left out)
FIRST_LINES = {
    "Training and Testing": (
        ["Training/cat/*3.png", "Training/dog/*4.png", "Testing/cat/*1.png", "Testing/dog/*1.png"],
        {},
        "7 images of train in 2 classes (cat 3, dog 4), 2 of test for validation",
    ),
    "three splits": (
        ["train/a/*3.png", "train/b/*3.png", "dev/a/*1.png", "dev/b/*1.png", "test/a/*2.png"],
        {},
        "6 images of train in 2 classes (a 3, b 3), 2 of validation for validation; left out: split test",
    ),
    "no split": (
        ["cat/*9.png", "dog/*9.png", "cat/more/*9.png"],
        {},
        "26 images of train in 2 classes (cat 18, dog 8), 1 held out of train for validation",
    ),
    "a class called train": (
        ["bus/*2.png", "car/*2.png", "train/*2.png"],
        {},
        "6 images of train in 3 classes (bus 2, car 2, train 2, train: a class, not a split)",
    ),
    "by suffix": (
        ["a/*2.png", "b/*2.png", "raw/*3.nef", "x.mp4", "IMG_1.HEIC"],
        {},
        "4 images of train in 2 classes (a 2, b 2); left out: 1 .heic (pip install pillow-heif reads them), 3 .nef, "
        "1 .mp4",
    ),
    "by reason": (
        ["a/*4.png", "b/*4.png", "cover.png", "a/9.jpg"],
        {"on_bad_image": "skip", "max_images": 7},
        "6 images of train in 2 classes (a 4, b 2); left out: 1 picture of train beside the folders of classes, "
        "2 beyond max_images, 1 bad image (first: row 4 of data set FOLDER (a/9.jpg) is not a readable image: no "
        "image format known here)",
    ),
    "classes that are not used": (
        ["a/*4.png", "b/*4.png"],
        {"class_conditional": False},
        "8 images of train in 2 classes (a 4, b 4, not trained with: class_conditional is false)",
    ),
    "many classes": (
        [f"{name}/*{1 + i % 2}.png" for i, name in enumerate("abcdefgh")],
        {},
        "12 images of train in 8 classes (1 to 2 images each)",
    ),
    "many classes of one size": (
        [f"{name}/*2.png" for name in "abcdefgh"],
        {},
        "16 images of train in 8 classes (2 images each)",
    ),
    "several splits": (
        ["train/*3.png", "val/*2.png", "test/*2.png"],
        {"dataset_split": "train+val", "class_conditional": False},
        "5 images of train+val, 2 of test for validation",
    ),
    "no validation": (
        ["train/*3.png", "val/*2.png"],
        {"validation_split": None, "class_conditional": False},
        "3 images of train; left out: split validation",
    ),
    "a stream": (
        ["train/a/*3.png", "train/b/*3.png", "val/a/*2.png", "test/a/*1.png", "x.mp4"],
        {"streaming": True, "max_images": 4},
        "streamed images of train in 2 classes (a, b), 2 of validation for validation; left out: 1 .mp4, split test",
    ),
}


@pytest.mark.parametrize("name", FIRST_LINES)
def test_the_first_line(tmp_path, monkeypatch, capsys, name):
    files, settings, expected = FIRST_LINES[name]
    if "heic" in expected:
        monkeypatch.setattr("ddpm_hf.data.folders.image_suffixes", lambda: frozenset([".png", ".jpg"]))
    folder = made(tmp_path / "set", *files)
    tiny_trainer(tmp_path / "run", dataset=folder, sample_size=8, **{**ALL_OF_THEM, **settings}).start()
    said = capsys.readouterr().out.splitlines()
    assert said[0].replace(repr(folder), "FOLDER").replace(" of 1x8x8", "") == f"training: {expected}"
    assert re.match(r"[\d,]+ parameters, 2 steps of 8 images, 1 process\(es\) on", said[1])


def test_a_stream_of_classes_says_what_max_images_takes(tmp_path, capsys):
    folder = made(tmp_path / "set", "a/*3.png", "b/*3.png")
    tiny_trainer(
        tmp_path / "run", dataset=folder, sample_size=8, streaming=True, max_images=3, max_train_steps=2
    ).start()
    assert (
        "note: max_images takes the first images of a stream, not evenly from all classes." in capsys.readouterr().out
    )


def test_the_plan_says_the_same(tmp_path, capsys):
    folder = made(tmp_path / "set", "a/*3.png", "b/*3.png", "x.mp4")
    Image.fromarray(np.full((8, 8), 900, np.uint16)).save(tmp_path / "set" / "a" / "deep.png")
    words = f"--dataset {folder} --sample_size 8 --block_out_channels [8,16] --max_train_steps 2"
    assert train.main([*words.split(), "--output_dir", str(tmp_path / "run"), "--dry_run", "--report_to", "none"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"images +7 images of 1x8x8 of train in 2 classes \(a 4, b 3, not trained with", said)
    assert re.search(r"left out +1 \.mp4\n", said)
    assert not (tmp_path / "run").exists()


def test_a_compiled_run_says_that_it_compiles(tmp_path, capsys):
    tiny_trainer(tmp_path / "run", torch_compile="default").start()
    assert "torch_compile: the first steps compile the network, which can take minutes." in capsys.readouterr().out


def test_a_next_command_can_be_pasted(tmp_path, capsys):
    tiny_run(tmp_path / "it's my run", max_train_steps=2)
    command = re.search(r"python -m ddpm_hf (.*) shows pictures", capsys.readouterr().out)[1]
    words = shlex.split(command)
    words[words.index("--output") + 1] = str(tmp_path / "grid.png")
    assert main([*words, "--steps", "2", "--num-images", "1"]) == 0
    assert (tmp_path / "grid.png").exists()


def test_a_data_set_of_the_hub_without_a_network_fails_at_once(tmp_path, monkeypatch, capsys):
    def nowhere(*args, **options):
        raise OSError(-3, "Temporary failure in name resolution")

    monkeypatch.setattr("socket.getaddrinfo", nowhere)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    start = time.monotonic()
    assert train.main(["--dataset", "alice/pictures", "--output_dir", str(tmp_path / "run")]) == 2
    assert time.monotonic() - start < 20
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: data set 'alice/pictures' is no file or folder, and as a data set of the Hub not in")
    assert line.endswith("no network. Give a folder or file, or download it where there is one.")
    assert not (tmp_path / "run").exists()


def test_the_shipped_images_need_no_words(tmp_path, capsys):
    tiny_trainer(tmp_path / "run", dataset=DATA).start()
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
