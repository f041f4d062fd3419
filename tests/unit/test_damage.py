"""Hostile files end in one line: a share of `benchmarks/damage.py`, and each reader by itself."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import (
    InvalidTextError,
    check_regular,
    parse_json,
    read_json_lines,
)
from weighted_mtp.core.logging import note, run_log
from weighted_mtp.core.sums import Sums
from weighted_mtp.core.yaml_text import parse_yaml
from weighted_mtp.data.prepare.parts import Workspace
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.layouts.tensor_files import PickleFile, open_indexed
from weighted_mtp.pipelines.checkpointing.model_start import check_fresh

ROOT = Path(__file__).resolve().parents[2]


def script():
    spec = importlib.util.spec_from_file_location("damage", ROOT / "benchmarks" / "damage.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["damage"] = module
    spec.loader.exec_module(module)
    return module


def test_a_share_of_the_damages():
    """No exception but the one line, and no wait: 24 at random and 36 crafted."""
    damage = script()
    outcomes = damage.run_all(24, 36, 3, lambda outcome: None)
    bad = [outcome for outcome in outcomes if outcome.kind in ("traceback", "hang")]
    assert not bad
    assert sum(outcome.kind == "refused" for outcome in outcomes) > 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested"),
        (b"1" * 5000, "digits"),
        (b'{"a": 1e400}', "out of range"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' is given twice"),
        ("{}".encode("utf-16"), "UTF-16"),
        (b'"\xff"', "not UTF-8 at byte 1"),
    ],
)
def test_hostile_json(content, message):
    with pytest.raises(InvalidTextError, match=message):
        parse_json(content)


def test_json_with_a_byte_order_mark():
    assert parse_json(b'\xef\xbb\xbf{"a": [1, 2.5]}') == {"a": [1, 2.5]}


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "aliases are written out"),
        ("a: &a [*a]", "line 1: an alias contains itself"),
        ("a: 1\nb:\n  c: 1\n  c: 2", "line 4: the key 'c' is given twice"),
        ("a: !!set {b}", "tag set is not supported"),
        ("a: !!python/object/apply:os.system [true]", "not supported"),
        ("1: 2", "the key 1 is not text"),
        ("? [a]\n: 1", "is not text"),
        ("a: " + "[" * 20_000, "nested too deeply"),
        ("a: " + "1" * 5000, "digits"),
        ("a: !!int x", "invalid literal"),
    ],
)
def test_hostile_yaml(text, message):
    with pytest.raises(InvalidTextError, match=message):
        parse_yaml(text)


def test_plain_yaml_keeps_its_meaning():
    text = "a: &x {b: 1e-3, c: 2024-01-01}\nd: *x\ne: {<<: *x, f: [1, true, null]}"
    part = {"b": 0.001, "c": "2024-01-01"}
    assert parse_yaml(text) == {"a": part, "d": part, "e": {**part, "f": [1, True, None]}}


@pytest.mark.parametrize(
    "setting",
    [
        "training.steps=true",
        "training.steps='5'",
        "training.steps=10000000000",
        "training.betas=[true, 0.9]",
        "data.packing=1",
        "data.packing='yes'",
        "training.learning_rate=true",
        'data.train="a\\0b"',
        "runtime.threads=1000000000",
        "training={steps: 1, steps: 2}",
        "model.architecture.n_layers=1000000000",
    ],
)
def test_settings_of_another_kind(setting):
    with pytest.raises(UserError) as caught:
        load_recipe("baseline", "micro", [setting])
    assert "\n" not in str(caught.value)
    assert setting.split("=")[0].split(".")[-1] in str(caught.value)


def test_cut_lines_of_a_json_lines_file_are_passed_over(tmp_path):
    path = tmp_path / "lines.jsonl"
    deep = "[" * 100_000
    path.write_bytes(b'{"a": 1}\n{"a": NaN}\n[1]\n{"a": \n\xff\n' + deep.encode() + b'\n{"b": 2}')
    records, others = read_json_lines(path)
    assert [list(record) for record in records] == [["a"], ["a"], ["b"]]
    assert others == 4


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "3", "{}", '{"format": 1}', '{"sizes": 3}', "{"]
)
def test_damaged_notes_of_a_preparation_are_not_believed(content, tmp_path):
    workspace = Workspace(tmp_path)
    workspace.folder.mkdir()
    (workspace.folder / "manifest.json").write_text(content)
    (workspace.folder / "unit-0.done").write_text(content)
    assert workspace.manifest() is None
    assert workspace.finished_names() == []


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path / "pipe", "pipe"), (tmp_path, "directory"), ("/dev/zero", "dev")):
        with pytest.raises(UserError, match=what):
            check_regular(Path(path))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to("meta"),
        lambda t: torch.nested.nested_tensor([t, t[:1]]),
        lambda t: t.to_sparse(),
        lambda t: torch.zeros(1).expand(10**9, 10**9),
        lambda t: torch.as_strided(t.clone(), t.shape, (1, 1)),
        lambda t: t.tolist(),
    ],
)
def test_tensors_that_hold_no_numbers_of_their_own(tmp_path, change):
    path = tmp_path / "consolidated.00.pth"
    torch.save({"a": torch.ones(3, 3).t(), "b": change(torch.ones(3, 3))}, path)
    with pytest.raises(UserError, match="'b' is"):
        PickleFile(path)


@pytest.mark.parametrize("name", ["a\0b", "..", ".", "../x", "/etc/passwd", "", "a" * 300, 1])
def test_shard_names(tmp_path, name):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="is not a file name"):
        open_indexed(index)


@pytest.mark.parametrize(
    "shape", [{"n_layers": 10**9}, {"vocab_size": 10**12}, {"max_seq_len": 10**12}]
)
def test_a_model_larger_than_the_machine_is_refused_by_arithmetic(shape):
    args = ModelArgs(**{"dim": 64, "n_layers": 2, "n_heads": 2, "vocab_size": 10} | shape)
    with pytest.raises(UserError, match=r"GiB"):
        check_fresh(args, torch.device("cpu"))


@pytest.mark.parametrize("name", ["sums.json", "metadata.json"])
def test_sums_are_not_read_from_a_pipe(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=name):
        Sums.read(tmp_path, name)


def test_a_log_is_not_written_to_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "train.log")
    with run_log(tmp_path / "train.log"):
        note("a line")
