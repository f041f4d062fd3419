"""Heads added to a model: what it was stays, what is new begins as its last block."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import tiny_args, tiny_model
from tests.unit.checkpoint_cases import some_tokens, tiny, write_native

from weighted_mtp.cli.main import main
from weighted_mtp.decoding import Speculation, generate
from weighted_mtp.models.meta_mtp.add_heads import add_heads
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, save_native


@settings(max_examples=20, deadline=None)
@given(have=st.integers(1, 3), new=st.integers(1, 3), tied=st.booleans(), seed=st.integers(0, 9))
def test_old_heads_say_what_they_said_and_new_ones_what_the_first_says(have, new, tied, seed):
    args = tiny_args(n_future_tokens=have, n_layers=have + 2, tie_embeddings=tied)
    model = tiny_model(args, seed)
    wide = add_heads(model, have + new)
    tokens = torch.randint(args.vocab_size, (2, 7), generator=torch.Generator().manual_seed(seed))
    before = model(tokens, return_all_heads=True)
    after = wide(tokens, return_all_heads=True)
    assert after.shape[2] == have + new
    assert torch.equal(after[:, :, :have], before)
    for head in range(have, have + new):
        assert torch.equal(after[:, :, head], before[:, :, 0])


def test_what_was_there_is_shared_and_the_new_blocks_are_apart():
    model = tiny_model(tiny_args(n_future_tokens=1, tie_embeddings=True)).eval()
    wide = add_heads(model, 3)
    own = dict(wide.named_parameters())
    for name, parameter in model.named_parameters():
        assert own.pop(name) is parameter
    assert {name.split(".")[1] for name in own} == {"0", "1"}
    assert all(name.startswith("extra_heads.") for name in own)
    apart = [*own.values(), *model.parameters()]
    assert len({p.data_ptr() for p in apart}) == len(apart)
    assert wide.output.weight is wide.tok_embeddings.weight
    assert not wide.training
    assert model.args.n_future_tokens == 1
    assert len(model.extra_heads) == 0


def test_greedy_text_stays_and_the_model_survives_storage(tmp_path):
    model = tiny(n_future_tokens=1)
    wide = add_heads(model, 4)
    prompts = [[3, 1, 4], [1, 5]]
    drafted = generate(wide, prompts, 8, speculation=Speculation())
    assert drafted == generate(model, prompts, 8)
    save_native(wide, tmp_path / "wide")
    back = load_meta_mtp_model(tmp_path / "wide", device="cpu")
    tokens = some_tokens()
    assert torch.equal(back(tokens, return_all_heads=True), wide(tokens, return_all_heads=True))


@pytest.mark.parametrize("n", [-1, 0, 2, 3])
def test_no_fewer_heads_than_there_are(n):
    with pytest.raises(ValueError, match="has 3 head"):
        add_heads(tiny(), n)


def test_convert_adds_heads(tmp_path, capsys):
    source, out = write_native(tmp_path / "model", n_future_tokens=1), tmp_path / "wide"
    assert main(["convert", str(source), str(out), "--add-heads", "2"]) == 0
    assert "2 more heads" in capsys.readouterr().out
    back = load_meta_mtp_model(out, device="cpu")
    assert back.args.n_future_tokens == 3
    logits = back(some_tokens(), return_all_heads=True)
    assert torch.equal(logits[:, :, 1], logits[:, :, 0])


@pytest.mark.parametrize("count", ["0", "-1"])
def test_convert_refuses_a_count_below_one(tmp_path, capsys, count):
    source = write_native(tmp_path / "model")
    assert main(["convert", str(source), str(tmp_path / "out"), "--add-heads", count]) == 2
    assert "--add-heads" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
