"""The model equals the naive reference in vendor/, at once and piece by piece through the cache."""

from dataclasses import asdict

import pytest
import torch
from tests.helpers import random_tokens, tiny_args, tiny_model
from torch import Tensor
from vendor.meta_llama import ModelArgs as OracleArgs
from vendor.meta_llama import Transformer as Oracle

from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.kv_cache import KVCache
from weighted_mtp.models.meta_mtp.transformer import Transformer

ARGS = tiny_args(n_kv_heads=2)
ORACLE_FIELDS = OracleArgs.__dataclass_fields__
TOLERANCE = 1e-10


def oracle_of(model: Transformer) -> Oracle:
    fields = {name: value for name, value in asdict(model.args).items() if name in ORACLE_FIELDS}
    oracle = Oracle(OracleArgs(**fields)).double()
    oracle.load_state_dict(model.state_dict(), strict=True)
    return oracle


def new_cache(args: ModelArgs = ARGS, batch: int = 2, length: int = 16) -> KVCache:
    return KVCache(args, batch, length, dtype=torch.float64)


def error_of(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype == torch.float64
    assert expected.std() > 0.5
    return float((actual - expected).detach().abs().max())


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model(ARGS, dtype=torch.float64).requires_grad_(False)


def read(model: Transformer, cache: KVCache, tokens: Tensor, steps: list[int], **options) -> Tensor:
    """Logits of `tokens` read in pieces of the given sizes."""
    parts, start = [], 0
    for step in steps:
        piece = tokens[:, start : start + step]
        parts.append(model(piece, start, cache=cache, **options))
        start += step
    assert start == tokens.shape[1]
    return torch.cat(parts, dim=1)


# --- one full pass -------------------------------------------------------------------------------


@pytest.mark.parametrize("return_all_heads", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"n_kv_heads": 1, "rope_theta": 1e5},
        {"n_future_tokens": 1, "ffn_dim_multiplier": 1.3},
        {"n_layers": 4, "n_future_tokens": 4, "norm_eps": 1e-3},
        {"dim": 24, "n_heads": 6, "n_kv_heads": 3},
    ],
)
def test_logits_equal_the_oracle(shape, return_all_heads, record_property):
    model = tiny_model(tiny_args(**shape), dtype=torch.float64)
    oracle, worst = oracle_of(model), 0.0
    for length in (1, 7, 16):
        tokens = random_tokens(model.args, 3, length)
        expected = oracle(tokens, return_all_heads=return_all_heads)
        worst = max(worst, error_of(model(tokens, return_all_heads=return_all_heads), expected))
    record_property("max_error", worst)
    assert worst < TOLERANCE


# --- through the cache ---------------------------------------------------------------------------


@pytest.mark.parametrize("return_all_heads", [True, False])
@pytest.mark.parametrize("steps", [[16], [1] * 16, [7, 1, 1, 3, 1, 3], [1, 5, 10], [15, 1]])
def test_pieces_equal_one_full_pass(model, steps, return_all_heads, record_property):
    tokens = random_tokens(ARGS, 2, 16)
    pieces = read(model, new_cache(), tokens, steps, return_all_heads=return_all_heads)
    worst = error_of(pieces, model(tokens, return_all_heads=return_all_heads))
    record_property("max_error", worst)
    oracle = oracle_of(model)(tokens, return_all_heads=return_all_heads)
    assert max(worst, error_of(pieces, oracle)) < TOLERANCE


def test_a_cache_longer_than_the_sequence_changes_nothing(model):
    tokens = random_tokens(ARGS, 2, 16)
    assert ARGS.max_seq_len == 16
    pieces = read(model, new_cache(length=32), tokens, [9, 1, 6], return_all_heads=True)
    assert error_of(pieces, model(tokens, return_all_heads=True)) < TOLERANCE


def test_what_an_earlier_sequence_left_behind_is_never_seen(model):
    cache, tokens = new_cache(), random_tokens(ARGS, 2, 16)
    model(tokens.flip(1), cache=cache)
    pieces = read(model, cache, tokens, [5, 1, 4, 6], return_all_heads=True)
    assert error_of(pieces, model(tokens, return_all_heads=True)) < TOLERANCE


def test_a_tensor_start_pos_equal_for_all_rows_is_a_number(model):
    cache, tokens = new_cache(), random_tokens(ARGS, 2, 12)
    for start, end in ((0, 5), (5, 6), (6, 12)):
        piece, at = tokens[:, start:end], torch.full((2,), start)
        logits = model(piece, at, return_all_heads=True, cache=cache)
    expected = model(tokens, return_all_heads=True)[:, 6:]
    assert error_of(logits, expected) < TOLERANCE


@pytest.mark.parametrize("lengths", [[3, 7, 5], [1, 7, 7], [7, 1, 2]])
def test_ragged_rows_equal_each_row_alone(model, lengths, record_property):
    """Right-padded prompts, then tokens appended to each row at its own end."""
    tokens = random_tokens(ARGS, 3, 16)
    ends, longest = torch.tensor(lengths), max(lengths)
    padding = torch.arange(longest) >= ends[:, None]
    prompts = tokens[:, :longest].masked_fill(padding, 0)
    cache = new_cache(batch=3)
    parts = [[part] for part in model(prompts, return_all_heads=True, cache=cache)]
    for row, length in enumerate(lengths):
        parts[row] = [parts[row][0][:length]]
    for step in (1, 3, 1, 4):
        piece = torch.stack([row[end : end + step] for row, end in zip(tokens, ends, strict=True)])
        for part, logits in zip(
            parts, model(piece, ends, return_all_heads=True, cache=cache), strict=True
        ):
            part.append(logits)
        ends = ends + step
    worst = 0.0
    for row, (part, end) in enumerate(zip(parts, ends.tolist(), strict=True)):
        alone = model(tokens[row : row + 1, :end], return_all_heads=True)[0]
        worst = max(worst, error_of(torch.cat(part), alone))
    record_property("max_error", worst)
    assert worst < TOLERANCE


@pytest.mark.parametrize("ragged", [False, True])
def test_a_rejected_draft_leaves_no_trace(model, ragged):
    """Slots p … p + 2 are written with a wrong draft, then again with the right tokens."""
    tokens, p = random_tokens(ARGS, 2, 12), 5
    wrong = (tokens[:, p : p + 3] + 1) % ARGS.vocab_size
    outcomes = []
    for drafts in ([], [wrong]):
        cache = new_cache()
        model(tokens[:, :p], return_all_heads=True, cache=cache)
        start = torch.tensor([p, p]) if ragged else p
        for draft in drafts:
            model(draft, start, return_all_heads=True, cache=cache)
        step = model(tokens[:, p : p + 1], start, return_all_heads=True, cache=cache)
        rest = model(tokens[:, p + 1 :], start + 1, return_all_heads=True, cache=cache)
        outcomes.append(torch.cat([step, rest], dim=1))
    assert torch.equal(*outcomes)
    expected = model(tokens, return_all_heads=True)[:, p:]
    assert error_of(outcomes[1], expected) < TOLERANCE


def test_the_cache_holds_keys_and_values_as_the_oracle_does(model):
    tokens, cache, oracle = random_tokens(ARGS, 2, 9), new_cache(length=9), oracle_of(model)
    read(model, cache, tokens, [4, 1, 4], return_all_heads=True)
    oracle(tokens)
    blocks = [*oracle.layers, *oracle.extra_heads]
    for ours, theirs in (("keys", "cache_k"), ("values", "cache_v")):
        for mine, block in zip(getattr(cache, ours), blocks, strict=True):
            kept = getattr(block.attention, theirs)[:2, :9].transpose(1, 2)
            torch.testing.assert_close(mine, kept, rtol=0, atol=TOLERANCE)


# --- refusals ------------------------------------------------------------------------------------


def test_a_sequence_longer_than_the_cache_is_refused(model):
    cache = new_cache(length=8)
    with pytest.raises(ValueError, match="holds 8 tokens, and 9 are asked for"):
        model(random_tokens(ARGS, 2, 9), cache=cache)
    model(random_tokens(ARGS, 2, 8), cache=cache)
    with pytest.raises(ValueError, match="holds 8 tokens, and 9 are asked for"):
        model(random_tokens(ARGS, 2, 1), 8, cache=cache)


@pytest.mark.parametrize("length", [0, -1, 33])
def test_a_cache_that_fits_no_model_is_refused(length):
    with pytest.raises(ValueError, match=f"cache of {length} slots .* 32 positions"):
        new_cache(length=length)


def test_extra_heads_that_never_saw_the_prompt_are_refused(model):
    tokens, cache = random_tokens(ARGS, 2, 12), new_cache()
    model(tokens[:, :5], return_all_heads=True, cache=cache)
    model(tokens[:, 5:6], 5, cache=cache)
    with pytest.raises(ValueError, match=r"extra heads never saw .* return_all_heads=True"):
        model(tokens[:, 6:7], 6, return_all_heads=True, cache=cache)
    again = model(tokens, 0, return_all_heads=True, cache=cache)
    assert error_of(again, model(tokens, return_all_heads=True)) < TOLERANCE


@pytest.mark.parametrize("start_pos", [3, torch.tensor([3, 1])])
def test_a_later_start_needs_a_cache(model, start_pos):
    with pytest.raises(ValueError, match=r"start_pos=.* needs the cache"):
        model(random_tokens(ARGS, 2, 4), start_pos)


def test_a_sequence_beyond_the_rotary_table_is_refused(model):
    assert model.max_positions == 32
    model(random_tokens(ARGS, 1, 32))
    with pytest.raises(ValueError, match=r"33 tokens exceeds the 32 positions .* max_seq_len 16"):
        model(random_tokens(ARGS, 1, 33))


@pytest.mark.parametrize("option", ["positions", "mask"])
def test_positions_and_mask_do_not_go_with_a_cache(model, option):
    context = {"positions": torch.arange(4)[None], "mask": torch.ones(4, 4, dtype=torch.bool)}
    with pytest.raises(ValueError, match="positions and mask"):
        model(random_tokens(ARGS, 2, 4), cache=new_cache(), **{option: context[option]})


@pytest.mark.parametrize("length", [8, 32])
def test_a_ragged_row_longer_than_the_cache_is_refused(model, length):
    cache = new_cache(length=length)
    with pytest.raises(ValueError, match=f"holds {length} tokens"):
        model(random_tokens(ARGS, 2, 3), torch.tensor([length - 2, 1]), cache=cache)


@pytest.mark.parametrize("start_pos", [0, torch.tensor([0])])
def test_a_cache_of_another_batch_size_is_refused(model, start_pos):
    with pytest.raises(ValueError, match="row"):
        model(random_tokens(ARGS, 1, 4), start_pos, cache=new_cache(batch=2))


def test_a_start_beyond_what_was_read_is_refused(model):
    with pytest.raises(ValueError, match="start_pos"):
        model(random_tokens(ARGS, 2, 4), 5, cache=new_cache())
