"""JSON and YAML that others wrote: bounded before they are built, one ValueError for all that is wrong."""

import ast
import os
import time
import tracemalloc

import pytest
from helpers import ROOT

from ddpm_hf.reading import LARGEST_YAML, parse_json, parse_yaml, read_json, read_text, read_yaml

LEVELS = "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 10)}]" for i in range(9))
MERGES = "\n".join(f"{chr(98 + i)}: &{chr(98 + i)}\n  <<: [{', '.join([f'*{chr(97 + i)}'] * 10)}]" for i in range(9))


def test_what_is_usual_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, -2.5, null, true, "ü"], "b": {"c": -Infinity}}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": [1, -2.5, None, True, "ü"], "b": {"c": -float("inf")}}
    (tmp_path / "a.yaml").write_text("base: &base {a: 1, b: [x, y]}\nmine:\n  <<: *base\n  a: 2\n  again: *base\n")
    base = {"a": 1, "b": ["x", "y"]}
    assert read_yaml(tmp_path / "a.yaml") == {"base": base, "mine": {"a": 2, "b": ["x", "y"], "again": base}}
    assert parse_yaml("") is None and parse_yaml("5") == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested more than 50 deep"),
        ('{"a":' * 60 + "1" + "}" * 60, "nested more than 50 deep"),
        ("9" * 10_000, "a number of more than 1000 digits"),
        (f"[{'1,' * 1_100_000}1]", "more than 1,000,000 values"),
        ("{", "line 1"),
        ("", "line 1"),
    ],
    ids=["deep", "deep objects", "digits", "many", "torn", "empty"],
)
def test_json(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested more than 50 deep|exceeded max"),
        ("\n".join(" " * i + "a:" for i in range(500)), "nested more than 50 deep"),
        (f"a: &a [{', '.join('x' * 10)}]\n{LEVELS}", "more than 1,000,000 values"),
        (f"a: &a {{{', '.join(f'{c}: 1' for c in 'klmnopqrst')}}}\n{MERGES}", "more than 1,000,000 values"),
        ("a: &a [*a]", "an alias 'a' within what it stands for"),
        ("a: &a {<<: *a}", "an alias 'a' within what it stands for"),
        ("a: *b", "line 1: it is not YAML"),
        ("a: 1\nb: [", "line [23]: it is not YAML"),
        ("a: !!python/object/apply:os.system [true]", "it is not YAML: could not determine a constructor"),
        ("5: a", "a key 5, which is not text"),
        ("null: a", "a key None, which is not text"),
        ("a: {no: 1}", "a key False, which is not text"),
        ("? [1]\n: a", "it is not YAML: found unhashable key|which is not text"),
        (f"a: {'9' * 10_000}", "digit"),
        (f"a: {'9' * 2000}", "a number of more than 1000 digits"),
        ("a: !!int b", "invalid literal"),
        ("a: !!bool b", "a value that does not fit its tag"),
        ("a: 2024-99-99", "month must be in"),
        ("a: \0", "it is not YAML"),
    ],
)
def test_yaml(text, message):
    start = time.process_time()
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)
    assert time.process_time() - start < 10


@pytest.mark.timeout(200)
def test_only_regular_files_of_a_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        for read in (read_text, read_json, read_yaml):
            with pytest.raises(ValueError, match="it is not a regular file"):
                read(tmp_path / name)
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**34)
    for read, limit in ((read_text, 256), (read_json, 16), (read_yaml, 1)):
        with pytest.raises(ValueError, match=f"it is larger than {limit} MiB"):
            read(tmp_path / "large")
        with pytest.raises(OSError, match="directory"):
            read(tmp_path)
        with pytest.raises(OSError, match="No such file"):
            read(tmp_path / "none")
    (tmp_path / "exact").write_text(f"a: {' ' * (LARGEST_YAML - 4)}5")
    assert read_yaml(tmp_path / "exact") == {"a": 5}
    (tmp_path / "latin").write_bytes("ü".encode("latin-1"))
    with pytest.raises(ValueError, match="utf-8"):
        read_text(tmp_path / "latin")


def test_a_small_file_takes_little_memory(tmp_path):
    (tmp_path / "a").write_text("a")
    tracemalloc.start()
    assert read_text(tmp_path / "a") == "a"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20


def test_nothing_else_reads_json_or_yaml():
    """But requests of the server, what our own processes and objects say, and files that are uploaded with models."""
    others = {"reading.py", "guard.py", "bodies.py", "upload.py", "space.py", "scheduler.py", "pipeline.py"}
    for path in (ROOT / "ddpm_hf").rglob("*.py"):
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        found = calls & {"json.load", "json.loads", "yaml.load", "yaml.safe_load"}
        assert not found or path.name in others, f"{path}: use ddpm_hf.reading"
