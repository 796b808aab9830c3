"""Several data sets as one, and which images are validated on."""

import re

import numpy as np
import pytest
from making import LABELS, NAMES, PIXELS, numbered, told, write_idx
from PIL import Image

from ddpm_hf.data import Source, open_data, open_stream
from ddpm_hf.errors import UserError


def opened(*sources, sample_size=8, validation_split=None, **settings):
    sources = [source if isinstance(source, Source) else Source(source) for source in sources]
    return open_data(sources, sample_size=sample_size, validation_split=validation_split, **settings)


# ---- classes


def test_classes_of_several_sets_are_numbered_one_set_after_the_other(tmp_path):
    letters = numbered(tmp_path / "letters.parquet", [1, 2, 3], labels=[2, 0, 1], names=["a", "b", "x"])
    more = numbered(tmp_path / "more.parquet", [(9, 9, 9), (8, 8, 8)], labels=[1, 0], names=["x", "c"], shape=(5, 6))
    plain = numbered(tmp_path / "plain.parquet", [20, 21])
    data, _ = opened(letters, more, plain)
    assert told(data.images[:, :, 2:]) == [1, 2, 3, 9, 8, 20, 21]
    assert data.labels.tolist() == [2, 0, 1, 4, 3, 5, 5]
    assert data.label_names == ["a", "b", "letters: x", "more: x", "c", "plain"]
    assert (data.num_classes, data.num_channels, data.output_size) == (6, 3, (8, 8))
    assert (data.sizes, data.source_names, data.weights) == ((3, 2, 2), ("letters", "more", "plain"), None)


def test_sets_without_labels_are_a_class_each(tmp_path):
    one, two = (numbered(tmp_path / name, [3, 4]) for name in ("one.parquet", "two.parquet"))
    data, _ = opened(one, Source(two, name="second"))
    assert (data.labels.tolist(), data.label_names) == ([0, 0, 1, 1], ["one", "second"])
    data, _ = opened(one)
    assert (data.labels, data.label_names, data.num_classes) == (None, None, None)


def test_sets_of_one_name_are_told_apart(tmp_path):
    paths = [numbered(tmp_path / folder / "set.parquet", [3], labels=[0], names=["a"]) for folder in "xy"]
    data, _ = opened(*paths)
    assert data.source_names == ("set", "set 2")
    assert data.label_names == ["set: a", "set 2: a"]


def test_numbers_for_names_where_a_set_has_none(tmp_path):
    write_idx(tmp_path / "digits-images-idx3-ubyte", PIXELS)
    write_idx(tmp_path / "digits-labels-idx1-ubyte", LABELS)
    path = str(tmp_path / "digits-images-idx3-ubyte")
    data, _ = opened(path, numbered(tmp_path / "b.parquet", [1], labels=[0], names=["1"]))
    assert data.label_names == ["0", "digits-images-idx3: 1", "2", "b: 1"]
    data, _ = opened(Source(path, label_names=NAMES), numbered(tmp_path / "b.parquet", [1]))
    assert data.label_names == [*NAMES, "b"]


def test_a_set_s_own_settings(tmp_path):
    first = numbered(tmp_path / "a.parquet", [1, 2, 3], labels=[7, 7, 9])
    data, _ = opened(Source(first, image_column="image", label_column="label", label_names=("x", "y")), first)
    assert data.labels.tolist() == [0, 0, 1, 2, 2, 3]
    assert data.label_names == ["x", "y", "7", "9"]
    for source, message in [
        (Source(first, image_column="images"), "no column 'images'"),
        (Source(first, label_names=("x",)), "1 label_names do not cover labels 0 to 1 of data set"),
        (Source(first, split="test"), "has no split 'test'; it has train"),
    ]:
        with pytest.raises(UserError, match=message):
            opened(first, source)


def test_names_tell_how_many_classes_a_set_has(tmp_path):
    first = numbered(tmp_path / "set" / "train.parquet", [1, 2], labels=[0, 1], names=["a", "b", "c", "d"])
    numbered(tmp_path / "set" / "test.parquet", [3, 4], labels=[1, 0], names=["a", "b", "c", "d"])
    second = numbered(tmp_path / "b.parquet", [5, 6], labels=[0, 1], names=["x", "y"])
    data, _ = opened(Source(first, label_names=("one", "two")), second)
    assert (data.labels.tolist(), data.label_names, data.num_classes) == ([0, 1, 2, 3], ["one", "two", "x", "y"], 4)
    data, _ = opened(Source(first, label_names=("one", "two", "three", "four", "five")), second)
    assert (data.labels.tolist(), data.num_classes, len(data.label_names)) == ([0, 1, 5, 6], 7, 7)
    few = Source(str(tmp_path / "set"), label_names=("one", "two"))
    data, validation = opened(few, validation_split="test")
    assert (data.num_classes, data.label_names, validation.labels.tolist()) == (2, ["one", "two"], [1, 0])
    numbered(tmp_path / "set" / "test.parquet", [3, 4], labels=[1, 2], names=["a", "b", "c", "d"])
    with pytest.raises(UserError, match="has the label 'c', which its split 'train' does not have"):
        opened(few, validation_split="test")
    with pytest.raises(UserError, match="1 label_names do not cover labels 0 to 1 of data set"):
        opened(Source(first, label_names=("one",)), second)


def test_weights(tmp_path):
    paths = [numbered(tmp_path / f"{i}.parquet", range(count)) for i, count in enumerate((30, 10))]
    weights = [opened(*(Source(p, weight=w) for p, w in zip(paths, ws)))[0].weights for ws in ((3, 1), (None, None))]
    assert weights == [(0.75, 0.25), None]
    with pytest.raises(
        UserError, match=r"^data set '.*0.parquet' has no weight, others have; give all a weight, or none"
    ):
        opened(Source(paths[0]), Source(paths[1], weight=0.25))
    assert opened(Source(paths[0], weight=3))[0].weights is None


def test_one_size_in_all_sets_is_padded_others_are_cropped(tmp_path):
    same = [numbered(tmp_path / f"{i}.parquet", [i], shape=(6, 5)) for i in range(2)]
    assert opened(*same)[0].output_size == (6, 5)
    assert opened(*same, numbered(tmp_path / "c.parquet", [9], shape=(5, 6)))[0].output_size == (8, 8)
    assert opened(*same, resize="area")[0].output_size == (6, 5)


def test_the_first_images_of_each(tmp_path):
    paths = [numbered(tmp_path / f"{i}.parquet", range(10 * i, 10 * i + 9)) for i in range(2)]
    assert told(opened(*paths, max_images=2)[0].images) == [0, 1, 10, 11]


# ---- what is validated on


def folder(tmp_path, **splits):
    for name, (values, labels) in splits.items():
        numbered(tmp_path / "set" / f"{name}-00000-of-00001.parquet", values, labels=labels, names=["a", "b", "c"])
    return str(tmp_path / "set")


@pytest.mark.parametrize("present", ["validation", "valid", "val", "test"])
def test_a_set_s_own_split_is_found(tmp_path, present):
    path = folder(tmp_path, train=(range(30), [0] * 30), **{present: (range(100, 110), [1] * 10)})
    train, validation = opened(path, validation_split="auto")
    assert (told(train.images), told(validation.images)) == (list(range(30)), list(range(100, 110)))
    assert validation.labels.tolist() == [1] * 10
    assert (validation.num_classes, validation.output_size, validation.label_names) == (3, (8, 8), ["a", "b", "c"])


def test_the_first_split_that_training_leaves_alone(tmp_path):
    splits = {"train": range(30), "test": range(40, 50), "validation": range(60, 70)}
    path = folder(tmp_path, **{name: (values, None) for name, values in splits.items()})
    assert told(opened(path, validation_split="auto")[1].images) == list(range(60, 70))
    assert told(opened(path, validation_split="test")[1].images) == list(range(40, 50))
    train, validation = opened(Source(path, split="train+validation"), validation_split="auto")
    assert told(validation.images) == list(range(40, 50))
    assert len(train) == 40
    train, validation = opened(Source(path, split="train+test+validation"), validation_split="auto")
    assert (len(train), len(validation)) == (48, 2)
    assert told(opened(path, validation_split="valid")[1].images) == list(range(60, 70))
    with pytest.raises(UserError, match="has no split 'holdout'; it has train, test, validation"):
        opened(path, validation_split="holdout")


@pytest.mark.parametrize(("count", "most", "expected"), [(19, 9, 0), (20, 9, 1), (99, 9, 4), (200, 9, 9), (200, 1, 1)])
def test_a_twentieth_is_held_out(tmp_path, count, most, expected):
    path = numbered(tmp_path / "a.parquet", range(count))
    seen = set()
    for seed in (0, 1, 1):
        train, validation = opened(path, validation_split="auto", validation_images=most, seed=seed)
        held = told(validation.images) if validation else []
        assert len(held) == expected
        assert sorted(told(train.images) + held) == list(range(count))
        assert train.sizes == (count - expected,)
        seen.add(tuple(held))
    assert len(seen) == (2 if expected else 1)
    assert opened(path, validation_split=None)[1] is None


@pytest.mark.parametrize("memory", [4, 1e-9])
def test_labels_stay_with_their_images(tmp_path, memory):
    values = np.arange(60)
    paths = [
        numbered(tmp_path / "a.parquet", values, labels=values % 3, names=["a", "b", "c"]),
        numbered(tmp_path / "b.parquet", values + 100, labels=(values + 100) % 4, names=["d", "e", "f", "g"]),
    ]
    for data in opened(*paths, validation_split="auto", max_memory_gb=memory):
        values = np.array(told(data.images))
        assert np.array_equal(data.labels, np.where(values < 100, values % 3, 3 + values % 4))
    assert data.sizes == (3, 3)


@pytest.mark.parametrize(
    ("trained", "validated"),
    [("train", "train"), ("train+test", "test"), ("test", "test + val"), ("train", "train[:9]"), ("t10k", "test")],
)
def test_images_that_are_trained_on_are_not_validated_on(tmp_path, trained, validated):
    path = folder(tmp_path, train=(range(30), None), test=(range(30), None), val=(range(9), None))
    message = (
        rf"^validation_split '{re.escape(validated)}' of data set .* has images of its split '{re.escape(trained)}'"
    )
    source = Source(path, split=trained)
    with pytest.raises(UserError, match=message):
        source.refuse_to_validate_on(validated)
    if trained == "train+test":
        for read in (open_data, lambda sources, **settings: open_stream(*sources, **settings)):
            with pytest.raises(UserError, match=message):
                read([source], validation_split=validated)


def test_slices_and_other_splits_are_validated_on(tmp_path):
    Source("a/b", split="train[:90%]").refuse_to_validate_on("train[90%:]")
    path = folder(tmp_path, train=(range(30), None), test=(range(40, 49), None), val=(range(60, 69), None))
    sources = [Source(path), Source(path, split="val")]
    assert set(told(opened(*sources, validation_split="auto")[1].images)) == set(range(40, 49))
    with pytest.raises(UserError, match="validation_split 'val' of data set"):
        opened(*sources, validation_split="val")


def test_of_a_set_that_is_there_twice_the_same_images_are_held_out(tmp_path):
    other = numbered(tmp_path / "other.parquet", range(100, 160))
    path = numbered(tmp_path / "set.parquet", range(100))
    sources = [Source(path, weight=1, name="a"), Source(other, weight=1), Source(path, weight=8, name="b")]
    train, validation = opened(*sources, validation_split="auto", validation_images=6)
    assert validation.sizes == (5, 1, 5)
    assert not set(told(train.images)) & set(told(validation.images))
    held = told(validation.images)
    assert held[:5] == held[6:]


def test_validation_images_are_spread_over_the_classes(tmp_path):
    labels = [0] * 50 + [1] * 30 + [2] * 20
    path = folder(tmp_path, train=([1, 2, 3], [0, 1, 2]), test=(range(100), labels))
    data = opened(path, validation_split="auto", validation_images=10)[1]
    assert np.bincount(data.labels).tolist() == [5, 3, 2]
    assert told(data.images) == sorted(told(data.images))


def test_only_the_validation_images_that_are_used_are_decoded(tmp_path):
    path = folder(tmp_path, train=([1, 2, 3], None), test=([5, *[b"x"] * 98, 6], None))
    assert told(opened(path, validation_split="auto", validation_images=2)[1].images) == [5, 6]
    with pytest.raises(UserError, match=r"row 50 of data set .* is not a readable image"):
        opened(path, validation_split="auto", validation_images=3)
    validation = opened(path, validation_split="auto", validation_images=3, on_bad_image="skip")[1]
    assert (told(validation.images), validation.sizes) == ([5, 6], (2,))
    assert [line.split(" of ")[0] for line in validation.skipped] == ["row 50"]


def test_several_sets_are_validated_on_in_proportion(tmp_path):
    own = folder(tmp_path, train=(range(100), [0] * 100), test=(range(100, 130), [1] * 30))
    other = numbered(tmp_path / "other.parquet", range(200, 255), labels=[0] * 55, names=["z"])
    _, validation = opened(own, other, validation_split="auto", validation_images=8)
    assert (validation.sizes, validation.labels.tolist()) == ((5, 2), [1] * 5 + [3] * 2)
    _, validation = opened(Source(own, weight=1), Source(other, weight=3), validation_split="auto", validation_images=4)
    assert validation.sizes == (1, 2)
    small = numbered(tmp_path / "small.parquet", range(3))
    _, validation = opened(small, own, validation_split="auto")
    assert (validation.sizes, validation.source_names) == ((30,), ("set",))
    with pytest.raises(UserError, match=r"'.*other.parquet' has no split 'test'; it has train"):
        opened(own, other, validation_split="test")


def test_labels_of_another_split_are_matched_by_name(tmp_path):
    numbered(tmp_path / "set" / "train.parquet", [1, 2, 3], labels=[0, 1, 2], names=["a", "b", "c"])
    numbered(tmp_path / "set" / "test.parquet", [4, 5], labels=[0, 2], names=["c", "z", "b"])
    assert opened(str(tmp_path / "set"), validation_split="test")[1].labels.tolist() == [2, 1]
    numbered(tmp_path / "set" / "test.parquet", [4, 5], labels=[0, 1], names=["c", "z", "b"])
    with pytest.raises(UserError, match=r"split 'test' of data set .* has the label 'z', which its split 'train' does"):
        opened(str(tmp_path / "set"), validation_split="auto")
    numbered(tmp_path / "set" / "test.parquet", [4, 5])
    with pytest.raises(UserError, match=r"split 'test' of data set .* has no labels, split 'train' has"):
        opened(str(tmp_path / "set"), validation_split="test")


def test_plain_labels_of_another_split_are_numbered_as_in_training(tmp_path):
    numbered(tmp_path / "set" / "train.parquet", [1, 2, 3], labels=[30, 10, 20])
    numbered(tmp_path / "set" / "test.parquet", [4, 5], labels=[30, 20])
    assert opened(str(tmp_path / "set"), validation_split="auto")[1].labels.tolist() == [2, 1]
    numbered(tmp_path / "set" / "test.parquet", [4, 5], labels=[30, 40])
    with pytest.raises(UserError, match="has the label '40', which"):
        opened(str(tmp_path / "set"), validation_split="auto")


@pytest.mark.parametrize("labels", [[-1] * 10, [None] * 10, None])
def test_a_split_without_its_labels_is_passed_over(tmp_path, labels):
    path = folder(tmp_path, train=(range(40), [0] * 40), test=(range(100, 110), labels))
    train, validation = opened(path, validation_split="auto")
    assert (len(train), len(validation)) == (38, 2)
    with pytest.raises(UserError, match=r"split 'test' of data set .* has no labels, split 'train' has"):
        opened(path, validation_split="test")


@pytest.mark.parametrize("missing", [-1, None])
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_without_a_label_among_others(tmp_path, missing, split):
    """Of a split that is trained or validated on, -1 and None alike: an error, or left out and counted."""
    labels = {"train": [0, 1, 0], "test": [1, 0, 0]} | {split: [0, missing, 1]}
    path = folder(tmp_path, train=([1, 2, 3], labels["train"]), test=([4, 5, 6], labels["test"]))
    with pytest.raises(UserError, match=r"^row 1 of data set .* has no label; on_bad_image: skip leaves such"):
        opened(path, validation_split="test")
    train, validation = opened(path, validation_split="test", on_bad_image="skip")
    values = told(train.images) + told(validation.images)
    assert values == [value for value in range(1, 7) if value != (2 if split == "train" else 5)]
    if split == "train":
        assert train.left_out == ("1 image without a label",)
    settings = {"sample_size": 8, "validation_split": None, "on_bad_image": "skip"}
    data, _ = open_stream(Source(path), shuffle_buffer_size=1, **settings)
    assert data.next(2)[1].tolist() == [0, 1]


def test_idx_splits(tmp_path):
    for prefix, count in (("train", 6), ("t10k", 4)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", PIXELS[:count])
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", LABELS[:count])
    train, validation = opened(str(tmp_path), sample_size=28, validation_split="auto")
    assert (len(train), len(validation), validation.labels.tolist()) == (6, 4, LABELS[:4].tolist())
    assert len(opened(Source(str(tmp_path), split="train+test"), sample_size=28)[0]) == 10
    for name in ("t10k", "test"):
        train, validation = opened(Source(str(tmp_path), split=name), sample_size=28, validation_split="auto")
        assert (len(train), validation) == (4, None)
    labels = np.array([0, 1, 2, 9])
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", labels)
    with pytest.raises(UserError, match="has the label 9, which its split 'train' does not have"):
        opened(str(tmp_path), sample_size=28, validation_split="auto")


def test_folders_of_splits(tmp_path):
    for split, values in (("train", [10, 20, 30]), ("val", [40, 41])):
        for value in values:
            (tmp_path / split / "abc"[value % 3]).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), value).save(tmp_path / split / "abc"[value % 3] / f"test_{value}.png")
    train, validation = opened(str(tmp_path), validation_split="auto")
    assert (sorted(told(train.images)), sorted(told(validation.images))) == ([10, 20, 30], [40, 41])
    assert train.label_names == ["a", "b", "c"]
