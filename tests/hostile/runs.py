"""Hostile runs and data sets as data: what is changed in a finished run, what is done with it, what must happen."""

import gzip
import json
import struct
import tarfile
import zlib
from dataclasses import asdict

from hostile.cases import BOMB, DEEP, ESCAPES, FOLDER, PIPE, SEALED, Case, Link, Sparse, header, tensor

from ddpm_hf.training.state import Progress

LAST = "run/checkpoints/step-2"
STATE, MANIFEST = f"{LAST}/state.json", f"{LAST}/manifest.json"
RESUME = ("train", "--config", "tiny.yaml", "--max_train_steps", "3")
ONE_STEP = ("--max_train_steps", "1", "--mixed_precision", "no")  # a process has one precision
REPORT = ("report", "run")
PUSH = ("push", "run", "--repo-id", "alice/hostile")
QUICK = ("metrics: nested lines", "evaluation.json: not finite", "sample: a bomb")
DAMAGED = None  # the checkpoint before is taken, with a warning


def _png(width: int, height: int) -> bytes:
    """A PNG of so many pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(10**6))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _tar(size: int) -> bytes:
    """A packed archive with the head of one picture that is so large."""
    head = tarfile.TarInfo("a.png")
    head.size = size
    return gzip.compress(head.tobuf() + bytes(1024), mtime=0)


def _progress(**values) -> dict:
    """Changes of a state.json's counters, with the manifest that fits."""
    counted = Progress(step=2, images_seen=16, good_steps=2, logged_images=16)
    return {STATE: {"progress": {**asdict(counted), **values}}, MANIFEST: SEALED}


def _case(name: str, files: dict, words: str | None, command=RESUME, **more) -> Case:
    slow = words is None and name not in QUICK  # the whole command
    return Case(f"{name}: {command[0]}", files, words, command, "run", slow=slow, **more)


STATES = [
    (_progress(step=-1), "step is -1"),
    (_progress(step=1.5), "step is 1.5"),
    (_progress(step=float("nan")), "step is nan"),
    (_progress(step=10**400), "step is 1"),
    (_progress(skipped_steps=True), "skipped_steps is True"),
    (_progress(loss_sum=float("inf")), "loss_sum is inf"),
    (_progress(loss_sum="\x1b[2J"), "loss_sum is"),
    (_progress(wall_seconds=-1e300), "wall_seconds is"),
    ({STATE: {"progress": [1]}, MANIFEST: SEALED}, "it holds no progress"),
    ({STATE: {"num_processes": "x"}, MANIFEST: SEALED}, "num_processes is 'x'"),
    ({STATE: {"ema_max_decays": [ESCAPES]}, MANIFEST: SEALED}, "its averages are of decay"),
    ({STATE: {"ema_max_decays": [[1]]}, MANIFEST: SEALED}, ""),
    ({STATE: {"fingerprint": ESCAPES}, MANIFEST: SEALED}, "the data set has changed since"),
    ({STATE: {"streams": "x"}, MANIFEST: SEALED}, None),
    ({STATE: "[]", MANIFEST: SEALED}, "it holds no progress"),
    ({STATE: DEEP, MANIFEST: SEALED}, "nested more than 50 deep"),
    ({STATE: f'{{"progress": {{"step": {"9" * 10_000}}}}}', MANIFEST: SEALED}, "more than 1000 digits"),
    ({STATE: "\0" * 100, MANIFEST: SEALED}, "is not what a run writes"),
]
CHECKPOINTS = [
    ({MANIFEST: "{}"}, DAMAGED),
    ({MANIFEST: "[]"}, DAMAGED),
    ({MANIFEST: DEEP}, DAMAGED),
    ({MANIFEST: '{"../../../secret": {"size": 0, "sha256": ""}}'}, DAMAGED),
    ({MANIFEST: '{"state.json": {"size": 1e400, "sha256": 5}}'}, DAMAGED),
    ({MANIFEST: '{"state.json": {"size": "\x1b", "sha256": null}}'}, DAMAGED),
    ({MANIFEST: PIPE}, DAMAGED),
    ({MANIFEST: Link("/dev/zero")}, DAMAGED),
    ({MANIFEST: None}, DAMAGED),
    ({STATE: PIPE}, DAMAGED),
    ({STATE: None, MANIFEST: SEALED}, ""),
    ({f"{LAST}/optimizer.safetensors": header({}), MANIFEST: SEALED}, "optimizer.safetensors is empty"),
    ({f"{LAST}/optimizer.safetensors": b"\x80\x04.", MANIFEST: SEALED}, "does not fit this run"),
    ({f"{LAST}/optimizer.safetensors": header({"a": tensor(0)}), MANIFEST: SEALED}, "does not fit this run"),
    ({f"{LAST}/optimizer.safetensors": header({"9.exp_avg": tensor(0)}), MANIFEST: SEALED}, "does not fit this run"),
    ({f"{LAST}/unet.safetensors": header({"a": tensor(0)}), MANIFEST: SEALED}, "does not fit this run"),
    ({f"{LAST}/unet.safetensors": header({"a": tensor(2**40, 2**40)}), MANIFEST: SEALED}, "does not fit this run"),
    ({f"{LAST}/unet.safetensors": header({}, 2**60), MANIFEST: SEALED}, "does not fit this run"),
    ({f"{LAST}/pipeline/unet/config.json": DEEP}, DAMAGED),
    ({"run/checkpoints/step-9999999999999999999999999/a": "a"}, DAMAGED),
    ({"run/checkpoints/step-²/a": "a"}, None),
    ({"run/checkpoints/step-7": "a file"}, DAMAGED),
    ({"run/checkpoints/step-7": Link(".")}, DAMAGED),
    ({"run/checkpoints": "a file"}, ""),
    ({"run/checkpoints": PIPE}, ""),
    ({"run/samples": "a file"}, ""),
    ({"run/samples": PIPE}, ""),
]
SETTINGS = [  # of config.yaml
    *(
        ({"run/config.yaml": content}, "but no readable config.yaml of a training run")
        for content in (
            "- a",
            "\0",
            "[" * 100_000,
            BOMB,
            "a: &a [*a]",
            " " * 2 * 10**6,
            PIPE,
            FOLDER,
            Link("/dev/zero"),
        )
    ),
    ({"run/config.yaml": None}, "but no readable config.yaml of a training run"),
]
METRICS = {
    "nested lines": f"{DEEP}\n",
    "a binary": b"\x00\xff\x1b[2J" * 1000,
    "a link to nowhere": Link("nowhere"),
    "an endless link": Link("/dev/zero"),
    "a pipe": PIPE,
    "a folder": FOLDER,
    "huge numbers": '{"step": 1e400, "loss": 1}\n{"step": 3, "loss": ' + "9" * 900 + "}\n",
    "many digits": '{"step": 3, "loss": ' + "9" * 10_000 + "}\n",
    "text for numbers": json.dumps({"step": "3", "loss": ESCAPES}) + "\n",
    "text beside numbers": json.dumps({"step": 3, "loss": ESCAPES, ESCAPES: ESCAPES, "validation_loss": [1]}) + "\n",
    "steps that go backwards": "".join(f'{{"step": {9 - i}, "loss": 0.5}}\n' for i in range(9)),
    "a hundred thousand lines": '{"step": 1}\n' * 10**5,
    "one long line": '{"step": 1, "loss": ' + " " * 50_000_000 + "1}",
    "a file of 1 GiB": Sparse(2**30),
}
EVALUATIONS = {
    "a list": "[]",
    "no object inside": '{"protocol": 5, "scores": []}',
    "nested": DEEP,
    "not finite": '{"protocol": {"num_images": NaN, "reference_images": 1e999}, "scores": {"fid": Infinity}}',
    "escapes": json.dumps({"protocol": {"num_images": 5, "features": ESCAPES}, "scores": {ESCAPES: 1}}),
    "many digits": f'{{"protocol": {{"num_images": {"9" * 5000}}}, "scores": {{}}}}',
    "UTF-16": "{}".encode("utf-16"),
    "20 MB": " " * 20_000_000 + "{}",
}
PICTURES = {
    "text": "no picture",
    "a bomb": _png(100_000, 100_000),
    "a pipe": PIPE,
    "endless": Link("/dev/zero"),
    "empty": "",
}
DATA = [  # files of a data set, and words of the error of train
    ({"d/a.png": _png(100_000, 100_000)}, ""),
    ({"d/a.png": "no picture"}, ""),
    ({"d/a.png": PIPE}, "left out: 1 pipes or devices"),
    ({"d/a.png": Link("/dev/zero")}, "left out: 1 pipes or devices"),
    ({"d/a.png": Sparse(2**33)}, "is not a readable image"),
    ({"d/a": PIPE, "d/data_batch_1": PIPE, "d/a.csv": Link("/dev/zero")}, "left out: 3 pipes or devices"),
    ({"d/train-images-idx3-ubyte": PIPE}, "not a regular file"),
    ({"d/a.png": Link("nowhere")}, ""),
    ({"d/a.png": FOLDER}, ""),
    ({"d/a.txt": "no picture"}, ""),
    ({f"d/{ESCAPES[:6]}/a.png": "no picture"}, ""),
    ({"d": "no data"}, ""),
    ({"d": PIPE}, ""),
    ({"d": Link("/dev/zero")}, ""),
    ({"d.parquet": "PAR1" + "x" * 100 + "PAR1"}, ""),
    ({"d.parquet": Sparse(2**33)}, ""),
    ({"d.parquet": PIPE}, ""),
    ({"d.tar.gz": _tar(2**50)}, "the images take 1048576.0 GB"),
    ({"d.arrow": b"ARROW1" + b"\xff" * 100}, ""),
    (
        {"d/train-images-idx3-ubyte.gz": gzip.compress(struct.pack(">IIII", 2051, 2**31 - 1, 2**15, 2**15), mtime=0)},
        "would take about .* GiB of memory",
    ),
    ({"d/train-images-idx3-ubyte.gz": gzip.compress(bytes(10**9), mtime=0)}, "is not a whole IDX file"),
    ({"d/train-images-idx3-ubyte.gz": b"\x1f\x8b"}, ""),
]


def run_cases() -> list[Case]:
    """Changes of a run of two steps with a checkpoint of each, which is taken further, shown, pushed or sampled."""
    cases = [_case(str(files)[:70], files, words) for files, words in STATES + CHECKPOINTS + SETTINGS]
    for name, content in METRICS.items():
        files = {"run/metrics.jsonl": content}
        in_the_way = "Is a directory" if name == "a folder" else None
        more = {"memory": 2**29} if name == "a file of 1 GiB" else {}  # half of it
        cases += [_case(f"metrics: {name}", files, in_the_way, **more)]
        cases += [_case(f"metrics: {name}", files, None, REPORT, **more)]
        cases += [_case(f"metrics: {name}", files, None, PUSH)] * (name != "a file of 1 GiB")
    for name, content in EVALUATIONS.items():
        cases.append(_case(f"evaluation.json: {name}", {"run/evaluation.json": content}, None, PUSH))
    for name, content in PICTURES.items():
        files = {"run/samples/step-0000002.png": content}
        disguised = "is not a PNG file" if name in ("text", "empty") else None
        cases += [_case(f"sample: {name}", files, None, REPORT), _case(f"sample: {name}", files, disguised, PUSH)]
    for content in ("[]", DEEP, json.dumps({ESCAPES: ESCAPES}), PIPE, Link("/dev/zero"), FOLDER):
        cases.append(_case(f"facts.json {str(content)[:20]!r}", {"run/facts.json": content}, None, REPORT))
    for files, words in DATA:
        name = next(iter(files)).split("/")[0]
        command = ("train", "--dataset", name, "--output_dir", "new", *ONE_STEP)
        cases.append(_case(f"data: {str(files)[:60]}", files, words, command))
    return cases
