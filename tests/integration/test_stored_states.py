"""Heads trained on stored states: the same training, without the trunk; and whatever does not fit
takes one line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.helpers import tiny_args, tiny_model
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    largest_difference,
    records,
    resume,
    same,
    train,
    train_curve,
    tree,
    weights,
)

from weighted_mtp.cli.arguments.prepare_models import given_size
from weighted_mtp.cli.main import main
from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.batches import Example, pack_batch, pad_batch
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.datasets import read_jsonl
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer
from weighted_mtp.data.trunk_states import Manifest, TrunkStates
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, save_native
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.training import prepare_states
from weighted_mtp.pipelines.training.adapting import freeze
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives import make_objective

rows_file = helpers_training.rows_file


def save(folder: Path, **shape) -> Path:
    """A random model of bytes with one head, and its tokenizer."""
    ByteTokenizer().save(folder.with_name(folder.name + "-tokenizer"))
    files = sorted(folder.with_name(folder.name + "-tokenizer").iterdir())
    seed = shape.pop("seed", 5)
    args = tiny_args(**{"vocab_size": 259, "max_seq_len": 64, "n_future_tokens": 1, **shape})
    save_native(tiny_model(args, seed=seed), folder, tokenizer_files=files)
    return folder


def prepare(model: Path, rows: Path, out: Path, *more: str) -> int:
    """`prepare states` as a tiny run reads the rows; its exit status."""
    named = ["--model", str(model), "--data", str(rows), "--out", str(out), "--device", "cpu"]
    cut = ["--template", "short", "--max-length", "64", "--batch-size", "5"]
    exact = ["--dtype", "float32", "--compute-dtype", "float32"]
    return main(["prepare", "states", *named, *cut, *exact, *more])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def states(tmp_path_factory, model, rows_file) -> Path:
    out = tmp_path_factory.mktemp("states") / "float32"
    assert prepare(model, rows_file, out) == 0
    return out


def heads(model: Path, states: Path | None = None, **changes):
    quick = {"training__steps": 12, "training__save_every": 6, "data__validation": None}
    start = {"model__path": model, "tokenizer__kind": "auto", "model__add_heads": 2}
    return start | quick | {"data__states": states, "objective__distil__ce": 0.3} | changes


def test_what_is_stored_is_the_state_of_every_position(model, states, rows_file):
    transformer, stored = load_meta_mtp_model(model, device="cpu"), TrunkStates(states)
    collator = AlpacaCollator(ByteTokenizer(), "short", 64)
    examples = [collator.encode(row) for row in read_jsonl(rows_file)]
    assert len(stored) == len(examples) == 24
    with torch.no_grad():
        for row in (0, 7, 23):
            tokens = torch.tensor(examples[row].ids[:-1])[None]
            trunk, first = stored[row].unbind(1)
            torch.testing.assert_close(trunk[None], transformer.trunk_state(tokens))
            torch.testing.assert_close(first[None], transformer.head_states(tokens)[0])


@pytest.mark.parametrize("packed", [False, True])
def test_loss_and_gradient_from_stored_states_are_those_of_the_whole_model(packed):
    generator = torch.Generator().manual_seed(1)
    recipe = load_recipe("heads", None, ["model.path=unread", "data.train=unread"])
    adapter = MetaLlamaMTPAdapter(tiny_model(tiny_args()).double())
    transformer = adapter.transformer
    module = TrainingModule(adapter, make_objective(recipe.objective, 3))
    freeze(adapter, recipe, module.objective)
    examples = [
        Example(torch.randint(30, (m,), generator=generator).tolist(), 2, False, i)
        for i, m in enumerate((9, 4, 7))
    ]
    found = []
    for stored in (False, True):
        if stored:
            examples = [
                e._replace(
                    states=prepare_states.trunk_and_first(
                        transformer, torch.tensor(e.ids[:-1])[None], torch.float32
                    )[0]
                )
                for e in examples
            ]
        batch = pack_batch([examples[:2], examples[2:]], 0) if packed else pad_batch(examples, 0, 8)
        assert (batch.states is not None) == stored
        denominators = module.objective.denominators(module.objective.counts(batch)[None])
        out = module(batch, "train", denominators)
        out.loss.backward()
        grads = [p.grad for p in transformer.extra_heads.parameters()]
        found.append([out.loss.detach(), out.sums["heads"], out.sums["taught"], *grads])
        transformer.zero_grad()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("packing", [False, True])
def test_a_training_is_the_same_and_never_runs_the_trunk(
    packing, model, states, tmp_path, rows_file, monkeypatch
):
    assert train(tmp_path / "a", rows_file, "heads", **heads(model, data__packing=packing)) == 0
    monkeypatch.setattr(Transformer, "head_states", None)
    changes = heads(model, states, data__packing=packing, data__workers=int(packing))
    assert train(tmp_path / "b", rows_file, "heads", **changes) == 0
    one, other = (torch.tensor(train_curve(tmp_path / x), dtype=torch.float64) for x in "ab")
    print(f"largest relative difference: {float((other / one - 1).abs().max()):.1e}")
    torch.testing.assert_close(other, one, rtol=1e-6, atol=0)
    # AdamW divides by the gradient's size, so that rounding shows where that is 0.
    assert largest_difference(weights(tmp_path / "a"), weights(tmp_path / "b")) < 5e-4
    heads_of = [r["head_loss"] for r in records(tmp_path / "b") if r["kind"] == "train"]
    assert len(heads_of[-1]) == 3
    assert min(heads_of[-1]) > 0


def test_added_heads_are_fitted_first(model, states, tmp_path, rows_file):
    first = []
    for start in ("copy", "fit"):
        changes = {"model__head_start": start, "training__steps": 1}
        assert train(tmp_path / start, rows_file, "heads", **heads(model, states, **changes)) == 0
        logged = [r for r in records(tmp_path / start) if r["kind"] == "train"]
        first.append(logged[0]["distil_loss"])
    assert all(fitted < copied for copied, fitted in zip(*first, strict=True))


def test_bfloat16_differs_by_its_rounding(model, tmp_path, rows_file):
    half = ["--dtype", "bfloat16", "--compute-dtype", "bfloat16"]
    assert prepare(model, rows_file, tmp_path / "states", *half) == 0
    curves = []
    for name, folder in (("a", None), ("b", tmp_path / "states")):
        changes = heads(model, folder, runtime__compute_dtype="bfloat16")
        assert train(tmp_path / name, rows_file, "heads", **changes) == 0
        curves.append(torch.tensor(train_curve(tmp_path / name)))
    gap = float((curves[1] / curves[0] - 1).abs().max())
    print(f"largest relative difference: {gap:.1e}")
    assert 0 < gap < 2e-3
    assert train(tmp_path / "c", rows_file, "heads", **heads(model, tmp_path / "states")) == 0
    wide = torch.tensor(train_curve(tmp_path / "c"))  # computed in float32
    torch.testing.assert_close(wide, curves[0], rtol=1e-2, atol=0)


def test_a_resumed_run_is_the_same_bit_for_bit(model, states, tmp_path, rows_file, capsys):
    # Six steps hold fewer rows for a fit than twelve; 64 or more make no difference to it.
    change = {"training__schedule": "constant", "model__head_start": "copy"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, rows_file, "heads", **heads(model, states, **change)) == 0
    assert (
        train(parts, rows_file, "heads", **heads(model, states, **change, training__steps=6)) == 0
    )
    copied = shutil.copytree(states, tmp_path / "copied")  # a place may change, content may not
    more = ["--set", "training.steps=12", "--set", f"data.states={copied}"]
    assert resume(parts, *more) == 0
    assert same(weights(parts), weights(whole))
    assert prepare(model, rows_file, tmp_path / "others", "--dtype", "bfloat16") == 0
    assert (
        resume(parts, "--set", "training.steps=14", "--set", f"data.states={tmp_path}/others") == 2
    )
    assert "the stored states changed" in capsys.readouterr().err


def test_an_interrupted_preparation_goes_on(
    model, states, tmp_path, rows_file, monkeypatch, capsys
):
    monkeypatch.setattr(prepare_states, "PART_BYTES", 40_000)
    assert prepare(model, rows_file, tmp_path / "whole") == 0
    whole, parts = TrunkStates(tmp_path / "whole"), tmp_path / "parts"
    assert len(whole.manifest.parts) > 3
    store = Manifest.with_part

    def interrupted(self, folder, rows):
        if len(self.parts) == 2:
            raise KeyboardInterrupt
        return store(self, folder, rows)

    monkeypatch.setattr(Manifest, "with_part", interrupted)
    assert prepare(model, rows_file, parts) == 130
    assert train(tmp_path / "run", rows_file, "heads", **heads(model, parts)) == 2
    assert "of 24 rows" in capsys.readouterr().err
    monkeypatch.setattr(Manifest, "with_part", store)
    assert prepare(model, rows_file, parts) == 0
    assert tree(parts) == tree(tmp_path / "whole")
    one = TrunkStates(states)
    for row in range(24):
        torch.testing.assert_close(whole[row], one[row])
    assert prepare(model, rows_file, parts) == 0  # there is nothing left to do
    assert prepare(model, rows_file, parts, "--max-length", "40") == 2
    assert "another max_length (64; here it is 40)" in capsys.readouterr().err


def test_the_next_command_adds_the_heads(model, tmp_path, rows_file, capsys):
    assert prepare(model, rows_file, tmp_path / "states") == 0
    said = capsys.readouterr().out
    assert "--set model.add_heads=3 " in said
    words = said.split("next: weighted-mtp ")[1].split()
    assert main([*words, "--dry-run", "--output-dir", str(tmp_path / "run")]) == 0


def test_a_budget_is_checked_before_the_work(model, tmp_path, rows_file, capsys):
    assert prepare(model, rows_file, tmp_path / "states", "--budget", "100kB") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the states of 24 rows take" in error
    assert "--budget is 100.0 kB, enough for the first" in error
    assert not (tmp_path / "states").exists()
    assert [given_size(x) for x in ("20GB", "1.5 TiB", "7", "3k")] == [
        20 * 10**9,
        3 * 2**39,
        7,
        3000,
    ]
    with pytest.raises(UserError, match="20GB"):
        given_size("much")


def cut_short(states: Path, _):
    part = states / "states-00000.safetensors"
    part.write_bytes(part.read_bytes()[:-100])


def flip(states: Path, _):
    part = states / "states-00000.safetensors"
    content = bytearray(part.read_bytes())
    content[-300] ^= 1
    part.write_bytes(content)


def edit(states: Path, _):
    text = (states / "states.json").read_text()
    (states / "states.json").write_text(text.replace('"short"', '"alpaca"'))


def other_rows(_, rows: Path):
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[::-1]))


FOLDER = {
    "cut": (cut_short, "states-00000.safetensors: is missing, cut short or damaged"),
    "flipped": (flip, "states-00000.safetensors: is missing, cut short or damaged"),
    "edited": (edit, "states.json: is missing, cut short or damaged"),
    "gone": (lambda states, _: shutil.rmtree(states), "holds no stored states"),
    "rows": (other_rows, "another data file"),
}


@pytest.mark.parametrize("case", FOLDER)
def test_stored_states_that_are_not_these(case, model, states, tmp_path, rows_file, capsys):
    change, said = FOLDER[case]
    folder, rows = shutil.copytree(states, tmp_path / "states"), tmp_path / "rows.jsonl"
    shutil.copy(rows_file, rows)
    change(folder, rows)
    assert train(tmp_path / "run", rows, "heads", **heads(model, folder)) == 2
    refused(capsys, said, tmp_path)


def refused(capsys, said: str, tmp_path: Path) -> None:
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error
    assert not (tmp_path / "run").exists()


SETTINGS = {
    "length": ({"data__max_length": 48}, "another max_length (64; here it is 48)"),
    "template": ({"data__template": "alpaca"}, "another template (short; here it is alpaca)"),
    "joint": ({"data__joint": True}, "another joint"),
    "trunk": ({"training__adapt": "lora"}, "set training.adapt=heads"),
    "rotary": ({"model__rope_theta": 5000.0}, "another rope_theta (10000.0; here it is 5000.0)"),
    "sharded": (
        {"runtime__parallel": "fsdp", "runtime__fsdp__cpu_offload": True},
        "runtime.parallel=ddp",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_do_not_go_with_them(case, model, states, tmp_path, rows_file, capsys):
    changes, said = SETTINGS[case]
    assert train(tmp_path / "run", rows_file, "heads", **heads(model, states, **changes)) == 2
    refused(capsys, said, tmp_path)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"seed": 6}, "another model ("),
        ({"dim": 16}, "another model width (32; here it is 16)"),
        ({"vocab_size": 300}, "another vocabulary size (259; here it is 300)"),
    ],
)
def test_another_model(shape, said, states, tmp_path, rows_file, capsys):
    other = save(tmp_path / "model", **shape)
    assert train(tmp_path / "run", rows_file, "heads", **heads(other, states)) == 2
    refused(capsys, said, tmp_path)


def test_a_dry_run_looks_at_the_header(model, states, tmp_path, rows_file, capsys):
    sets = helpers_training.settings(rows_file, **heads(model, states))
    words = [word for one in sets for word in ("--set", one)]
    asked = ["train", "--recipe", "heads", "--dry-run", "--output-dir", str(tmp_path / "run")]
    assert main([*asked, *words]) == 0
    assert main([*asked, *words, "--set", "data.max_length=48"]) == 2
    refused(capsys, "another max_length", tmp_path)
    assert main(["plan", "--recipe", "heads", *words]) == 0


def test_what_comes_first_is_named(states):
    """`states.json` is for people too."""
    manifest = Manifest.read(states)
    stored = json.loads((states / "states.json").read_text())
    assert stored["origin"]["template"] == "short"
    assert manifest.stored == stored["rows"] == 24
    other = replace(manifest.origin, width=1, data="x")
    assert manifest.origin.difference(other).startswith("another model width")
