"""Streams: every image once an epoch, each process its share, and a resume at the very image."""

import json
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
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
    """With fewer files than processes as with more: as many epochs as processes show each image that often."""
    path = files(tmp_path, (20, 20, 20, 20))
    streams = [stream(path, rank=r, num_processes=num_processes, shuffle_buffer_size=1) for r in range(num_processes)]
    numbers = np.stack([told(data.next(80)[0]) for data in streams])
    assert (np.bincount(numbers.ravel(), minlength=80) == num_processes).all()
    if num_processes != 3:  # four files are not three processes' at a time
        epoch = numbers[:, : 80 // num_processes]
        assert sorted(epoch.ravel()) == list(range(80))


@pytest.mark.parametrize("num_processes", [1, 2, 6])
@pytest.mark.parametrize("taken", [0, 1, 15, 16, 17, 100, 230])
def test_a_resumed_stream_goes_on_at_the_next_image(tmp_path, num_processes, taken):
    path, rank = files(tmp_path), num_processes - 1
    first = stream(path, rank=rank, num_processes=num_processes)
    for count in [7] * (taken // 7) + [taken % 7] * (taken % 7 > 0):
        first.next(count)
    state = json.loads(json.dumps(first.state_dict()))
    again = stream(path, rank=rank, num_processes=num_processes)
    again.load_state_dict(state)
    assert again.state_dict() == state == first.state_dict()
    for count in (1, 20, 130):
        for one, other in zip(first.next(count), again.next(count)):
            assert torch.equal(one, other)
    used = stream(path, rank=rank, num_processes=num_processes)
    used.next(33)  # a state takes a stream back, too
    used.load_state_dict(state)
    assert used.state_dict() == state


def test_a_state_of_other_files_is_refused(tmp_path):
    state = stream(files(tmp_path / "a")).state_dict()
    with pytest.raises(UserError, match=r"had 4 parts when the run began, now 2; give the revision"):
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
    with pytest.raises(
        UserError, match=r"row 0 of part 0 of data set .* has the label 5, which is none of its 3 classes"
    ):
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
    with pytest.raises(UserError, match=r"row 71 of part 0 of data set .* is 16x16, others are 6x6; use"):
        stream(path, resize="pad", shuffle_buffer_size=1).next(73)
    area = stream(path, resize="area", image_mode="RGB")
    assert (area.output_size, area.output_resize, area.num_channels) == ((6, 6), True, 3)


def test_bad_images_are_named_or_skipped(tmp_path):
    values = [1, 2, b"x", 3, None, 4]
    path = numbered(tmp_path / "a.parquet", values)
    with pytest.raises(UserError, match=r"row 2 of part 0 of data set .* is not a readable image") as error:
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
    assert told(validation.images) == [100, 101, 102, 103, 104, 120, 121, 122, 123]
    assert validation.labels.tolist() == [number % 3 for number in told(validation.images)]
    assert (validation.num_classes, validation.label_names, validation.sizes) == (3, NAMES, (9,))
    assert sorted(told(data.next(100)[0])) == list(range(100))
    assert len(opened(path, validation_split="test")[1]) == 40
    with pytest.raises(UserError, match="has no split 'valid'"):
        opened(path, validation_split="valid")


def test_every_twentieth_row_is_held_out_where_their_number_is_not_known(tmp_path):
    path = files(tmp_path)
    data, validation = opened(path, validation_split="auto", validation_images=3, shuffle_buffer_size=1)
    assert told(validation.images) == [19, 59, 84]
    numbers = told(data.next(97)[0])
    assert sorted(numbers + told(validation.images)) == list(range(100))
    assert opened(files(tmp_path / "few", (19,)), validation_split="auto")[1] is None


def test_labels_of_another_split_are_matched_by_name(tmp_path):
    numbered(tmp_path / "train.parquet", [1, 2, 3], labels=[0, 1, 2], names=NAMES)
    for labels, expected in (([0, 2], [2, 1]), ([0, 1], "has the label 'z', which its split 'train' does not have")):
        numbered(tmp_path / "test.parquet", [4, 5], labels=labels, names=["c", "z", "b"])
        if isinstance(expected, list):
            assert opened(str(tmp_path), validation_split="auto")[1].labels.tolist() == expected
        else:
            with pytest.raises(UserError, match=expected):
                opened(str(tmp_path), validation_split="auto")
    numbered(tmp_path / "test.parquet", [4, 5], labels=[-1, -1], names=NAMES)
    assert opened(str(tmp_path), validation_split="auto")[1] is None


# ---- the Hub


def upload(hub, folder, repo="alice/numbers", private=False):
    if hub.storage == "xet":
        pytest.importorskip("hf_xet")
    api = huggingface_hub.HfApi()
    api.create_repo(repo, repo_type="dataset", private=private)
    api.upload_folder(folder_path=folder, path_in_repo="data", repo_id=repo, repo_type="dataset")
    return repo


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


def test_a_connection_that_breaks_is_one_line(hub, tmp_path, monkeypatch):
    import datasets.utils.file_utils as file_utils

    monkeypatch.setattr(file_utils.config, "STREAMING_READ_MAX_RETRIES", 1)  # of twenty, five seconds apart
    monkeypatch.setattr(file_utils.config, "STREAMING_READ_RETRY_INTERVAL", 0)
    files(tmp_path, (3, 3))
    repo = upload(hub, tmp_path, f"alice/broken-{hub.storage}")
    data = stream(repo, shuffle_buffer_size=1)
    fault = hub.fault("GET", "train-", times=1000, status=403)
    with pytest.raises(UserError, match=r"part \d of data set .* cannot be read on from row 0: .*; the same") as error:
        data.next(6)
    assert "\n" not in str(error.value)
    assert fault.hits
    hub.faults.clear()
    data.load_state_dict(stream(repo).state_dict())
    assert sorted(told(data.next(6)[0])) == list(range(6))


def test_a_program_ends_while_it_reads_ahead(tmp_path, root):
    script = (
        "import sys\n"
        "from ddpm_hf.data import Source, open_stream\n"
        "data, _ = open_stream(Source(sys.argv[1]), validation_split=None, shuffle_buffer_size=64)\n"
        "print(len(data.next(10)[0]))"
    )
    path = files(tmp_path)
    result = subprocess.run([sys.executable, "-c", script, path], cwd=root, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "10\n", "")


def test_idx_files_are_not_streamed(tmp_path):
    from making import PIXELS, write_idx

    write_idx(tmp_path / "train-images-idx3-ubyte", PIXELS)
    with pytest.raises(UserError, match="is of IDX files, which are read whole; not as a stream"):
        stream(str(tmp_path))
    assert np.array_equal(load_images(str(tmp_path), sample_size=28).images[:, 0], PIXELS)
