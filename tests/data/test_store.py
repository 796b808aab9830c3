"""Images in a file of the cache: the same as in memory, made once, whole or not at all, gathered without a copy."""

import multiprocessing
import os
import re
import shutil
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from making import LABELS, NAMES, PIXELS, RNG, numbered, table, told, write_idx
from PIL import Image

from ddpm_hf.data import Source, load_images, loading, open_data, store
from ddpm_hf.errors import UserError

TINY = {"sample_size": 8, "max_memory_gb": 1e-9}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of this test's own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ddpm_hf" / "images"


@pytest.fixture
def made(monkeypatch):
    """How often data were decoded so far, one entry each."""
    calls, store_images = [], loading.store_images
    monkeypatch.setattr(loading, "store_images", lambda *args: calls.append(args[0]) or store_images(*args))
    return calls


@pytest.mark.parametrize("kind", ["idx", "parquet"])
def test_a_file_holds_what_memory_would(tmp_path, kind):
    write_idx(tmp_path / "a-images-idx3-ubyte", PIXELS)
    write_idx(tmp_path / "a-labels-idx1-ubyte", LABELS)
    table().to_parquet(tmp_path / "a.parquet")
    path = str(tmp_path / ("a-images-idx3-ubyte" if kind == "idx" else "a.parquet"))
    held, mapped = load_images(path, label_names=NAMES), load_images(path, label_names=NAMES, max_memory_gb=1e-9)
    assert isinstance(mapped.images, np.memmap)
    assert not isinstance(held.images, np.memmap)
    assert np.array_equal(held.images, mapped.images)
    assert held.fingerprint == mapped.fingerprint
    for indices in (np.array([4, 0, 0]), np.array([-1])):
        for one, other in zip(held.take(indices) + held.batch(indices), mapped.take(indices) + mapped.batch(indices)):
            assert torch.equal(one, other)


def test_made_once_and_anew_when_the_data_or_the_settings_change(tmp_path, made, cache):
    path = numbered(tmp_path / "a.parquet", range(30))
    source = [Source(path)]
    first = open_data(source, **TINY)
    for more in ({}, {"max_memory_gb": 1}, {"validation_images": 1}):
        train, validation = open_data(source, **{**TINY, **more})
        assert sorted(told(train.images) + told(validation.images)) == list(range(30))
    assert len(made) == 1
    assert told(open_data(source, **TINY)[0].images) == told(first[0].images)
    changes = [{"resize": "crop"}, {"image_mode": "RGB"}, {"max_images": 29}, {"sample_size": 4}, {"seed": 1}]
    for count, more in enumerate([*changes, {"validation_split": None}], 2):
        open_data(source, **{**TINY, **more})
        assert len(made) == count
    numbered(tmp_path / "a.parquet", range(30, 60))
    assert told(open_data(source, **TINY, validation_split=None)[0].images) == list(range(30, 60))
    assert not list(cache.glob(".*"))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "saved"])
def test_made_anew_when_a_file_changes_that_a_row_points_to(tmp_path, made, kind):
    paths = [str(tmp_path / f"{value}.png") for value in range(4)]
    for value, path in enumerate(paths):
        Image.new("L", (8, 8), value).save(path)
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [None, *paths]}, features=features)
    source = str(tmp_path / ("set" if kind == "saved" else f"set.{kind}"))
    if kind == "parquet":
        pq.write_table(rows.data.table, source)
    else:
        file = source
        if kind == "saved":
            rows.save_to_disk(source)  # the bytes of the files, until they are taken away again
            file = str(next((tmp_path / "set").glob("*.arrow")))
        with pa.ipc.new_stream(file, rows.data.schema) as writer:
            writer.write_table(rows.data.table)
    options = {"on_bad_image": "skip", **TINY}
    for _ in range(2):
        assert told(load_images(source, **options).images) == [0, 1, 2, 3]
    assert len(made) == 1
    before = os.stat(paths[3])
    Image.new("L", (8, 8), 99).save(paths[3])
    os.utime(paths[3], ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert told(load_images(source, **options).images) == [0, 1, 2, 99]
    os.remove(paths[3])
    assert told(load_images(source, **options).images) == [0, 1, 2]


def test_skipped_images_are_told_of_again(tmp_path, made):
    path = numbered(tmp_path / "a.parquet", [1, b"x", 3, None])
    first, again = (load_images(path, on_bad_image="skip", **TINY) for _ in range(2))
    assert len(made) == 1
    assert first.skipped == again.skipped
    assert [line[:5] for line in again.skipped] == ["row 1", "row 3"]
    assert told(again.images) == [1, 3]


def cut(file):
    file.write_bytes(file.read_bytes()[:-20])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(folder / "images"),
        lambda folder: flip(folder / "images"),
        lambda folder: (folder / "images").unlink(),
        lambda folder: (folder / "info.json").unlink(),
        lambda folder: cut(folder / "info.json"),
        lambda folder: shutil.rmtree(folder),
    ],
)
def test_what_is_damaged_is_made_anew(tmp_path, made, cache, damage):
    path = numbered(tmp_path / "a.parquet", range(100))
    load_images(path, **TINY)
    damage(next(folder for folder in cache.iterdir() if folder.is_dir()))
    assert told(load_images(path, **TINY).images) == list(range(100))
    assert len(made) == 2
    load_images(path, **TINY)
    assert len(made) == 2


def test_what_fails_leaves_nothing(tmp_path, made, cache, monkeypatch):
    path = numbered(tmp_path / "a.parquet", range(10))
    with monkeypatch.context() as patch:
        patch.setattr(loading, "fit_rows", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(UserError, match=r"the disk of .* is full; set HF_HOME to another"):
            load_images(path, **TINY)
    assert not [entry for entry in cache.iterdir() if entry.is_dir()]
    (left := cache / f".{next(cache.iterdir()).stem}-killed").mkdir()  # of a process that was killed
    assert told(load_images(path, **TINY).images) == list(range(10))
    assert not left.exists()


def test_a_disk_that_is_too_small_is_told_of_beforehand(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(UserError, match=r"the images take .* GB, and the disk of .* has 0.0 GB left"):
        load_images(numbered(tmp_path / "a.parquet", range(10)), **TINY)


def test_without_the_cache_nothing_is_left(tmp_path, cache):
    data = load_images(numbered(tmp_path / "a.parquet", range(10)), cache=False, **TINY)
    assert not list(cache.iterdir())
    assert told(data.images) == list(range(10))


def opened_in_a_process(path, queue):
    calls, fit_parts = [], loading._fit_parts
    loading._fit_parts = lambda *args: calls.append(1) or fit_parts(*args)
    queue.put((len(calls), load_images(path, **TINY).fingerprint, len(calls)))


def test_of_several_processes_one_makes_it(tmp_path):
    path, context = numbered(tmp_path / "a.parquet", range(200)), multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=opened_in_a_process, args=(path, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(made for _, _, made in results) == [0, 0, 1]
    assert len({fingerprint for _, fingerprint, _ in results}) == 1


ANONYMOUS = """
import re, sys
import numpy as np
from ddpm_hf.data import ImageOrder, Source, open_data
for path in sys.argv[1:]:
    data, _ = open_data([Source(path)], max_memory_gb=1e-9, cache=False)
    order = ImageOrder(0, data.sizes)
    for step in range(200):
        data.take(order.indices(64 * step, 64))
    print(len(data), re.search(r"Anonymous: +(\\d+)", open("/proc/self/smaps_rollup").read())[1])
"""


def test_memory_does_not_grow_with_the_images(tmp_path, root):
    paths = [tmp_path / f"{count}-images-idx3-ubyte" for count in (100, 100_000)]
    for path, count in zip(paths, (100, 100_000)):
        write_idx(path, np.resize(RNG.integers(0, 256, 999), (count, 32, 32)))
    script = [sys.executable, "-c", ANONYMOUS, *map(str, paths)]
    result = subprocess.run(script, cwd=root, capture_output=True, text=True, timeout=300)
    (few, before), (many, after) = (map(int, line.split()) for line in result.stdout.splitlines())
    assert (few, many) == (95, 99_000), result.stderr  # the rest is held out
    assert (after - before) * 1024 < 50e6  # the images are 102 MB


def test_the_fingerprint_changes_with_the_data(tmp_path):
    values, labels = list(range(20)), [0, 1] * 10
    variants = {
        "the same": (values, labels, ["a", "b"]),
        "one image": ([*values[:-1], 77], labels, ["a", "b"]),
        "order": (values[::-1], labels, ["a", "b"]),
        "number": (values[:-1], labels[:-1], ["a", "b"]),
        "one label": (values, [1, *labels[1:]], ["a", "b"]),
        "name": (values, labels, ["a", "c"]),
        "no labels": (values, None, None),
    }
    prints = {
        load_images(numbered(tmp_path / f"{i}.parquet", values, labels=labels, names=names), sample_size=8).fingerprint
        for i, (values, labels, names) in enumerate(variants.values())
    }
    assert len(prints) == len(variants)
    assert all(re.fullmatch("[0-9a-f]{16}", text) for text in prints)
    assert load_images(str(tmp_path / "0.parquet"), sample_size=8).fingerprint in prints
