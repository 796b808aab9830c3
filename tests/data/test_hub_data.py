"""Data sets of the Hub: whose they are, which part of them is read, and what becomes of a bad connection."""

import re

import huggingface_hub
import pytest
from making import numbered, told

from ddpm_hf.data import Source, load_images, open_stream
from ddpm_hf.errors import UserError
from ddpm_hf.hub.retries import RetryLimits

NAME = "alice/numbers"


@pytest.fixture(autouse=True)
def _afresh(tmp_path, monkeypatch):
    """No data set of another test in the caches, and little patience."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("ddpm_hf.data.sources.LIMITS", RetryLimits(silence=2, attempts=4, patience=20, first_wait=0.05))


@pytest.fixture
def put(tmp_path):
    """Commits parquet files of numbered pictures, ``{"data/train-0": values}``, and perhaps a card; gives the hash."""

    def put(files: dict[str, range], card: str | None = None, private: bool = False) -> str:
        folder = tmp_path / "made" / str(len(list(tmp_path.glob("made/*"))))
        for name, values in files.items():
            numbered(folder / f"{name}.parquet", values)
        if card is not None:
            (folder / "README.md").write_text(card)
        api = huggingface_hub.HfApi()
        api.create_repo(NAME, repo_type="dataset", exist_ok=True, private=private)
        return api.upload_folder(folder_path=folder, repo_id=NAME, repo_type="dataset").oid

    return put


def whole(split="train", **options) -> list[int]:
    """Which pictures ``load_images`` finds."""
    return sorted(told(load_images(NAME, split=split, sample_size=8, **options).images))


def streamed(split="train", *, config_name=None, **options) -> list[int]:
    """Which pictures a stream has in its first epoch."""
    source = Source(NAME, config_name, split, **options)
    data, _ = open_stream(source, sample_size=8, validation_split=None, shuffle_buffer_size=1)
    found = []
    try:
        while (picture := told(data.next(1)[0])[0]) not in found:
            found.append(picture)
    finally:
        data.close()
    return sorted(found)


BOTH_WAYS = pytest.mark.parametrize("read", [whole, streamed])


def fetched(hub) -> list[str]:
    """The large files whose content was asked for, in order."""
    return [entry["p"] for entry in hub.log if entry["m"] == "GET" and entry["p"].startswith("/cdn/")]


# ---- which part


@BOTH_WAYS
def test_revisions(hub, put, read):
    first = put({"data/train-0": range(5)})
    huggingface_hub.HfApi().create_tag(NAME, tag="v1", repo_type="dataset")
    put({"data/train-0": range(10, 13)})
    assert read() == [10, 11, 12]
    for revision in ("v1", first):
        assert read(revision=revision) == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=f"data set '{NAME}' cannot be loaded: Revision 'v9' doesn't exist") as error:
        read(revision="v9")
    assert "\n" not in str(error.value)


CONFIGS = """---
configs:
- config_name: gray
  data_files: gray/*.parquet
- config_name: dark
  data_files:
  - split: train
    path: dark/train-*.parquet
  - split: test
    path: dark/test-*.parquet
---
"""


@BOTH_WAYS
def test_configurations(hub, put, read):
    put({"gray/a": range(50, 53), "dark/train-0": range(3), "dark/test-0": range(3, 5)}, CONFIGS)
    assert read(config_name="gray") == [50, 51, 52]
    assert read(config_name="dark") == [0, 1, 2]
    assert read(config_name="dark", split="train+test") == [0, 1, 2, 3, 4]
    for options, message in [
        ({}, r"it has several configurations; give dataset_config one of 'gray', 'dark'\.$"),
        ({"config_name": "light"}, r"it has no configuration 'light'; give dataset_config one of 'gray', 'dark'\.$"),
        ({"config_name": "gray", "split": "test"}, "test"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            read(**options)
        assert "\n" not in str(error.value)


# ---- whose


@BOTH_WAYS
def test_a_private_set_takes_a_token(hub, put, read, monkeypatch):
    put({"data/train-0": range(5)}, private=True)
    for token, message in [
        ("hf_read", "nor a data set you can see on the Hub; for a private one, log in with"),
        ("hf_nobody", r"the Hub does not accept the token \(401"),
    ]:
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(UserError, match=message) as error:
            read()
        assert "\n" not in str(error.value) and token not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    assert read() == [0, 1, 2, 3, 4]


@BOTH_WAYS
def test_a_gated_set_names_the_page_to_visit(hub, put, read, monkeypatch):
    put({"data/train-0": range(5)})
    hub.repos["dataset", NAME].gated = True
    with monkeypatch.context() as other:
        other.setenv("HF_TOKEN", "hf_read")
        page = f"{hub.endpoint}/datasets/{NAME}"
        with pytest.raises(UserError, match=f"it is gated; ask for access on {page}, and log in") as error:
            read()
    assert "\n" not in str(error.value)
    assert read() == [0, 1, 2, 3, 4]


# ---- bad connections

FAULTS = [
    {"method": "GET", "path": f"/api/datasets/{NAME}", "status": 503, "times": 2},
    {"method": "GET", "path": f"/api/datasets/{NAME}", "lose_response": True, "times": 1},
    {"method": "GET", "path": f"/api/datasets/{NAME}", "status": 429, "times": 2, "headers": {"Retry-After": "0"}},
    {"method": "GET", "path": "/tree/", "status": 500, "times": 1},
    {"method": "HEAD", "path": "/resolve/", "status": 502, "times": 1},
    {"method": "GET", "path": "/cdn/", "status": 503, "times": 2},
    {"method": "GET", "path": "/cdn/", "truncate_after": 500, "times": 2},
    {"method": "GET", "path": "/cdn/", "truncate_after": 500, "times": 1, "fin": True},
]


def title(fault: dict) -> str:
    return "-".join(str(value) for name, value in fault.items() if name not in ("times", "headers"))


@pytest.mark.parametrize("fault", FAULTS, ids=title)
@BOTH_WAYS
def test_faults_on_the_way_are_outlived(hub, put, read, fault):
    put({f"data/train-0000{i}-of-00003": range(3 * i, 3 * i + 3) for i in range(3)})
    fault = hub.fault(**fault)
    assert read() == list(range(9))
    assert fault.hits


@BOTH_WAYS
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"status": 503}, r"the Hub is busy \(503.*\) and was so for 4 tries"),
        ({"status": 429, "headers": {"Retry-After": "900"}}, r"the Hub is busy \(429\) and asks to wait 900 s"),
        ({"lose_response": True}, r"the Hub cannot be reached or does not answer \(.*\)"),
    ],
)
def test_a_hub_that_stays_away_is_one_line(hub, put, read, fault, message):
    put({"data/train-0": range(5)})
    hub.fault("GET", "/api/datasets", times=1000, **fault)
    with pytest.raises(UserError, match=f"data set '{NAME}' cannot be loaded: {message}") as error:
        read()
    assert "\n" not in str(error.value)
    hub.faults.clear()
    assert read() == [0, 1, 2, 3, 4]


def test_an_interrupted_download_goes_on(hub, put):
    """Files that are whole are not fetched again, and one whose connection ended goes on where it stopped."""
    put({f"data/train-0000{i}-of-00003": range(3 * i, 3 * i + 3) for i in range(3)})
    hub.fault("GET", "/cdn/", times=1000, skip=1, truncate_after=100)
    with pytest.raises(UserError, match="the Hub cannot be reached or does not answer"):
        whole()
    hub.faults.clear()
    hub.log.clear()
    assert whole() == list(range(9))
    assert len(fetched(hub)) == 2
    hub.log.clear()
    assert whole() == list(range(9))
    assert fetched(hub) == []


def test_a_file_goes_on_where_its_connection_ended(hub, put, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)  # what is written at once
    put({"data/train-0": range(9)})
    hub.fault("GET", "/cdn/", times=1, truncate_after=700, fin=True)
    assert whole() == list(range(9))
    assert [entry["range"] for entry in hub.log if entry["p"].startswith("/cdn/")] == [None, "bytes=700-"]


def test_a_set_in_the_cache_needs_no_hub(hub, put, monkeypatch):
    """A run goes on though the Hub is down, or there is no network."""
    put({"data/train-0": range(5)})
    assert whole() == [0, 1, 2, 3, 4]
    hub.fault("GET", "/api/", times=1000, status=503)
    assert whole() == [0, 1, 2, 3, 4]
    hub.faults.clear()
    hub.log.clear()
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert whole() == [0, 1, 2, 3, 4]
    assert hub.log == []
    with pytest.raises(UserError, match=re.escape("data set 'alice/other' cannot be loaded: ")):
        load_images("alice/other")
