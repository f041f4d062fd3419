"""A draft vocabulary: stored with a model, drafted from, and without a trace in the texts."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.helpers import tiny_args, tiny_model
from tests.unit.test_speculative import make_model, texts
from tests.unit.test_speculative_distribution import by_chain_rule, by_enumeration
from tests.unit.test_speculative_distribution import make_model as double_model

from weighted_mtp.cli.main import main
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer
from weighted_mtp.decoding import Sampling, Speculation, Stopping, complete
from weighted_mtp.decoding.fast_model import FastModel
from weighted_mtp.decoding.running import RunningBatch
from weighted_mtp.decoding.running_rows import Order
from weighted_mtp.models.meta_mtp.add_heads import add_heads
from weighted_mtp.models.meta_mtp.checkpoints import (
    inspect_checkpoint,
    load_meta_mtp_model,
    open_checkpoint,
    save_native,
)
from weighted_mtp.models.meta_mtp.draft_vocabulary import DRAFT_FILE, choose_ids
from weighted_mtp.pipelines.checkpointing.model_start import stored_model

EOS = ByteTokenizer.eos_id
RAW = ["--template", "raw", "--device", "cpu", "--max-new-tokens", "12", "--prompt", "def f("]


@pytest.fixture
def model_dir(tmp_path) -> Path:
    """A random model of three heads that writes bytes."""
    path = tmp_path / "m"
    save_native(tiny_model(tiny_args(vocab_size=259, max_seq_len=64, n_layers=6)), path)
    ByteTokenizer().save(path / "tokenizer")
    return path


def convert(model_dir: Path, *options: object) -> Path:
    out = model_dir.parent / "out"
    assert main(["convert", str(model_dir), str(out), *map(str, options)]) == 0
    return out


def refusal(capsys, *command: object) -> str:
    assert main([str(part) for part in command]) == 2
    *rest, line = capsys.readouterr().err.splitlines()
    assert all("loaded" in each for each in rest)
    return line


# --- texts ---------------------------------------------------------------------------------------


def narrow(model, ids):
    """The same model with a draft vocabulary."""
    wide = add_heads(model, model.args.n_future_tokens + 1)  # shares the weights
    wide.draft_ids = torch.tensor(ids)
    return wide


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    prompts=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=4),
    ids=st.sets(st.integers(0, 5), min_size=1),
    adaptive=st.booleans(),
    penalty=st.sampled_from([1.0, 1.4]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_greedy_is_plain_greedy(prompts, ids, adaptive, penalty, dtype):
    model = narrow(make_model(2, dtype=dtype), sorted(ids))
    sampling, stopping = Sampling(repetition_penalty=penalty, ties="exact"), Stopping(14, 5)
    plain, _ = texts(model, prompts, stopping, sampling)
    fast, _ = texts(model, prompts, stopping, sampling, Speculation(adaptive=adaptive))
    assert fast == plain


@pytest.mark.parametrize(
    ("vocab", "k", "ids", "sampling", "speculation"),
    [
        (3, 2, [0, 2], Sampling(1.0), Speculation(2)),
        (2, 3, [1], Sampling(0.8), Speculation(3)),
        (4, 2, [1, 2, 3], Sampling(1.3, top_p=0.8, top_k=3), Speculation(2)),
        (3, 3, [0, 2], Sampling(0.7, repetition_penalty=1.5), Speculation(3, draft=Sampling(0.0))),
        (3, 2, [0, 1], Sampling(1.0), Speculation(2, adaptive=True, token_cost=0.8)),
    ],
)
def test_every_text_has_the_models_probability(monkeypatch, vocab, k, ids, sampling, speculation):
    """By enumeration, as for a model that drafts from all tokens."""
    model, prompt = double_model(vocab, k), [1, 0, 1]
    model.draft_ids = torch.tensor(ids)
    got, _ = by_enumeration(monkeypatch, model, prompt, 3, sampling, speculation)
    expected = by_chain_rule(model, prompt, 3, sampling)
    assert got.keys() == expected.keys()
    for text, chance in expected.items():
        assert got[text] == pytest.approx(chance, abs=1e-10)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9, seed=4, repetition_penalty=1.2)])
def test_only_its_tokens_are_drafted(monkeypatch, sampling):
    """In a batch of its own and in a running one; the two write the same."""
    model, ids, drafted = narrow(make_model(1), [1, 4]), {1, 4}, []
    real = FastModel.read

    def read(self, tokens, start_pos, cache):
        if start_pos != 0:
            drafted.extend(tokens[:, 1:].flatten().tolist())
        return real(self, tokens, start_pos, cache)

    monkeypatch.setattr(FastModel, "read", read)
    (row,), _ = complete(model, [[1, 2]], Stopping(12), sampling, Speculation())
    assert set(drafted) == ids
    drafted.clear()
    batch = RunningBatch(model, 2, 16, Speculation())
    (order,) = batch.admit([Order([1, 2], Stopping(12), sampling)])
    while batch.rows:
        batch.step()
    assert set(drafted) == ids
    assert order.row.completion().tokens == row.tokens
    drafted.clear()
    complete(model, [[1, 2]], Stopping(12), sampling, Speculation(draft_vocabulary=False))
    assert set(drafted) - ids


@pytest.mark.parametrize("steps", [1, 100])
def test_draft_logits_are_rows_of_the_unembedding(steps):
    model, ids = tiny_model().requires_grad_(False), torch.tensor([0, 3, 36])
    fast, states = FastModel(model, steps, ids), torch.randn(2, 3, 32)
    whole, narrowed = model.output(states), fast.drafts.logits(states)
    torch.testing.assert_close(narrowed, whole[..., ids])
    spread = fast.drafts.spread(narrowed, float("-inf"))
    torch.testing.assert_close(spread[..., ids], whole[..., ids])
    assert spread.isinf().sum() == 6 * (37 - 3)
    assert fast.drafts.tokens(narrowed.argmax(-1)).tolist() == spread.argmax(-1).tolist()


# --- choosing ------------------------------------------------------------------------------------


def test_the_most_frequent_tokens_are_chosen():
    counts = torch.tensor([0, 7, 0, 9, 7, 1])
    assert choose_ids(counts, 3, []).tolist() == [1, 3, 4]
    assert choose_ids(counts, 2, []).tolist() == [1, 3]  # of equals the lower id
    assert choose_ids(counts, 3, {0, 5}).tolist() == [0, 3, 5]  # what ends a text is in it
    with pytest.raises(ValueError, match="1 must be from 2 to 6"):
        choose_ids(counts, 1, {0, 5})


def test_auto_covers_the_text_with_few():
    counts = torch.zeros(2000, dtype=torch.long)
    counts[500:800] = 1000
    assert len(choose_ids(counts, None, [])) == 384
    counts[500:900] = 1000
    assert len(choose_ids(counts, None, [])) == 512
    counts[500:700] = 1000_000
    assert len(choose_ids(counts, None, [])) == 256
    assert choose_ids(torch.ones(1000, dtype=torch.long), None, []) is None


# --- with the model ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["native", "hf", "mtp_llama"])
def test_it_is_stored_and_used(tmp_path, model_dir, capsys, layout):
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"output": "aab"}) + "\n" + json.dumps({"output": "abc"}))
    options = ["--draft-vocabulary", 3, "--draft-text", text]
    out = convert(model_dir, "--to", layout, *options)
    assert "drafts from 3 of 259 tokens (83.33% of" in capsys.readouterr().out
    assert load_meta_mtp_model(out, "cpu").draft_ids.tolist() == [97, 98, EOS]
    assert inspect_checkpoint(out, verify=True).draft_tokens == 3

    assert main(["generate", str(model_dir), *RAW]) == 0
    plain = capsys.readouterr().out
    for more in ([], ["--draft-vocabulary", "none"], ["--no-speculate"]):
        assert main(["generate", str(out), *RAW, *more]) == 0
        assert capsys.readouterr().out == plain

    again = tmp_path / "again"
    assert main(["convert", str(out), str(again)]) == 0  # it goes with the model
    assert load_meta_mtp_model(again, "cpu").draft_ids.tolist() == [97, 98, EOS]
    command = ["convert", str(out), str(again), "--overwrite", "--draft-vocabulary", "none"]
    assert main(command) == 0
    assert load_meta_mtp_model(again, "cpu").draft_ids is None
    assert not (again / DRAFT_FILE).exists()


def test_training_keeps_it(model_dir):
    out = convert(model_dir, "--draft-vocabulary", "100")
    source = open_checkpoint(out)
    start = stored_model(source, source.args)
    assert len(start.adapter.transformer.draft_ids) == 100


def test_without_a_text_the_standard_library_is_counted(model_dir, capsys):
    out = convert(model_dir, "--draft-vocabulary", "100")
    ids = load_meta_mtp_model(out, "cpu").draft_ids.tolist()
    assert {*b"def self:\n", EOS} < set(ids)
    assert "Python's standard library" in capsys.readouterr().out


def test_auto(tmp_path, model_dir, capsys):
    (tmp_path / "t.txt").write_text("x")
    out = convert(model_dir, "--draft-vocabulary", "auto", "--draft-text", tmp_path / "t.txt")
    assert load_meta_mtp_model(out, "cpu").draft_ids.numel() == 256
    assert "(100.00% of" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["eagle3", "speculators"])
def test_a_speculator_has_the_smaller_vocabulary(tmp_path, model_dir, form):
    (tmp_path / "t.txt").write_text("hello")
    options = ["--draft-vocabulary", 5, "--draft-text", tmp_path / "t.txt"]
    out = convert(model_dir, "--to", form, *options)
    ids = sorted([*b"helo", EOS])
    assert json.loads((out / form / "config.json").read_text())["draft_vocab_size"] == 5
    state = load_file(out / form / "model.safetensors")
    weight = load_meta_mtp_model(out, "cpu").output.weight
    assert torch.equal(state["lm_head.weight"], weight[ids])
    assert state["d2t"].shape == (5,)
    assert state["t2d"].shape == (259,)
    assert (torch.arange(5) + state["d2t"]).tolist() == ids
    assert state["t2d"].nonzero()[:, 0].tolist() == ids
    ranks = state["t2d"].cumsum(0)[ids] - 1  # and back: the row of each token
    assert ranks.tolist() == list(range(5))


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.tensor([1, 2])}, "lacks token 258, which ends a text"),
        ({"ids": torch.tensor([1, 258, 259])}, "token ids outside 0 to 258"),
        ({"ids": torch.tensor([-1, 258])}, "token ids outside 0 to 258"),
        ({"ids": torch.tensor([1, 1, 258])}, "holds a token twice"),
        ({"ids": torch.tensor([258, 1])}, "do not ascend"),
        ({"ids": torch.tensor([], dtype=torch.long)}, "holds no token"),
        ({"ids": torch.tensor([1.0, 258.0])}, "'ids' must be a list of int64"),
        ({"vocab_size": torch.tensor([300])}, "a vocabulary of 300 tokens, but the model has 259"),
        ({"ids": None}, "has no tensor 'ids'"),
    ],
)
def test_a_wrong_file_is_named(model_dir, capsys, change, message):
    (model_dir / "mtp").mkdir()
    stored = {"ids": torch.tensor([1, EOS]), "vocab_size": torch.tensor([259]), **change}
    found = {key: value for key, value in stored.items() if value is not None}
    save_file(found, model_dir / DRAFT_FILE)
    line = refusal(capsys, "generate", model_dir, *RAW)
    assert message in line
    assert str(DRAFT_FILE) in line


def test_all_may_be_drafted_although_the_file_lacks_the_end(model_dir):
    (model_dir / "mtp").mkdir()
    save_file({"ids": torch.tensor([1]), "vocab_size": torch.tensor([259])}, model_dir / DRAFT_FILE)
    assert main(["generate", str(model_dir), *RAW, "--draft-vocabulary", "none"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--draft-vocabulary", "0"], "--draft-vocabulary 0: must be at least 1"),
        (["--draft-vocabulary", "-3"], "--draft-vocabulary -3: must be at least 1"),
        (["--draft-vocabulary", "260"], "260: the model has 259 tokens"),
        (["--draft-vocabulary", "few"], "'few': give a number of tokens, auto or none"),
        (["--draft-text", "empty.txt"], "--draft-text goes with --draft-vocabulary N"),
        (["--draft-vocabulary", "9", "--draft-text", "gone.txt"], "gone.txt: no such file"),
        (["--draft-vocabulary", "9", "--draft-text", "a.jsonl"], 'no field "text" or "output"'),
        (["--draft-vocabulary", "9", "--draft-text", "empty.txt"], "holds no text"),
    ],
)
def test_bad_options_are_named(model_dir, capsys, monkeypatch, options, message):
    monkeypatch.chdir(model_dir.parent)
    Path("a.jsonl").write_text('{"a": 1}\n')
    Path("empty.txt").write_text("")
    assert message in refusal(capsys, "convert", "m", "out", *options)
    assert not Path("out").exists()


def test_one_head_has_nothing_to_draft(tmp_path, capsys):
    save_native(tiny_model(tiny_args(n_future_tokens=1)), tmp_path / "m")
    line = refusal(capsys, "convert", tmp_path / "m", tmp_path / "o", "--draft-vocabulary", "9")
    assert "only the next-token head" in line


def test_it_does_not_go_with_no_speculate(model_dir, capsys):
    options = ["--no-speculate", "--draft-vocabulary", "none"]
    assert "--draft-vocabulary does not go" in refusal(
        capsys, "generate", model_dir, *RAW, *options
    )
