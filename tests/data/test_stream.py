"""Streams: every image once an epoch, each process its share, and a resume at the very image."""

import json
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
from helpers import BOTH_STORAGES
from making import flat, numbered, told
from PIL import Image

from ddpm_hf.data import ImageStream, Source, load_images, open_stream
from ddpm_hf.errors import UserError

NAMES = ["a", "b", "c"]
COUNTS = (40, 25, 30, 5)


def files(folder, counts=COUNTS, *, split="train", first=0, **options):
    """Parquet files with as many images each, numbered through; labels are the numbers modulo 3."""
    for i, count in enumerate(counts):
        values = list(range(first, first + count))
        labels = {"labels": [value % 3 for value in values], "names": NAMES}
        numbered(folder / f"{split}-{i:05d}-of-{len(counts):05d}.parquet", values, **{**labels, **options})
        first += count
    return str(folder)


def opened(source, *, sample_size=8, validation_split=None, shuffle_buffer_size=16, **settings):
    source = source if isinstance(source, Source) else Source(source)
    settings |= {"sample_size": sample_size, "validation_split": validation_split}
    return open_stream(source, shuffle_buffer_size=shuffle_buffer_size, **settings)


def stream(source, **settings) -> ImageStream:
    return opened(source, **settings)[0]


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own(tmp_path):
    path = files(tmp_path)
    data = stream(path, seed=1, shuffle_buffer_size=20)
    assert (data.num_channels, data.num_classes, data.label_names, data.output_size) == (1, 3, NAMES, (8, 8))
    assert (data.output_resize, data.source_names) == (False, (tmp_path.name,))
    images, labels = data.next(300)
    assert (images.shape, images.dtype, labels.dtype) == ((300, 1, 8, 8), torch.uint8, torch.int64)
    numbers = told(images)
    assert [number % 3 for number in numbers] == labels.tolist()
    epochs = [numbers[:100], numbers[100:200], numbers[200:]]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert told(stream(path, seed=1, shuffle_buffer_size=20).next(300)[0]) == numbers
    assert told(stream(path, seed=2, shuffle_buffer_size=20).next(300)[0]) != numbers


def test_blocks_are_what_is_shuffled(tmp_path):
    path = files(tmp_path, (64,))
    numbers = told(stream(path, shuffle_buffer_size=16).next(64)[0])
    assert [sorted(numbers[i : i + 16]) for i in range(0, 64, 16)] == [list(range(i, i + 16)) for i in range(0, 64, 16)]
    assert numbers != sorted(numbers)
    assert told(stream(path, shuffle_buffer_size=1).next(64)[0]) == list(range(64))


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4, 5, 10])
def test_processes_share_every_epoch(tmp_path, num_processes):
    """By files where their number divides, else by rows, and then the first processes have the rows that are left."""
    path = files(tmp_path, (20, 20, 20, 20))
    sizes = [len(range(rank, 80, num_processes)) for rank in range(num_processes)]
    streams = [stream(path, rank=r, num_processes=num_processes, shuffle_buffer_size=1) for r in range(num_processes)]
    for _ in range(2):
        epoch = [number for data, size in zip(streams, sizes) for number in told(data.next(size)[0])]
        assert sorted(epoch) == list(range(80))


@pytest.mark.parametrize("counts", [COUNTS, (100,)])
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("more", [{}, {"max_images": 60}, {"validation_split": "auto", "validation_images": 5}])
def test_a_resumed_stream_goes_on_at_the_next_image(tmp_path, counts, num_processes, more):
    """Inside a block of 16, at its ends, and at those of epochs and of files; a second time from there."""
    path, rank = files(tmp_path, counts), num_processes - 1
    settings = {"rank": rank, "num_processes": num_processes, **more}
    first = stream(path, **settings)
    whole = told(stream(path, **settings).next(240)[0])
    taken, chained = 0, stream(path, **settings)
    for point in (0, 1, 15, 16, 17, 32, 40, 48, 50, 57, 95, 96, 100, 112, 210):
        first.next(point - taken) if point > taken else None
        taken, state = point, json.loads(json.dumps(first.state_dict()))
        chained.load_state_dict(state)  # of a used stream, too
        assert chained.state_dict() == state == first.state_dict()
        assert told(chained.next(19)[0]) == whole[point : point + 19]
        again = stream(path, **settings)
        again.load_state_dict(json.loads(json.dumps(chained.state_dict())))
        assert told(again.next(11)[0]) == whole[point + 19 : point + 30]


@pytest.mark.parametrize("taken", [39, 40, 41, 80, 95, 100, 105])
def test_a_resume_at_an_epochs_end(tmp_path, taken):
    """With blocks of one image or five a state falls on the end of a file (40) and of an epoch (100)."""
    path = files(tmp_path)
    for size in (1, 5):
        first = stream(path, shuffle_buffer_size=size)
        first.next(taken)
        again = stream(path, shuffle_buffer_size=size)
        again.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for one, other in zip(first.next(130), again.next(130)):
            assert torch.equal(one, other)


def test_a_share_without_images_is_one_line(tmp_path):
    path = files(tmp_path, (2,))
    with pytest.raises(UserError, match=r"data set .* has no images in split 'train' to train on"):
        stream(path, rank=2, num_processes=3).next(1)


def test_a_state_of_other_files_is_refused(tmp_path):
    state = stream(files(tmp_path / "a")).state_dict()
    with pytest.raises(UserError, match=r"had 4 files when the run began, now 2; give the revision"):
        stream(files(tmp_path / "b", (9, 9))).load_state_dict(state)


def test_the_fingerprint(tmp_path):
    prints = [
        stream(source).fingerprint
        for source in [
            files(tmp_path / "a"),
            files(tmp_path / "b"),
            files(tmp_path / "b", (3, 4, 5), split="test") and Source(str(tmp_path / "b"), split="test"),
            Source(str(tmp_path / "a"), label_names=("x", "y", "z")),
        ]
    ]
    assert len(set(prints)) == 4
    assert prints[0].startswith(f"stream:{tmp_path / 'a'}:")
    assert stream(str(tmp_path / "a")).fingerprint == prints[0]


# ---- other sources, labels, images


def test_folders_and_saved_sets(tmp_path):
    for value in (10, 21, 32):
        (tmp_path / "folder" / NAMES[value % 3]).mkdir(parents=True)
        Image.new("L", (8, 8), value).save(tmp_path / "folder" / NAMES[value % 3] / "train.png")
    from datasets import load_dataset

    load_dataset("parquet", data_files=files(tmp_path / "a") + "/*", split="train").save_to_disk(tmp_path / "saved")
    images, labels = stream(str(tmp_path / "folder"), shuffle_buffer_size=3).next(3)
    assert sorted(zip(told(images), labels.tolist())) == [(10, 1), (21, 0), (32, 2)]
    assert sorted(told(stream(str(tmp_path / "saved"), shuffle_buffer_size=20).next(100)[0])) == list(range(100))
    assert sorted(
        told(stream(files(tmp_path / "a") + "/train-00003-of-00004.parquet", shuffle_buffer_size=5).next(5)[0])
    ) == list(range(95, 100))


def test_splits_and_first_images(tmp_path):
    path = files(tmp_path)
    files(tmp_path, (10,), split="test", first=100)
    assert sorted(told(stream(Source(path, split="train+test"), shuffle_buffer_size=1).next(110)[0])) == list(
        range(110)
    )
    assert sorted(told(stream(path, max_images=50, shuffle_buffer_size=25).next(50)[0])) == list(range(50))
    with pytest.raises(UserError, match="has no split 'val'; it has train, test"):
        stream(Source(path, split="val"))


def test_labels_need_names(tmp_path):
    path = files(tmp_path, (6,), labels=[5, 0, 1, 2, 0, 1], names=None)
    labels = stream(path).next(6)[1]
    assert (labels, stream(path).num_classes) == (None, None)
    with pytest.raises(
        UserError, match=r"column 'label' of data set .* has no class names, and a stream does not tell"
    ):
        stream(Source(path, label_column="label"))
    with pytest.raises(UserError, match=r"row 0 of data set .* has the label 5, which is none of the 3 classes"):
        stream(Source(path, label_names=NAMES)).next(1)
    data = stream(Source(path, label_names=[*NAMES, "d", "e", "f"]), shuffle_buffer_size=1)
    assert (data.next(6)[1].tolist(), data.num_classes) == ([5, 0, 1, 2, 0, 1], 6)


def test_the_first_images_decide_and_later_ones_follow(tmp_path):
    values = [*range(70), (255, 0, 0), flat(200, (16, 16)), flat(200, (4, 8))]
    path = numbered(tmp_path / "a.parquet", values, shape=(6, 6))
    data = stream(path, shuffle_buffer_size=1)
    images = data.next(73)[0]
    assert (data.output_size, data.num_channels) == ((6, 6), 1)
    assert images[70:, 0, 3, 3].tolist() == [76, 200, 200]
    assert (images[:, :, 0] == 0).all()
    with pytest.raises(UserError, match=r"row 71 of data set .* \(read by process 0 in epoch 0\) is 16x16, others"):
        stream(path, resize="pad", shuffle_buffer_size=1).next(73)
    area = stream(path, resize="area", image_mode="RGB")
    assert (area.output_size, area.output_resize, area.num_channels) == ((6, 6), True, 3)


def test_bad_images_are_named_or_skipped(tmp_path):
    values = [1, 2, b"x", 3, None, 4]
    path = numbered(tmp_path / "a.parquet", values)
    with pytest.raises(UserError, match=r"row 2 of data set .* is not a readable image") as error:
        stream(path).next(1)
    assert "\n" not in str(error.value)
    data = stream(path, on_bad_image="skip", shuffle_buffer_size=4)
    assert sorted(told(data.next(4)[0])) == [1, 2, 3, 4]
    assert [line[:5] for line in data.skipped] == ["row 2", "row 4"]
    with pytest.raises(UserError, match=r"none of the first images of data set .* can be read"):
        stream(numbered(tmp_path / "b.parquet", [b"x", None]), on_bad_image="skip")


# ---- what is validated on


def test_another_split_is_validated_on(tmp_path):
    path = files(tmp_path)
    files(tmp_path, (20, 20), split="test", first=100)
    data, validation = opened(path, validation_split="auto", validation_images=9, shuffle_buffer_size=20)
    assert told(validation.images) == list(range(100, 109))
    assert validation.labels.tolist() == [number % 3 for number in told(validation.images)]
    assert (validation.num_classes, validation.label_names, validation.sizes) == (3, NAMES, (9,))
    assert sorted(told(data.next(100)[0])) == list(range(100))
    assert len(opened(path, validation_split="test")[1]) == 40
    with pytest.raises(UserError, match="has no split 'valid'"):
        opened(path, validation_split="valid")


@pytest.mark.parametrize(("num_processes", "held"), [(1, [0, 1, 2]), (2, [0, 1, 40]), (3, [0, 1, 2])])
def test_the_first_images_of_every_share_are_held_out(tmp_path, num_processes, held):
    """Of several processes that read files of their own, too, no image is both trained and validated on."""
    path = files(tmp_path)
    settings = {"validation_split": "auto", "validation_images": 3, "num_processes": num_processes}
    opened_by = [opened(path, rank=rank, shuffle_buffer_size=1, **settings) for rank in range(num_processes)]
    assert all(told(validation.images) == held for _, validation in opened_by)
    sizes = {1: [97], 2: [68, 29], 3: [33, 32, 32]}[num_processes]
    for _ in range(2):
        numbers = [number for (data, _), size in zip(opened_by, sizes) for number in told(data.next(size)[0])]
        assert sorted(numbers + held) == list(range(100))


def test_a_twentieth_is_held_out_at_most(tmp_path):
    path = files(tmp_path)
    assert len(opened(path, validation_split="auto")[1]) == 5
    assert len(opened(path, validation_split="auto", max_images=50)[1]) == 2
    assert opened(files(tmp_path / "few", (19,)), validation_split="auto")[1] is None


def test_labels_of_another_split_are_matched_by_name(tmp_path):
    numbered(tmp_path / "train.parquet", [1, 2, 3], labels=[0, 1, 2], names=NAMES)
    numbered(tmp_path / "test.parquet", [4, 5], labels=[0, 2], names=["c", "z", "b"])
    assert opened(str(tmp_path), validation_split="auto")[1].labels.tolist() == [2, 1]
    for labels, names in (([0, 1], ["c", "z", "b"]), ([-1, -1], NAMES), (None, None)):
        numbered(tmp_path / "test.parquet", [4, 5], labels=labels, names=names)
        assert opened(str(tmp_path), validation_split="auto")[1] is None
        with pytest.raises(UserError, match=r"row \d of data set .* has (no label|the label .*, which is none of)"):
            opened(str(tmp_path), validation_split="test")


# ---- the Hub


def upload(hub, folder, repo="alice/numbers", private=False):
    api = huggingface_hub.HfApi()
    api.create_repo(repo, repo_type="dataset", private=private)
    api.upload_folder(folder_path=folder, path_in_repo="data", repo_id=repo, repo_type="dataset")
    return repo


@BOTH_STORAGES
def test_a_private_set_of_the_hub_with_several_splits(hub, tmp_path, monkeypatch):
    files(tmp_path, (30, 10))
    files(tmp_path, (10,), split="test", first=100)
    repo = upload(hub, tmp_path, f"alice/numbers-{hub.storage}", private=True)
    with monkeypatch.context() as other:
        other.setenv("HF_TOKEN", "hf_nobody")
        for read in (load_images, stream):
            with pytest.raises(UserError, match=r"data set 'alice/numbers-.*' cannot be loaded: ") as error:
                read(repo)
            assert "\n" not in str(error.value)
    data, validation = opened(repo, validation_split="auto", shuffle_buffer_size=1)
    assert sorted(told(data.next(40)[0])) == list(range(40))
    assert told(validation.images) == list(range(100, 110))
    assert data.fingerprint.startswith(f"stream:{repo}:")
    state = data.state_dict()
    again = stream(repo, shuffle_buffer_size=1)
    again.load_state_dict(state)
    assert torch.equal(again.next(9)[0], data.next(9)[0])
    assert told(load_images(repo, split="test+train", sample_size=8).images)[:11] == [*range(100, 110), 0]


def test_as_many_are_held_out_as_the_hub_tells(hub, tmp_path):
    files(tmp_path, (30, 10))
    repo = upload(hub, tmp_path, f"alice/told-{hub.storage}")
    told_of = "---\ndataset_info:\n  splits:\n  - name: train\n    num_bytes: 1\n    num_examples: 200\n---\n"
    huggingface_hub.upload_file(
        path_or_fileobj=told_of.encode(), path_in_repo="README.md", repo_id=repo, repo_type="dataset"
    )
    data, validation = opened(repo, validation_split="auto", shuffle_buffer_size=1)
    assert told(validation.images) == list(range(10))
    assert told(data.next(30)[0]) == list(range(10, 40))


def test_a_connection_that_breaks_is_one_line(hub, tmp_path, monkeypatch):
    import datasets.utils.file_utils as file_utils

    monkeypatch.setattr(file_utils.config, "STREAMING_READ_MAX_RETRIES", 1)  # of twenty, five seconds apart
    monkeypatch.setattr(file_utils.config, "STREAMING_READ_RETRY_INTERVAL", 0)
    files(tmp_path, (3, 3))
    repo = upload(hub, tmp_path, f"alice/broken-{hub.storage}")
    data = stream(repo, shuffle_buffer_size=1)
    fault = hub.fault("GET", "train-", times=1000, status=403)
    with pytest.raises(UserError, match=r"data set .* cannot be read on from row 0: .*; the same") as error:
        data.next(6)
    assert "\n" not in str(error.value)
    assert fault.hits
    hub.faults.clear()  # the same stream goes on, too
    assert sorted(told(data.next(6)[0])) == list(range(6))


def test_a_program_ends_while_it_reads_ahead(tmp_path, root):
    script = (
        "import sys\n"
        "from ddpm_hf.data import Source, open_stream\n"
        "data, _ = open_stream(Source(sys.argv[1]), validation_split=None, shuffle_buffer_size=64)\n"
        "print(len(data.next(10)[0]))"
    )
    path = files(tmp_path)
    result = subprocess.run([sys.executable, "-c", script, path], cwd=root, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout, result.stderr) == (0, "10\n", "")


def test_idx_files_are_not_streamed(tmp_path):
    from making import PIXELS, write_idx

    write_idx(tmp_path / "train-images-idx3-ubyte", PIXELS)
    with pytest.raises(UserError, match="is of arrays, which are read whole; not as a stream"):
        stream(str(tmp_path))
    assert np.array_equal(load_images(str(tmp_path), sample_size=28).images[:, 0], PIXELS)
