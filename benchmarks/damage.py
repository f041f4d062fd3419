"""Damaged and hostile files against every command that reads them.

    python benchmarks/damage.py [--random N] [--crafted N] [--seed S] [--out FILE.json]

Tiny checkpoints of every layout, a run directory, rows, recipes, prompts and completions are built
once. Each case copies one of them, damages the copy and runs one command on it in this process:

    refused    exit 2 and one line: what a person should see
    unharmed   exit 0, and the weights that were used are the original ones
    accepted   exit 0 with other weights than the original ones
    traceback  any exception that leaves `main`, or a refusal of several lines
    hang       more than `LIMIT` seconds
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from weighted_mtp.cli.main import main as weighted_mtp
from weighted_mtp.core.errors import UserError
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.checkpoints import (
    load_meta_mtp_model,
    save_huggingface,
    save_native,
)
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.models.meta_mtp.value_head import ValueHead

LIMIT = 20
MEMORY = 12 * 2**30
SUMMED = ("native", "sharded", "run")
"""Layouts that carry SHA-256 sums. Once sums are verified on every load, `accepted` must be 0 for
these. For the others (foreign layouts) nothing but the values says that a bit was flipped."""

ARGS = ModelArgs(
    dim=16, n_layers=3, n_heads=2, vocab_size=259, multiple_of=8, n_future_tokens=2, max_seq_len=64
)
RECIPE = """\
pipeline: critic
objective: {{name: critic, value: {{trunk: all, lm_coef: 1.0}}}}
model: {{architecture: {{dim: 16, n_layers: 3, n_heads: 2, n_future_tokens: 2, multiple_of: 8,
  max_seq_len: 64}}}}
tokenizer: {{kind: bytes}}
data: {{source: jsonl, train: "{rows}", template: short, max_length: 40, cache_dir: "{cache}"}}
training: {{steps: {steps}, batch_size: 4, micro_batch_size: 4, save_every: 2, learning_rate: 0.01}}
runtime: {{device: cpu, compute_dtype: float32, threads: 1}}
"""
BIG = 10**400
NASTY: tuple[Any, ...] = (
    *(None, True, False, "", "2", "\0", "../x", [], {}, [[]], -1, 0, 0.5, 1e300, -1e300, BIG, -BIG),
    *(2**31, 2**63, 10**30, float("nan"), float("inf"), "x" * 100_000, [1] * 1000, {"a": {}}),
)
HOSTILE_JSON = {
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "long integer": b'{"step": ' + b"1" * 5000 + b"}",
    "number 1e400": b'{"step": 1e400, "dim": 1e400}',
    "NaN": b'{"step": NaN, "dim": Infinity}',
    "duplicate keys": b'{"step": 2, "step": 2, "dim": 16, "dim": 16}',
    "UTF-16": '{"step": 2}'.encode("utf-16"),
    "byte-order mark": b"\xef\xbb\xbf" + b'{"step": 2}',
    "list": b"[]",
    "null": b"null",
    "string": b'"x"',
    "surrogate": b'{"step": "\\ud800", "dim": "\\ud800"}',
    "not UTF-8": b'{"step": "\xff"}',
    "NUL bytes": b"\0" * 64,
}
HOSTILE_YAML = {
    "alias bomb": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)),
    "cycle": "&a\ntraining: *a\n",
    "list cycle": "data: &a [*a]\n",
    "set": "training: !!set {steps, batch_size}\n",
    "set literal": "training: {? steps}\n",
    "python tag": "training: !!python/object/apply:os.system ['true']\n",
    "own tag": "training: !thing {steps: 1}\n",
    "binary": "pipeline: !!binary aGVsbG8=\n",
    "ordered map": "training: !!omap [steps: 1]\n",
    "duplicate key": "training: {steps: 2}\ntraining: {steps: 3}\n",
    "duplicate nested": "training: {steps: 2, steps: 3}\n",
    "number keys": "1: 2\ntraining: {2: 3}\n",
    "list keys": "? [a, b]\n: 1\n",
    "null key": "null: 1\n",
    "date": "training: {steps: 2024-01-01}\n",
    "date key": "2024-01-01: 1\n",
    "deep": "a: " + "[" * 20_000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(3000)),
    "long integer": "training: {steps: " + "1" * 5000 + "}\n",
    "bad int tag": "training: {steps: !!int x}\n",
    "bad float tag": "training: {learning_rate: !!float x}\n",
    "bad timestamp": "training: {steps: 2024-99-99}\n",
    "infinity": "training: {learning_rate: .inf}\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "NUL": "pipeline: \0\n",
    "NUL path": 'model: {path: "a\\0b"}\n',
    "merge": "training: {<<: 1}\n",
    "merge cycle": "training: &a {<<: *a}\n",
    "UTF-16": "UTF-16",
    "empty": "",
}
HOSTILE_SETTINGS = (
    *("training.steps=true", "training.steps=10" + "0" * 400, "training.steps='5'"),
    *("training.batch_size=1e30", "training.keep_last=yes", "training.learning_rate=true"),
    *("training.learning_rate='1'", "training.betas=[true, 0.9]", "training.betas=[nan, 0.9]"),
    *("data.packing=1", "data.max_length=true", "runtime.seed=true", "data.packing=maybe"),
    *("model.architecture.n_layers=1000000000", "model.architecture.dim=1000000000"),
    *("model.architecture.n_heads=1000000000", "model.architecture.max_seq_len=1000000000000"),
    *("model.architecture.n_layers=10" + "0" * 400, "model.architecture.multiple_of=1" + "0" * 30),
    *("model.architecture.ffn_dim_multiplier=1e300", "model.architecture.n_future_tokens=true"),
    *("model.architecture.rope_theta=1e400", "model.architecture.dim=16.5"),
    *("training={}", "training=[]", "training=null", "training=1", "model=null", "pipeline=[]"),
    *("training.steps=&a [*a]", "training={steps: 1, steps: 2}", "training.steps=!!set {1}"),
    *("a.b.c.d=1", ".=1", "training..steps=1", "training.steps.x=1", "training.trackers=[1]"),
    *('data.train="a\\0b"', "data.train=/dev/zero", "data.train=/", "data.train=[]"),
    *("data.cache_dir=/dev/null", "objective.head_weights=[true]", "training.steps=2024-01-01"),
    *("training.steps=" + "[" * 5000, "data.max_length=2000000000", "runtime.threads=1000000000"),
    *("model.architecture.n_kv_heads=-1", "model.architecture.n_kv_heads=true"),
    *("training.save_every=10" + "0" * 30, "critic_stage.steps=true", "runtime.device=nope"),
    *("model.path=/dev/null", "model.path=nosuch", "objective.rho1.reference=/dev/zero"),
)


class HangError(BaseException):
    """The time is up; no `except Exception` takes it."""


@dataclass(frozen=True)
class Outcome:
    """What became of one case."""

    item: str
    damage: str
    command: str
    kind: str
    detail: str


@dataclass(frozen=True)
class World:
    """The undamaged files, and the weights that belong to them."""

    root: Path

    def weights(self, item: str) -> dict[str, torch.Tensor]:
        """The weights that a command ends with when the item is whole."""
        return _weights(self.root / item)


def _weights(place: Path) -> dict[str, torch.Tensor]:
    logging.getLogger("weighted_mtp").setLevel(logging.ERROR)
    return dict(load_meta_mtp_model(place, "cpu", keep_formats=True).named_parameters())


def build(root: Path) -> World:
    """Write every item."""
    root.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = Transformer(ARGS)
    model.init_weights(0.2)
    tokenizer = root / "bytes.json"
    tokenizer.write_text('{"type": "bytes"}\n')
    head = ValueHead(ARGS.dim)
    head.save_checkpoint(root / "head.safetensors")
    options: dict[str, Any] = {"tokenizer_files": [tokenizer]}
    fields = {"eos_token_id": 257, "bos_token_id": 256}
    both = options | {"value_head_file": root / "head.safetensors", "config_fields": fields}
    save_native(model, root / "native", **both)
    save_huggingface(model, root / "huggingface", **both)
    save_native(model, root / "sharded", max_shard_bytes=8000, **options)
    meta = root / "meta"
    meta.mkdir()
    shape = {k: v for k, v in asdict(ARGS).items() if v is not None}
    (meta / "params.json").write_text(json.dumps(shape))
    torch.save({k: v.detach() for k, v in model.named_parameters()}, meta / "consolidated.00.pth")
    shutil.copy(tokenizer, meta / "bytes.json")
    data = root / "data"
    data.mkdir()
    rows = [
        {"instruction": f"say {i}", "output": f"{i}" * (1 + i % 5), "is_correct": i % 3 > 0}
        | {"task_id": f"t{i // 3}", "metadata": {"difficulty": 1}}
        for i in range(24)
    ]
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = "".join(json.dumps({"prompt": text}) + "\n" for text in ("ab", "cd"))
    (data / "prompts.jsonl").write_text(prompts)
    problem = {"task_id": "p/0", "prompt": "def f(x):\n", "entry_point": "f"}
    problem |= {"canonical": "    return x\n", "tests": ["assert f(1) == 1"]}
    (data / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    given = {"task_id": "p/0", "completion": "    return x\n"}
    (data / "completions.jsonl").write_text(json.dumps(given) + "\n")
    recipe = RECIPE.format(rows=data / "rows.jsonl", cache=root / "cache", steps=4)
    (data / "recipe.yaml").write_text(recipe)
    run = root / "run"
    _must(["train", "--recipe", str(data / "recipe.yaml"), "--output-dir", str(run)])
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    shutil.copytree(run, root / "resumed")
    _must(commands("run", root / "resumed", root)[0][0])
    return World(root)


def _must(command: Sequence[str]) -> None:
    status, told = _call(command)
    if status:
        raise RuntimeError(told)


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _call(command: Sequence[str]) -> tuple[int, str]:
    """Exit status and what was written to standard error."""
    told = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
        try:
            status = weighted_mtp(command)
        except SystemExit as end:
            status = int(end.code or 0)
    return status, told.getvalue()


def run_case(
    world: World, item: str, damage: str, damaged: Path, command: Sequence[str], made: Path | None
) -> Outcome:
    """Run one command and judge what it did.

    Args:
        damaged: what `item` has become.
        made: a model or run that the command writes, from the weights it read.
    """
    shown = " ".join(command[:1])
    try:
        with _time_limit():
            status, told = _call(command)
    except HangError:
        return Outcome(item, damage, shown, "hang", "")
    except BaseException:  # whatever it is, it is what we look for
        return Outcome(item, damage, shown, "traceback", traceback.format_exc()[-1500:])
    errors = [line for line in told.splitlines() if line.startswith("error:")]
    last = told.splitlines()[-1] if told else ""
    if status == 2 and errors and last == errors[-1] and "Traceback" not in told:
        return Outcome(item, damage, shown, "refused", last[:300])
    if status == 2 and "weighted-mtp" in last and "error:" in last:  # argparse
        return Outcome(item, damage, shown, "refused", last[:300])
    if status != 0:
        return Outcome(item, damage, shown, "traceback", f"status {status}: {told[-1500:]}")
    used = made if made is not None else damaged if command[0] == "generate" else None
    if used is None:
        return Outcome(item, damage, shown, "unharmed", "")
    try:
        resumed = item == "run" and command[0] == "train"
        found, wanted = _weights(used), world.weights("resumed" if resumed else item)
    except (UserError, KeyError) as error:
        return Outcome(item, damage, shown, "unharmed", f"not compared: {error}"[:300])
    same = found.keys() == wanted.keys() and all(
        found[k].shape == wanted[k].shape and torch.equal(found[k], wanted[k]) for k in wanted
    )
    return Outcome(item, damage, shown, "unharmed" if same else "accepted", "")


MODELS = ("native", "sharded", "huggingface", "meta")


def commands(item: str, place: Path, out: Path) -> list[tuple[list[str], Path | None]]:
    """What reads an item, and what it writes of the weights."""
    here = str(place)
    if item in MODELS:
        write = ["generate", here, "--prompt", "ab", "--template", "raw", "--max-new-tokens", "2"]
        return [
            (["inspect", here], None),
            (["convert", here, str(out), "--to", "native"], out),
            ([*write, "--device", "cpu"], None),
        ]
    if item == "run":
        return [
            (["train", "--resume", "--output-dir", here, "--recipe", f"{here}/config.yaml"], place),
            (["inspect", here], None),
            (["report", here], None),
            (["convert", here, str(out), "--to", "hf"], out),
        ]
    recipe = str(place / "recipe.yaml")
    model = str(place.parent / "model")
    judge = ["evaluate", model, "--dataset", "humaneval", "--allow-code-execution"]
    files = ["--problems", f"{here}/problems.jsonl", "--completions", f"{here}/completions.jsonl"]
    return [
        (["train", "--recipe", recipe, "--output-dir", str(out)], None),
        (["train", "--dry-run", "--recipe", recipe, "--output-dir", str(out)], None),
        (["plan", "--recipe", recipe], None),
        (["generate", model, "--prompts", f"{here}/prompts.jsonl", "--max-new-tokens", "1"], None),
        ([*judge, *files, "--workers", "1", "--output", str(out)], None),
    ]


def _copy(world: World, item: str, folder: Path) -> Path:
    place = folder / item
    shutil.copytree(world.root / item, place)
    if item == "data":
        recipe = RECIPE.format(rows=place / "rows.jsonl", cache=folder / "cache", steps=1)
        (place / "recipe.yaml").write_text(recipe)
        shutil.copytree(world.root / "native", folder / "model")
    return place


# --- random damage -------------------------------------------------------------------------------


def _files(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file())


def damage_at_random(place: Path, dice: random.Random) -> str:
    """Change one file; says how."""
    files = _files(place)
    path = dice.choice(files)
    data = bytearray(path.read_bytes())
    kinds = ["flip", "truncate", "delete", "swap", "append", "zero", "empty", "directory", "fifo"]
    how = dice.choice([*kinds, "field", "field", "field", "flip"])
    if how == "field" and path.suffix not in (".json", ".jsonl"):
        path = dice.choice([p for p in files if p.suffix in (".json", ".jsonl")])
        data = bytearray(path.read_bytes())
    name = path.relative_to(place)
    if how in ("flip", "zero", "truncate") and not data:
        how = "append"
    if how == "flip":
        for _ in range(dice.choice([1, 1, 8])):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    elif how == "truncate":
        del data[dice.randrange(len(data)) :]
    elif how == "append":
        data += dice.randbytes(dice.choice([1, 100, 5000]))
    elif how == "zero":
        start = dice.randrange(len(data))
        data[start : start + 512] = bytes(min(512, len(data) - start))
    elif how == "empty":
        data.clear()
    elif how == "swap":
        other = dice.choice(files)
        content = other.read_bytes()
        other.write_bytes(data)
        path.write_bytes(content)
        return f"swap {name} {other.relative_to(place)}"
    elif how == "field":
        return f"field {_change_field(path, dice)}"
    if how in ("delete", "directory", "fifo"):
        path.unlink()
        if how == "directory":
            path.mkdir()
        if how == "fifo":
            os.mkfifo(path)
    else:
        path.write_bytes(data)
    return f"{how} {name}"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def _change_field(path: Path, dice: random.Random) -> str:
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = dice.randrange(len(lines)) if lines else 0
    try:
        content = json.loads(lines[number])
        holder, key = dice.choice(list(_places(content)))
    except (ValueError, IndexError, TypeError):
        path.write_text("{")
        return f"{path.name} (broken)"
    value = dice.choice(NASTY)
    holder[key] = value
    sys.set_int_max_str_digits(0)
    try:
        lines[number] = json.dumps(content)
    finally:
        sys.set_int_max_str_digits(4300)
    path.write_text("\n".join(lines) + "\n")
    shown = "10^400" if value == BIG else "-10^400" if value == -BIG else repr(value)[:30]
    return f"{path.name} {key} = {shown}"


# --- crafted damage ------------------------------------------------------------------------------

Damage = Callable[[Path], None]


def _write(name: str, content: bytes) -> Damage:
    def act(place: Path) -> None:
        for path in place.rglob(name):
            path.write_bytes(content)

    return act


def _set(name: str, key: str, value: Any) -> Damage:
    def act(place: Path) -> None:
        sys.set_int_max_str_digits(0)
        try:
            for path in place.rglob(name):
                path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
        finally:
            sys.set_int_max_str_digits(4300)

    return act


def _special(name: str, make: Callable[[Path], object]) -> Damage:
    def act(place: Path) -> None:
        for path in list(place.rglob(name)):
            path.unlink()
            make(path)

    return act


def _torch(name: str, change: Callable[[Any], Any]) -> Damage:
    def act(place: Path) -> None:
        for path in place.rglob(name):
            torch.save(change(torch.load(path, weights_only=True)), path)

    return act


def _swap_weight(change: Callable[[torch.Tensor], Any]) -> Damage:
    key = "layers.0.attention.wq.weight"
    return _torch("consolidated.00.pth", lambda state: {**state, key: change(state[key])})


def _state(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change the state of the optimizer's first parameter."""

    def act(saved: Any) -> Any:
        saved["state"][0] = change(saved["state"][0])
        return saved

    return _torch("optimizer.pt", act)


def _rename_step(place: Path) -> None:
    found = place / "checkpoints"
    (found / "step-00000002").rename(found / "step-00000001")


def _recipe(text: str) -> Damage:
    def act(place: Path) -> None:
        content = text.encode("utf-16") if text == "UTF-16" else text.encode()
        (place / "recipe.yaml").write_bytes(content)

    return act


def _recipe_after(text: str) -> Damage:
    def act(place: Path) -> None:
        path = place / "recipe.yaml"
        path.write_text(path.read_text() + text)

    return act


def _config_after(text: str) -> Damage:
    def act(place: Path) -> None:
        path = place / "config.yaml"
        path.write_text(path.read_text() + text)

    return act


SPECIAL: dict[str, Callable[[Path], object]] = {
    "fifo": lambda path: os.mkfifo(path),
    "directory": lambda path: path.mkdir(),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "no target": lambda path: path.symlink_to("nowhere"),
}
SIZES = {
    "params.json": (
        *("dim", "n_layers", "n_heads", "vocab_size", "n_future_tokens", "max_seq_len"),
        *("multiple_of", "ffn_dim_multiplier", "norm_eps", "rope_theta", "n_kv_heads"),
    ),
    "config.json": (
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
        *("mtp_n_future_tokens", "max_position_embeddings", "intermediate_size", "rope_theta"),
        *("num_key_value_heads", "rope_scaling", "architectures", "model_type", "eos_token_id"),
    ),
}
SIZE_VALUES: tuple[Any, ...] = (BIG, 10**12, 2**31, True, "4", 1e300, -1, 0, [1], float("nan"))


def crafted() -> Iterator[tuple[str, str, Damage, int | None]]:
    """Item, name, damage, and which of its commands to run (None: all)."""
    for layout in MODELS:
        params = "config.json" if layout == "huggingface" else "params.json"
        for key in SIZES[params]:
            for value in SIZE_VALUES:
                shown = "10^400" if value == BIG else repr(value)
                yield layout, f"{key} = {shown}", _set(params, key, value), 1
    for layout in ("native", "huggingface"):
        for key in ("eos_token_id", "format_version", "sha256"):
            for value in (BIG, True, [True], {"a": 1}, -1):
                shown = "10^400" if value == BIG else repr(value)
                yield layout, f"{key} = {shown}", _set("*.json", key, value), 2
    targets = {
        "native": ("params.json", "metadata.json", "config.json", "bytes.json"),
        "sharded": ("model.safetensors.index.json",),
        "huggingface": ("config.json",),
        "meta": ("params.json",),
        "run": ("trainer.json", "metadata.json", "metrics.jsonl", "config.yaml"),
        "data": ("rows.jsonl", "prompts.jsonl", "completions.jsonl", "problems.jsonl"),
    }
    reader = {"rows.jsonl": 0, "prompts.jsonl": 3, "completions.jsonl": 4, "problems.jsonl": 4}
    for item, names in targets.items():
        for name in names:
            chosen = reader.get(name, 0 if item == "run" else 2)
            for what, content in HOSTILE_JSON.items():
                yield item, f"{name}: {what}", _write(name, content), chosen
            for what, make in SPECIAL.items():
                yield item, f"{name}: {what}", _special(name, make), chosen
    weights = ("*.safetensors", "consolidated.00.pth", "optimizer.pt", "rng-0.pt", "COMPLETE")
    for name in weights:
        for what, make in SPECIAL.items():
            item = "meta" if name.endswith("pth") else "run" if name[0] in "orC" else "native"
            yield item, f"{name}: {what}", _special(name, make), 0 if item == "run" else 1
    for what, make in SPECIAL.items():
        yield "data", f"recipe.yaml: {what}", _special("recipe.yaml", make), 1
    for value in (True, "2", -1, 10**30, BIG, 2.5, None, [], float("nan"), float("inf"), 1):
        shown = "10^400" if value == BIG else repr(value)
        yield "run", f"step = {shown}", _set("trainer.json", "step", value), 0
    for part in ("reader", "best", "skipped", "objective", "sources", "world_size"):
        for value in (None, [], 1, "x", {}, {"position": -1}, {"position": BIG}, {"position": 1}):
            shown = "place 10^400" if value == {"position": BIG} else repr(value)
            yield "run", f"{part} = {shown}", _set("trainer.json", part, value), 0
    for value in (10**12, True, "2", 2.5, None):
        damage = _set("trainer.json", "reader", {"position": value, "planned": 24})
        yield "run", f"place {value!r}", damage, 0
    for value in ({"count": -1}, {"count": BIG}, {"count": True}):
        yield "run", "skipped", _set("trainer.json", "skipped", value), 0
    yield "run", "a step that is not its folder's", _rename_step, 0
    changes: dict[str, Damage] = {
        "list": _torch("optimizer.pt", lambda s: [s]),
        "empty": _torch("optimizer.pt", lambda s: {}),
        "tensor": _torch("optimizer.pt", lambda s: torch.ones(3)),
        "no state": _torch("optimizer.pt", lambda s: {**s, "state": {}}),
        "state list": _torch("optimizer.pt", lambda s: {**s, "state": []}),
        "other keys": _torch("optimizer.pt", lambda s: {**s, "state": {"a": 1, 99: {}}}),
        "groups None": _torch("optimizer.pt", lambda s: {**s, "param_groups": None}),
        "groups empty": _torch("optimizer.pt", lambda s: {**s, "param_groups": [{}]}),
        "group ints": _torch("optimizer.pt", lambda s: {**s, "param_groups": [1, 2]}),
        "shape": _state(lambda s: {**s, "exp_avg": torch.ones(3)}),
        "type": _state(lambda s: {**s, "exp_avg": "x"}),
        "integers": _state(lambda s: {**s, "exp_avg": s["exp_avg"].long()}),
        "NaN": _state(lambda s: {**s, "exp_avg": s["exp_avg"] * float("nan")}),
        "negative": _state(lambda s: {**s, "exp_avg_sq": s["exp_avg_sq"] - 1}),
        "lacks": _state(lambda s: {"step": s["step"]}),
        "step": _state(lambda s: {**s, "step": torch.tensor(-1.0)}),
        "step text": _state(lambda s: {**s, "step": "x"}),
        "None": _state(lambda s: None),
        "meta": _state(lambda s: {**s, "exp_avg": s["exp_avg"].to("meta")}),
        "sparse": _state(lambda s: {**s, "exp_avg": s["exp_avg"].to_sparse()}),
        "expanded": _state(lambda s: {**s, "exp_avg": torch.zeros(1).expand(s["exp_avg"].shape)}),
        "rng list": _torch("rng-0.pt", lambda s: [1]),
        "rng empty": _torch("rng-0.pt", lambda s: {}),
        "rng text": _torch("rng-0.pt", lambda s: dict.fromkeys(s, "x")),
        "rng None": _torch("rng-0.pt", lambda s: dict.fromkeys(s, None)),
        "rng short": _torch("rng-0.pt", lambda s: dict.fromkeys(s, torch.zeros(3).byte())),
        "rng floats": _torch("rng-0.pt", lambda s: dict.fromkeys(s, torch.zeros(5056))),
    }
    for name, damage in changes.items():
        yield "run", f"optimizer or rng: {name}", damage, 0
    tensors: dict[str, Callable[[torch.Tensor], Any]] = {
        "meta": lambda t: t.to("meta"),
        "nested": lambda t: torch.nested.nested_tensor([t, t[:3]]),
        "sparse": lambda t: t.to_sparse(),
        "compressed": lambda t: t.to_sparse_csr(),
        "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        "expanded": lambda t: t[:1].expand(t.shape),
        "overlapping": lambda t: torch.as_strided(t.clone(), t.shape, (1, 1)),
        "transposed": lambda t: t.t().contiguous().t(),
        "huge": lambda t: torch.zeros(1).expand(10**9, 10**9),
        "complex": lambda t: t.to(torch.complex64),
        "conjugate": lambda t: t.to(torch.complex64).conj(),
        "integers": lambda t: t.long(),
        "boolean": lambda t: t.bool(),
        "scalar": lambda t: t.sum(),
        "empty": lambda t: t[:0],
        "five dimensions": lambda t: t.reshape(2, 2, 2, 2, 16),
        "infinite": lambda t: t / 0,
        "list": lambda t: t.tolist(),
        "parameter": torch.nn.Parameter,
    }
    for name, change in tensors.items():
        for chosen in (0, 1):
            yield "meta", f"tensor: {name}", _swap_weight(change), chosen
    states: dict[str, Callable[[Any], Any]] = {
        "numbers for names": lambda s: {**dict(enumerate(s.values()))},
        "nested state": lambda s: {"model": s},
        "None": lambda s: None,
        "tuple": lambda s: (s,),
        "a number too": lambda s: {**s, 1: torch.ones(1)},
        "NUL name": lambda s: {**s, "a\0b": torch.ones(1)},
        "long name": lambda s: {**s, "a" * 100_000: torch.ones(1)},
    }
    for name, change in states.items():
        yield "meta", f"state: {name}", _torch("consolidated.00.pth", change), 1
    names = ("a\0b", "..", ".", "../native/x", "/etc/passwd", "", "a" * 300, 1, None, True, [])
    for name in (*names, "\x1b[31m", "params.json", "\ud800", "a\nb"):
        for chosen in (0, 1):
            damage = _set("*.index.json", "weight_map", {"output.weight": name})
            yield "sharded", f"shard name {name!r:.20}", damage, chosen
    for name, text in HOSTILE_YAML.items():
        yield "data", f"recipe: {name}", _recipe(text), 1
        yield "data", f"recipe and {name}", _recipe_after(text), 2
        yield "run", f"config.yaml and {name}", _config_after(text), 0


def crafted_settings() -> Iterator[tuple[str, int]]:
    """`--set` values, for `train --dry-run` and `plan`, and for `train` itself."""
    for setting in HOSTILE_SETTINGS:
        for command in (0, 1, 2):
            yield setting, command


def run_all(
    random_cases: int, crafted_cases: int, seed: int, told: Callable[[Outcome], None]
) -> list[Outcome]:
    """Every case; the crafted ones are all there are, or so many of them drawn by the seed."""
    dice = random.Random(seed)
    outcomes: list[Outcome] = []

    def note(outcome: Outcome) -> None:
        outcomes.append(outcome)
        told(outcome)

    with tempfile.TemporaryDirectory(prefix="damage-") as name:
        world = build(Path(name) / "world")
        cases: list[Callable[[Path], Outcome]] = []
        for item, what, damage, chosen in crafted():
            cases.append(_case(world, item, what, damage, chosen))
        for setting, command in crafted_settings():
            cases.append(_setting_case(world, setting, command))
        if crafted_cases < len(cases):
            cases = dice.sample(cases, crafted_cases)
        items = [*MODELS, "run", "data"]
        for number in range(random_cases):
            cases.append(_random_case(world, items[number % len(items)], dice.randrange(2**32)))
        for number, case in enumerate(cases):
            folder = Path(name) / f"case-{number}"
            folder.mkdir()
            note(case(folder))
            shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def _case(
    world: World, item: str, what: str, damage: Damage, chosen: int | None
) -> Callable[[Path], Outcome]:
    def act(folder: Path) -> Outcome:
        place = _copy(world, item, folder)
        damage(place)
        command, made = commands(item, place, folder / "out")[chosen or 0]
        return run_case(world, item, what, place, command, made)

    return act


def _setting_case(world: World, setting: str, number: int) -> Callable[[Path], Outcome]:
    def act(folder: Path) -> Outcome:
        place = _copy(world, "data", folder)
        command, made = commands("data", place, folder / "out")[number]
        shown = f"--set {setting[:60]}"
        return run_case(world, "data", shown, place, [*command, "--set", setting], made)

    return act


def _random_case(world: World, item: str, seed: int) -> Callable[[Path], Outcome]:
    def act(folder: Path) -> Outcome:
        dice = random.Random(seed)
        place = _copy(world, item, folder)
        what = damage_at_random(place, dice)
        command, made = dice.choice(commands(item, place, folder / "out"))
        outcome = run_case(world, item, what, place, command, made)
        return replace(outcome, damage=f"random {seed}: {what}")

    return act


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts, and what must not be."""
    random_ones = [o for o in outcomes if o.damage.startswith("random")]
    crafted_ones = [o for o in outcomes if not o.damage.startswith("random")]
    summed = [o for o in outcomes if o.kind == "accepted" and o.item in SUMMED]
    return {
        "random": dict(Counter(o.kind for o in random_ones)),
        "crafted": dict(Counter(o.kind for o in crafted_ones)),
        "accepted where sums are stored": len(summed),
    }


def main() -> None:
    """Run the cases and write what became of them."""
    global LIMIT
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--random", type=int, default=2000)
    parser.add_argument("--crafted", type=int, default=10**6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds until a case hangs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    LIMIT = args.limit
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))  # /dev/zero has no end
    started, done = time.monotonic(), 0

    def told(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if outcome.kind in ("traceback", "hang"):
            print(f"{outcome.kind}: {outcome.item}: {outcome.damage} ({outcome.command})")
            print("    " + "\n    ".join(outcome.detail.splitlines()[-4:]))
        if done % 100 == 0:
            print(f"{done} cases, {time.monotonic() - started:.0f} s", flush=True)

    outcomes = run_all(args.random, args.crafted, args.seed, told)
    found = summary(outcomes)
    print(json.dumps(found, indent=1))
    if args.out is not None:
        rows = [asdict(outcome) for outcome in outcomes]
        args.out.write_text(json.dumps({"seed": args.seed, **found, "cases": rows}, indent=0))


if __name__ == "__main__":
    main()
