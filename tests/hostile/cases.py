"""Hostile models and settings as data: what is changed, what is done with it, and what the error must say."""

import hashlib
import json
import os
import pickle
import shutil
import struct
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest

INDEX, UNET, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
PARTS = "unet/diffusion_pytorch_model.safetensors.index.json"
NAN = float("nan")
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp.\u2066\n\r\t"
SAMPLE = ("sample", "model", "--num-images", "16", "--steps", "2", "--output", "x.png")
MEMORY = 300 * 2**20  # bytes that a case may take besides what the process has


@dataclass(frozen=True)
class Link:
    """A symbolic link in a file's place."""

    target: str


@dataclass(frozen=True)
class Sparse:
    """A file of so many bytes, all zero, that take no room."""

    size: int


PIPE, FOLDER, SEALED = Enum("Made", "PIPE FOLDER SEALED")


@dataclass(frozen=True)
class Case:
    """A change of something valid, and its right outcome.

    Attributes:
        files: path -> the settings that differ in a JSON file, or the file's whole text or bytes, a Link, a Sparse,
            PIPE, FOLDER, None: there is no such file, or SEALED: the manifest of a checkpoint as it is now.
        words: of the one-line error, a regular expression, "" for any; None where it must work.
        command: what is done, in the folder that holds the valid thing.
        base: the valid thing: model, stock (of diffusers' own classes) or run.
        seconds, memory: that it may take. slow: whether it is among the slow tests.
    """

    name: str
    files: dict = field(repr=False)
    words: str | None = "cannot be loaded"
    command: tuple[str, ...] = SAMPLE
    base: str = "model"
    seconds: float = 30.0
    memory: int = MEMORY
    slow: bool = False


def header(tensors: dict, length: int | None = None) -> bytes:
    """A safetensors file with this header and nothing behind it."""
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def tensor(*shape, dtype="F32", offsets=(0, 0)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


class Ran:
    """What unpickles to a file called ran."""

    def __reduce__(self):
        return open, ("ran", "w")


NETWORK = [  # settings of MyUNet, and words of the error
    ({"num_train_timesteps": 10**9}, "'num_train_timesteps': .*less than or equal to 100000"),
    ({"num_train_timesteps": 2 * 10**7}, "'num_train_timesteps'"),
    ({"num_train_timesteps": 99_999}, r"time_embed.weight has the shape \(20, 16\), not \(99999, 16\)"),
    ({"num_train_timesteps": 0}, "'num_train_timesteps': .*greater than or equal to 1"),
    ({"num_train_timesteps": -1}, "'num_train_timesteps'"),
    ({"num_train_timesteps": 20.5}, "'num_train_timesteps': .*integer"),
    ({"num_train_timesteps": "20"}, "'num_train_timesteps': .*integer"),
    ({"num_train_timesteps": True}, "'num_train_timesteps': .*integer"),
    ({"time_embed_dim": 10**9}, "'time_embed_dim': .*less than or equal to 16384"),
    ({"sample_size": [8, 10**7]}, "'sample_size'"),
    ({"dropout": NAN}, "'dropout'"),
]
FILES = [
    ("a string for the network", {UNET: '"../../other"'}, "config.json must hold an object, not a str"),
    ("a string for the scheduler", {SCHEDULER: '"someone/else"'}, "scheduler_config.json must hold an object"),
    ("a list for the index", {INDEX: "[]"}, "model_index.json must hold an object, not a list"),
    *((f"{name} nested deeply", {name: DEEP}, "nested more than 50 deep") for name in (INDEX, UNET, SCHEDULER)),
    *((f"{name} is a pipe", {name: PIPE}, "no|not") for name in (INDEX, UNET, SCHEDULER, WEIGHTS)),
    *((f"{name} is endless", {name: Link("/dev/zero")}, "no|not") for name in (INDEX, UNET, SCHEDULER, WEIGHTS)),
    *((f"{name} is large", {name: " " * 20_000_000 + "{}"}, "larger than 16 MiB") for name in (INDEX, UNET)),
    ("many values", {UNET: f'{{"a": [{"1," * 2_000_000}1]}}'}, "more than 1,000,000 values"),
    ("a number of many digits", {UNET: f'{{"sample_size": {"9" * 100_000}}}'}, "more than 1000 digits"),
    ("torn JSON", {UNET: '{"sample_size": 8'}, "config.json is not a JSON file that can be read"),
    ("UTF-16", {UNET: "{}".encode("utf-16")}, "config.json is not a JSON file that can be read"),
    ("empty weights", {WEIGHTS: b""}, "is not a safetensors file"),
    ("a long header", {WEIGHTS: header({}, 2**60)}, "is not a safetensors file"),
    ("a header beyond the file", {WEIGHTS: header({}, 10**6)}, "is not a safetensors file"),
    ("a header that is a list", {WEIGHTS: header([])}, "is not a safetensors file"),
    ("a header nested deeply", {WEIGHTS: struct.pack("<Q", len(DEEP)) + DEEP.encode()}, "is not a safetensors file"),
    ("a tensor without a shape", {WEIGHTS: header({"a": {}})}, "is not a safetensors file"),
    ("a tensor of a negative size", {WEIGHTS: header({"a": tensor(-1)})}, "is not a safetensors file"),
    ("a tensor of 2^80 values", {WEIGHTS: header({"a": tensor(2**40, 2**40)})}, "is missing"),
    ("other tensors", {WEIGHTS: header({"a": tensor(1)})}, "is missing"),
    ("an index of parts elsewhere", {PARTS: '{"weight_map": {"a": "../../weights"}}'}, "which is not there"),
    ("an index that is a list", {PARTS: "[]"}, "must hold an object"),
    ("an index without names", {PARTS: '{"weight_map": {"a": 5}}'}, "no weight_map with names"),
    ("an index of other parts", {PARTS: f'{{"weight_map": {{"a": "{Path(WEIGHTS).name}"}}}}'}, "cannot be loaded"),
    ("an index of parts with an absolute path", {PARTS: '{"weight_map": {"a": "/etc/passwd"}}'}, "which is not there"),
    ("an index of a pipe", {PARTS: '{"weight_map": {"a": "p"}}', "unet/p": PIPE}, "which is not there"),
    ("an index of many parts", {PARTS: json.dumps({"weight_map": dict.fromkeys(map(str, range(400_000)), "a")})}, ""),
    ("weights that a link leads to", {"w": b"", WEIGHTS: Link("../w")}, "is not a safetensors file"),
    ("weights of 8 GiB", {WEIGHTS: Sparse(2**33)}, "is not a safetensors file"),
    ("weights cut short", {WEIGHTS: header({"a": tensor(9, offsets=(0, 36))})}, "is not a safetensors file"),
    ("weights of complex numbers", {WEIGHTS: header({"a": tensor(0, dtype="C64")})}, "is missing"),
    ("offsets that are no numbers", {WEIGHTS: header({"a": tensor(0, offsets="ab")})}, "is not a safetensors file"),
    ("a pickle for weights", {WEIGHTS: pickle.dumps(Ran())}, "is not a safetensors file"),
    (
        "a pickle beside no weights",
        {WEIGHTS: None, "unet/diffusion_pytorch_model.bin": pickle.dumps(Ran())},
        "no safetensors weights; pickled weights can run code",
    ),
    ("a pickle beside weights", {"unet/diffusion_pytorch_model.bin": pickle.dumps(Ran())}, None),
    ("no index", {INDEX: None}, "has no model_index.json"),
    ("no scheduler", {SCHEDULER: None}, "no scheduler/scheduler_config.json"),
    ("no network", {UNET: None}, "has no config.json"),
    ("a folder for a file", {UNET: FOLDER}, "has no config.json"),
]


NETWORK += [
    ({"in_channels": 0}, "'in_channels'"),
    ({"in_channels": 2}, "channels|shape"),
    ({"in_channels": 10**6}, "'in_channels'"),
    ({"out_channels": 3}, "shape"),
    ({"block_out_channels": []}, ""),
    ({"block_out_channels": [8] * 13}, "'block_out_channels': .*at most 12"),
    ({"block_out_channels": [8, -16]}, "'block_out_channels'"),
    ({"block_out_channels": ["8", "16"]}, "'block_out_channels': .*integer"),
    ({"block_out_channels": "816"}, "'block_out_channels': .*list"),
    ({"block_out_channels": [8, 10**9]}, "'block_out_channels'"),
    ({"block_out_channels": [16_384] * 12}, "shape|divisible|missing"),
    ({"attention_levels": [10**9]}, ""),
    ({"attention_levels": [-1]}, ""),
    ({"num_attention_heads": 0}, ""),
    ({"num_attention_heads": 3}, ""),
    ({"num_attention_heads": 10**9}, "num_attention_heads must be a smaller number"),
    ({"norm_num_groups": 0}, ""),
    ({"norm_num_groups": 7}, ""),
    ({"feed_forward_dim": 10**9}, "'feed_forward_dim'"),
    ({"num_class_embeds": 10**9}, "'num_class_embeds'"),
    ({"num_class_embeds": 0}, "'num_class_embeds'"),
    ({"num_class_embeds": 99_999}, "shape"),
    ({"patch_size": 3}, ""),
    ({"patch_size": 10**9}, "'patch_size'"),
    ({"sample_size": 0}, "'sample_size'"),
    ({"sample_size": 100_000}, "'sample_size'"),
    ({"sample_size": [8]}, "'sample_size'"),
    ({"sample_size": [8, 8, 8]}, "'sample_size'"),
    ({"sample_size": "8"}, "'sample_size'"),
    ({"sample_size": None}, ""),
    ({"sample_size": 4096}, "shape"),
    ({"dropout": 2}, "'dropout'"),
    ({"dropout": "\x1b[2J"}, "'dropout'"),
    ({"normalize_input": "\x1b[2J" * 1000}, None),
    ({"unknown": "x" * 10**7}, "unknown must be a smaller number or text"),
    ({"unknown": [10**30]}, "unknown must be a smaller number or text"),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, ""),
    ({"auto_map": {"MyUNet": "evil.Evil"}}, None),
    ({"_name_or_path": "../../../etc"}, None),
    ({"_class_name": "AutoencoderKL"}, None),
    ({"_diffusers_version": 5}, None),
]
STOCK_NETWORK = [  # settings of a UNet2DModel
    ({"layers_per_block": 100_000}, "'layers_per_block'"),
    ({"layers_per_block": 0}, "'layers_per_block'"),
    ({"layers_per_block": 100}, "is missing"),
    ({"down_block_types": []}, ""),
    ({"down_block_types": ["os.system"]}, ""),
    ({"down_block_types": ["DownBlock2D"] * 1000}, ""),
    ({"act_fn": "exec"}, ""),
    ({"act_fn": {"a": {"b": "c"}}}, ""),
    ({"attention_head_dim": 0}, ""),
    ({"norm_num_groups": 0}, ""),
    ({"norm_eps": NAN}, "norm_eps"),
    ({"freq_shift": 1e300}, None),
    ({"time_embedding_type": "\x1b[2J"}, ""),
    ({"mid_block_scale_factor": NAN}, "mid_block_scale_factor"),
    ({"mid_block_scale_factor": 0}, ""),
    ({"class_embed_type": "timestep"}, ""),
    ({"num_class_embeds": 10**5}, ""),
    ({"block_out_channels": [10**9]}, "'block_out_channels'"),
    ({"block_out_channels": [16_384]}, "shape"),
    ({"sample_size": 4096}, "would take about .* GiB of memory"),
    ({"num_train_timesteps": 10**9}, "'num_train_timesteps'"),
    ({"center_input_sample": "yes"}, None),
]
PROCESS = [  # settings of a DDPMScheduler
    ({"num_train_timesteps": 0}, "'num_train_timesteps'"),
    ({"num_train_timesteps": 10**8}, "'num_train_timesteps'"),
    ({"num_train_timesteps": 20.5}, "'num_train_timesteps'"),
    ({"num_train_timesteps": "20"}, "'num_train_timesteps'"),
    ({"num_train_timesteps": 21}, "its scheduler has 21 timesteps, its network knows only 20"),
    ({"beta_start": NAN}, "'beta_start'"),
    ({"beta_start": -1}, "'beta_start'"),
    ({"beta_start": "x"}, "'beta_start'"),
    ({"beta_end": float("inf")}, "'beta_end'"),
    ({"beta_end": 0}, None),
    ({"beta_schedule": "\x1b[2J"}, ""),
    ({"beta_schedule": 5}, ""),
    ({"trained_betas": [0.1]}, "trained_betas has 1 values for 20 steps"),
    ({"trained_betas": [NAN] * 20}, "'trained_betas'"),
    ({"trained_betas": [0.0] * 20}, ""),
    ({"trained_betas": "x" * 20}, "'trained_betas'"),
    ({"trained_betas": [[0.1]] * 20}, "'trained_betas'"),
    ({"variance_type": "\x1b[2J"}, None),
    ({"prediction_type": "\x1b[2J"}, ""),
    ({"thresholding": True, "dynamic_thresholding_ratio": 5}, "'dynamic_thresholding_ratio'"),
    ({"clip_sample_range": NAN}, "'clip_sample_range'"),
    ({"clip_sample_range": 0}, "'clip_sample_range'"),
    ({"timestep_spacing": "x"}, None),
    ({"steps_offset": 10**9}, "steps_offset must be a smaller number"),
    ({"steps_offset": -5}, None),
    ({"unknown": "x" * 10**7}, "unknown must be a smaller number or text"),
    ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 10**9}, "'solver_order'"),
    ({"__init__": 5}, None),
]
OF_PIPELINE = [  # of model_index.json
    ({"unet": None}, "has a unet of class None"),
    ({"unet": "MyUNet"}, "has a unet of class None"),
    ({"unet": ["diffusers"]}, "has a unet of class None"),
    ({"unet": {"0": "diffusers", "1": "MyUNet"}}, "has a unet of class None"),
    ({"unet": ["diffusers", ["MyUNet"]]}, "has a unet of class"),
    ({"unet": ["diffusers", "AutoencoderKL"]}, "has a unet of class AutoencoderKL"),
    ({"unet": ["diffusers", "UNet2DModel"]}, ""),
    ({"unet": ["os", "system"]}, "has a unet of class system"),
    ({"scheduler": ["diffusers", "StableDiffusionPipeline"]}, "has a scheduler of class StableDiffusionPipeline"),
    ({"scheduler": ["diffusers", "__init__"]}, "has a scheduler of class __init__"),
    ({"scheduler": ["diffusers", ESCAPES]}, "has a scheduler of class"),
    ({"_class_name": 5}, None),
    ({"output_height": 0}, "output_height in model_index.json must be a whole number"),
    ({"output_height": 10**9}, "output_height in model_index.json must be a whole number"),
    ({"output_height": "7"}, "output_height in model_index.json must be a whole number"),
    ({"output_width": True}, "output_width in model_index.json must be a whole number"),
    ({"output_width": NAN}, "output_width in model_index.json must be a whole number"),
    ({"output_resize": "yes"}, "output_resize in model_index.json must be true or false"),
    ({"output_resize": True, "output_height": 4096, "output_width": 4096}, "would take about .* GiB of memory"),
    ({"id2label": ["a", "b"]}, "id2label in model_index.json must give a name"),
    ({"id2label": {"0": 5, "1": "b"}}, "id2label in model_index.json must give a name"),
    ({"id2label": {"0": "a"}}, None),
    ({"id2label": {"x": "a", "y": "b"}}, None),
    ({"id2label": {str(i): "a" for i in range(100_000)}}, None),
    ({"id2label": {"0": "x" * 10**7, "1": ESCAPES}}, None),
    ({"id2label": {"0": "a", "1": "a"}}, None),
    ({"num_inference_steps": 0}, ""),
    ({"num_inference_steps": 10**9}, ""),
    ({"num_inference_steps": "x"}, ""),
    ({"guidance_scale": NAN}, ""),
    ({"guidance_scale": 1e30}, ""),
    ({"guidance_scale": "2"}, ""),
    ({"guidance_interval": [5]}, ""),
    ({"guidance_interval": [400, 0]}, ""),
    ({"guidance_interval": ESCAPES}, ""),
    ({"_weights": ["x"]}, None),
    ({"vae": ["diffusers", "AutoencoderKL"]}, None),
]
EVIL = "raise SystemExit('ran')"
CODE = [
    (
        "code",
        {INDEX: {"unet": ["evil", "Evil"]}, "unet/evil.py": EVIL, "pipe.py": EVIL, "scheduler/a.py": EVIL},
        r"brings code of its own, .*pipe\.py, scheduler/a\.py.*unet/evil\.py",
    ),
    (
        "code of a thousand files",
        {INDEX: {"unet": ["evil", "Evil"]}, "unet/evil.py": EVIL, **{f"f{i}.py": "" for i in range(1000)}},
        "files of code, more than can be shown",
    ),
    (
        "code with escapes in its name",
        {INDEX: {"unet": ["evil", "Evil"]}, "unet/evil.py": EVIL, "\x1b[2Jharmless.py": EVIL},
        r"brings code of its own, \?\[2Jharmless\.py",
    ),
    ("code elsewhere", {INDEX: {"unet": ["../evil", "Evil"]}, "evil.py": EVIL}, "has a unet of class Evil; known"),
    (
        "code of the pipeline alone",
        {INDEX: {"_class_name": ["pipe", "Pipe"]}, "pipe.py": EVIL},
        None,  # ours is used
    ),
    ("a module beside it that torch is called", {"torch.py": EVIL, "unet/json.py": EVIL, "unet/torch.py": EVIL}, None),
]


def _named(changes: list[tuple], file: str, base: str = "model") -> list[Case]:
    return [Case(f"{base} {file} {str(change)[:60]!r}", {file: change}, words, base=base) for change, words in changes]


def parameters(cases: list[Case]) -> list:
    """The cases as parameters of a test."""
    return [pytest.param(case, id=case.name[:70], marks=[pytest.mark.slow] * case.slow) for case in cases]


def model_cases() -> list[Case]:
    """Changes of an exported model, tried with ``sample``."""
    cases = [Case(name, files, words) for name, files, words in FILES + CODE]
    cases += _named(NETWORK, UNET) + _named(STOCK_NETWORK, UNET, "stock")
    return cases + _named(PROCESS, SCHEDULER) + _named(OF_PIPELINE, INDEX)


BOMB = "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"l{i + 1}: &l{i + 1} [{', '.join([f'*l{i}'] * 10)}]" for i in range(9)
)
SETTINGS = [  # text of a YAML file beside a valid data set, and words of the error
    ("num_train_timesteps: 10000000000", "'num_train_timesteps': .*less than or equal to 100000"),
    ("block_out_channels: [10000000, 10000000]", "'block_out_channels'"),
    ("block_out_channels: [16384, 16384]\nattention_levels: []", "training .* parameters would take .* GiB"),
    ("block_out_channels: &a [8, 16]\nattention_levels: *a", "attention_levels"),
    ("train_batch_size: 1000000000000", "'train_batch_size'"),
    ("seed: -1", "'seed'"),
    (f"seed: {'9' * 10_000}", "digit"),
    (f"learning_rate: {'9' * 900}", "'learning_rate'"),
    ("learning_rate: .nan", "'learning_rate'"),
    ("learning_rate: .inf", "'learning_rate'"),
    ("5: 6", "a key 5, which is not text"),
    ("null: 6", "a key None, which is not text"),
    ("? {a: b}\n: 6", "cannot be read"),
    (f"label_names: {'[' * 500}{']' * 500}", "nested more than 50 deep"),
    ("\n".join(" " * i + "a:" for i in range(500)), "nested more than 50 deep"),
    ("label_names: [" + "a," * 110_000 + "a]", "'label_names': .*at most 100000"),
    ("label_names: &a [*a]", "an alias 'a' within"),
    ("a: !!python/object/apply:os.system [touch ran]", "could not determine a constructor"),
    (f"dataset_split: {'x' * 10**6}", "larger than|'dataset_split'"),
    ("patch_size: 1000000", "'patch_size'"),
    ("layers_per_block: 100000\nmodel: unet2d", "'layers_per_block'"),
    ("- a\n- b", "must hold 'setting: value' lines"),
    ("\0", "cannot be read"),
    (BOMB, "more than 1,000,000 values"),
]


def settings_cases() -> list[Case]:
    """Texts of a YAML file, tried with ``train``."""
    command = ("train", "--config", "a.yaml", "--dataset", "data.parquet", "--output_dir", "run")
    command += ("--max_train_steps", "1", "--mixed_precision", "no")  # a process has one precision
    return [Case(text[:60], {"a.yaml": text}, words, command, "data") for text, words in SETTINGS]


def apply(folder: Path, files: dict):
    """Make the changes of a case in ``folder``."""
    for name, change in files.items():
        file = folder / name
        before = json.loads(file.read_text()) if isinstance(change, dict) else None
        if file.is_symlink() or file.is_file():
            file.unlink()
        elif file.is_dir():
            shutil.rmtree(file)
        if change is None:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        if change is PIPE:
            os.mkfifo(file)
        elif change is FOLDER:
            file.mkdir()
        elif change is SEALED:
            file.write_text(
                json.dumps({p.relative_to(file.parent).as_posix(): _fingerprint(p) for p in _files_in(file.parent)})
            )
        elif isinstance(change, Link):
            file.symlink_to(change.target)
        elif isinstance(change, Sparse):
            with open(file, "wb") as opened:
                opened.truncate(change.size)
        elif isinstance(change, dict):
            file.write_text(json.dumps({**before, **change}))
        elif isinstance(change, bytes):
            file.write_bytes(change)
        else:
            file.write_text(change)


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _fingerprint(path: Path) -> dict:
    content = path.read_bytes()
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
