"""Several examples in a row: nothing crosses a border, and the numbers are those of padded rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weighted_mtp.core.config.sections import ObjectiveConfig
from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import Example, Packing, pack_batch, pad_batch
from weighted_mtp.data.packing import Cutter, pack_groups
from weighted_mtp.losses import LossTerms, shift_labels
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.training.module import TrainingModule, batch_loss, read_batch
from weighted_mtp.pipelines.training.objectives import make_objective
from weighted_mtp.pipelines.training.objectives.base import plain_targets

PAD, V, N_HEADS = 99, 100, 3
lengths = st.lists(st.integers(1, 12), min_size=1, max_size=20)


def example(row: int, length: int, prompt: int = 1, ahead: int | None = None) -> Example:
    """Ids that say where they come from; `ahead` are read by no position."""
    ids = [(7 * row + 3 * j) % (V - 1) for j in range(length)]
    inputs = None if ahead is None else max(1, length - ahead)
    return Example(ids, min(prompt, length), False, row, f"t{row}", row % 2 == 0, inputs=inputs)


def examples_of(lengths: list[int]) -> list[Example]:
    return [example(i, m + 1, prompt=1 + i % 3) for i, m in enumerate(lengths)]


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    args = ModelArgs(
        dim=32, n_layers=4, n_heads=2, vocab_size=V, n_future_tokens=N_HEADS, max_seq_len=64
    )
    transformer = Transformer(args).double()
    transformer.init_weights(0.2)
    return transformer


# --- rows ----------------------------------------------------------------------------------------


@given(lengths, st.integers(12, 30), st.integers(1, 6))
def test_every_group_has_one_row_and_no_row_overflows(lengths, capacity, rows):
    packed = pack_groups(lengths, capacity, rows)
    assert sorted(g for row in packed for g in row) == list(range(len(lengths)))
    assert all(sum(lengths[g] for g in row) <= capacity for row in packed)
    assert len(packed) <= rows + 2 * -(-sum(lengths) // capacity)


def test_a_group_longer_than_a_row_gets_its_own():
    packed = pack_groups([50, 3, 4], capacity=10, rows=1)
    assert [sorted(row) for row in packed] == [[0], [1, 2]]


def test_packing_takes_as_few_rows_as_it_can():
    """Groups that fill rows exactly, in whatever order they come."""
    lengths = [4, 12, 8, 8]
    packed = pack_groups(lengths, capacity=16, rows=2)
    assert [sum(lengths[g] for g in row) for row in packed] == [16, 16]
    (batch,) = Cutter(PAD, 16, 4, packing=True).cut([(e,) for e in examples_of(lengths)])
    assert batch.tokens.shape == (2, 16)
    assert batch.packing is not None
    assert (batch.packing.source >= 0).all()


def test_a_pair_counts_as_long_as_its_longer_row():
    pairs = [(2, 9), (5, 6), (3, 7)]
    groups = [(example(2 * i, a), example(2 * i + 1, b)) for i, (a, b) in enumerate(pairs)]
    batches = Cutter(PAD, 16, 2).cut(groups)
    assert [batch.rows.tolist() for batch in batches] == [[2, 3], [4, 5], [0, 1]]


def test_rows_come_out_about_equally_full():
    lengths = [9, 8, 7, 6, 5, 4, 3, 2]
    loads = [sum(lengths[g] for g in row) for row in pack_groups(lengths, 100, 4)]
    assert max(loads) - min(loads) <= 2


@given(lengths, st.integers(1, 4), st.sampled_from([1, 2, 3]), st.booleans())
@settings(max_examples=60)
def test_ranks_get_equal_numbers_of_batches_and_every_example_once(lengths, size, world, packing):
    cutter = Cutter(PAD, 16, size, packing)
    groups = [(e,) for e in examples_of(lengths)]
    per_rank = [cutter.cut(groups, rank, world) for rank in range(world)]
    assert len({len(batches) for batches in per_rank}) == 1
    rows = [r for batches in per_rank for batch in batches for r in batch.rows.tolist() if r >= 0]
    assert sorted(rows) == list(range(len(lengths)))
    for batch in (b for batches in per_rank for b in batches):
        assert batch.tokens.shape[0] <= size
        assert batch.tokens.shape[1] <= 16


def test_rows_of_like_length_share_a_batch():
    """What README's share of padding rests on; ranks that work side by side have like lengths."""
    groups = [(e,) for e in examples_of([9, 1, 8, 2, 7, 3, 12, 6])]
    whole = Cutter(PAD, 16, 2).cut(groups)
    assert [batch.rows.tolist() for batch in whole] == [[1, 3], [5, 7], [4, 2], [0, 6]]
    assert [batch.tokens.shape[1] for batch in whole] == [2, 6, 8, 12]
    ranks = [Cutter(PAD, 16, 2).cut(groups, rank, 2) for rank in range(2)]
    assert [[b.tokens.shape[1] for b in batches] for batches in ranks] == [[2, 8], [6, 12]]


@given(lengths, st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_no_other_cut_has_less_padding(lengths, size, chance):
    def positions(order: list[int]) -> int:
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        return sum(max(part) * len(part) for part in parts)

    lengths = lengths * size  # whole batches: with a rest, sorting is not always best
    cut = Cutter(PAD, 16, size).cut([(e,) for e in examples_of(lengths)])
    ours = sum(batch.tokens.numel() for batch in cut)
    chance.shuffle(lengths)
    assert ours <= positions(lengths)


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=8))
def test_a_pair_stays_side_by_side_in_one_batch(pairs):
    both = [(example(2 * i, a + 1), example(2 * i + 1, b + 1)) for i, (a, b) in enumerate(pairs)]
    for batch in Cutter(PAD, 16, 2, packing=True).cut(both):
        rows = batch.rows.tolist()
        assert rows[1::2] == [r + 1 for r in rows[::2]]


@pytest.mark.parametrize("packing", [True, False])
def test_no_groups_give_a_batch_with_nothing_to_learn(model, packing):
    (batch,) = Cutter(PAD, 16, 2, packing).cut([])
    assert batch.rows.tolist() == [-1]
    assert (plain_targets(batch, 2) == IGNORE_INDEX).all()
    (states,) = read_batch(model, batch)
    assert states.isfinite().all()
    assert batch.positions().tolist() == [1, 0]


# --- layout --------------------------------------------------------------------------------------


@given(st.lists(lengths, min_size=1, max_size=3))
@settings(max_examples=40)
def test_packing_is_a_bijection_between_the_layouts(rows):
    flat = iter(examples_of([m for row in rows for m in row]))
    packed = [[next(flat) for _ in row] for row in rows]
    batch = pack_batch(packed, PAD)
    packing = batch.packing
    assert packing is not None
    numbers = torch.arange(packing.source.numel()).view(packing.source.shape) + 1
    there = packing.unpack(numbers, 0)  # [B, S]
    assert torch.equal(there > 0, packing.filled)
    assert torch.equal(packing.pack(there, 0), numbers.where(packing.source >= 0, 0))
    assert packing.filled.sum() == sum(m for row in rows for m in row)


@given(st.lists(lengths, min_size=1, max_size=3))
@settings(max_examples=40)
def test_a_token_sees_its_own_document_back_to_its_beginning_and_nothing_else(rows):
    flat = iter(examples_of([m for row in rows for m in row]))
    packed = [[next(flat) for _ in row] for row in rows]
    batch = pack_batch(packed, PAD)
    assert batch.packing is not None
    mask, positions = batch.packing.mask, batch.packing.positions
    for p, row in enumerate(packed):
        start = 0
        for e in row:
            m = e.positions
            assert positions[p, start : start + m].tolist() == list(range(m))
            assert batch.tokens[p, start : start + m].tolist() == list(e.ids[:m])
            for t in range(m):
                seen = mask[p, 0, start + t].nonzero().flatten().tolist()
                assert seen == list(range(start, start + t + 1))
            start += m
        assert (batch.tokens[p, start:] == PAD).all()
        assert (positions[p, start:] == 0).all()
    assert mask.any(-1).all()  # padding sees something: no softmax over nothing


def test_targets_are_those_of_padded_rows():
    some = examples_of([5, 9, 2, 7])
    padded, packed = pad_batch(some, PAD), pack_batch([some[:2], some[2:]], PAD)
    assert torch.equal(plain_targets(padded, 4), plain_targets(packed, 4))
    for field in ("labels", "truncated", "rows", "correct"):
        assert torch.equal(getattr(padded, field), getattr(packed, field))


def test_a_piece_that_is_read_in_part_predicts_its_tokens_ahead_and_no_further():
    piece = Example([5, 6, 7, 8, 9], 1, False, 0, inputs=3)
    batch = pack_batch([[piece]], PAD)
    assert batch.tokens.tolist() == [[5, 6, 7]]
    targets = plain_targets(batch, 3)
    assert targets.tolist() == [[[6, 7, 8], [7, 8, 9], [8, 9, IGNORE_INDEX]]]
    assert batch.positions().tolist() == [3, 3]
    with pytest.raises(ValueError, match="packed"):
        pad_batch([piece], PAD)


def test_positions_count_padding():
    some = examples_of([5, 9, 4, 7])
    assert pad_batch(some, PAD).positions().tolist() == [36, 25]
    assert pack_batch([some[:2], some[2:]], PAD).positions().tolist() == [28, 25]


# --- the model and the loss ----------------------------------------------------------------------


def loss_of(model: Transformer, batch, weights=None, c=None):
    states = read_batch(model, batch, all_heads=True)
    targets = plain_targets(batch, N_HEADS)
    denominators = (targets != IGNORE_INDEX).sum((0, 1)).double()
    weight = model.output.weight
    return batch_loss(batch, states, weight, LossTerms(targets, denominators, weights, c))


@given(lengths, st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_packed_and_padded_rows_give_the_same_loss_and_gradients(model, lengths, seed):
    some = examples_of(lengths)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(len(some), max(lengths), N_HEADS, generator=generator).double()
    results = []
    packed = [[some[g] for g in row] for row in pack_groups([e.positions for e in some], 20) if row]
    order = [e.row for row in packed for e in row]
    for batch, w in ((pad_batch(some, PAD), weights), (pack_batch(packed, PAD), weights[order])):
        model.zero_grad()
        out = loss_of(model, batch, w)
        out.loss.backward()
        results.append((out, [p.grad.clone() for p in model.parameters()]))
    (padded, grads), (other, other_grads) = results
    torch.testing.assert_close(padded.loss, other.loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(padded.ce[order], other.ce, rtol=1e-10, atol=1e-10)
    assert torch.equal(padded.hit[order], other.hit)
    for one, two in zip(grads, other_grads, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


@given(lengths)
@settings(max_examples=15, deadline=None)
def test_three_ways_to_keep_documents_apart_are_the_same_attention(model, lengths):
    batch = pack_batch([examples_of(lengths)], PAD)
    packing = batch.packing
    assert packing is not None
    results = []
    for mask in (packing, packing._replace(runs=()), packing.mask):
        model.zero_grad()
        states = model.head_states(batch.tokens, positions=packing.positions, mask=mask)
        there = packing.unpack(states[0], 0.0)
        there.square().sum().backward()
        grads = [p.grad for p in model.layers.parameters()]
        results.append([there.detach(), *(g.clone() for g in grads if g is not None)])
    for one, *others in zip(*results, strict=True):
        for other in others:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@given(st.lists(lengths, min_size=1, max_size=3))
@settings(max_examples=30)
def test_runs_are_the_documents_and_the_padding_between_them(rows):
    flat = iter(examples_of([m for row in rows for m in row]))
    packing = pack_batch([[next(flat) for _ in row] for row in rows], PAD).packing
    assert packing is not None
    owner = (
        packing.source.div(packing.slots.shape[1], rounding_mode="floor")
        .flatten()
        .split(list(packing.runs))
    )
    assert all(len(run) and (run == run[0]).all() for run in owner)
    assert sum(int(run[0]) >= 0 for run in owner) == len(packing.slots)


@given(lengths, st.integers(0, 2**16), st.booleans())
@settings(max_examples=25, deadline=None)
def test_heads_that_run_only_where_they_predict_give_the_same_loss_and_gradients(
    model, lengths, seed, padded
):
    """Prompts of all lengths, whole rows too, so that some or all positions predict nothing."""
    draw = torch.Generator().manual_seed(seed)
    prompts = [int(torch.randint(1, m + 2, (), generator=draw)) for m in lengths]
    some = [example(i, m + 1, p) for i, (m, p) in enumerate(zip(lengths, prompts, strict=True))]
    batch = pack_batch([some[::2], some[1::2]] if some[1:] else [some], PAD)
    if padded:
        batch = pad_batch(some, PAD)
    packing, targets = batch.packing, plain_targets(batch, N_HEADS)
    packing = packing or Packing.of_padded(*batch.tokens.shape)
    terms = LossTerms(targets, (targets != IGNORE_INDEX).sum((0, 1)).double().clamp(min=1))
    only, wanted = packing.only((targets != IGNORE_INDEX).any(-1))
    results = []
    for places, seen in ((None, batch), (wanted, batch._replace(packing=only))):
        model.zero_grad()
        states = read_batch(model, batch, all_heads=True, wanted=places)
        out = batch_loss(seen, states, model.output.weight, terms)
        out.loss.backward()
        results.append([out.loss.detach(), out.ce, *(p.grad.clone() for p in model.parameters())])
    assert len(wanted) == max(1, int((targets != IGNORE_INDEX).any(-1).sum()))
    results[0][1] = results[0][1].where(
        (targets != IGNORE_INDEX), 0
    )  # of padding too, where it ran
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("padded", [False, True])
def test_a_module_runs_its_heads_only_where_they_predict(model, padded):
    """Only if the loss of the heads is all there is, and nobody has another one."""
    some = examples_of([5, 9, 4, 7])
    batch = pad_batch(some, PAD) if padded else pack_batch([some], PAD)
    adapter = MetaLlamaMTPAdapter(model)
    for name, everywhere in (("uniform", False), ("distil", True)):
        objective = make_objective(ObjectiveConfig(name=name), N_HEADS)
        ran = []
        hook = model.extra_heads[0].register_forward_hook(lambda *call, ran=ran: ran.append(call))
        denominators = objective.denominators(objective.counts(batch)[None])
        TrainingModule(adapter, objective)(batch, "train", denominators)
        hook.remove()
        ((_, _, out),) = ran
        wanted = (plain_targets(batch, N_HEADS) != IGNORE_INDEX).any(-1)
        assert out.shape[:2] == (batch.tokens.shape if everywhere else (1, int(wanted.sum())))


def test_rows_of_a_micro_batch_end_to_end_leave_no_padding():
    groups = [(e,) for e in examples_of([5, 9, 4, 7, 11, 3])]
    apart, joined = (
        Cutter(PAD, 16, 2, packing=True, end_to_end=end).cut(groups) for end in (False, True)
    )
    assert [b.rows.tolist() for b in joined] == [b.rows.tolist() for b in apart]
    assert sum(b.tokens.numel() for b in joined) == 39 < sum(b.tokens.numel() for b in apart)
    assert all(b.tokens.shape[0] == 1 for b in joined)
    ((empty,),) = (Cutter(PAD, 16, 2, packing=True, end_to_end=True).cut([]),)
    assert empty.rows.tolist() == [-1]


def test_attention_takes_the_cheaper_way():
    even = pack_batch([[example(i, 9) for i in range(6)]], PAD).packing
    crumbs = pack_batch([[example(0, 40), *(example(i, 2) for i in range(1, 30))]], PAD).packing
    assert even is not None
    assert crumbs is not None
    assert even.unpacks_cheaply
    assert not crumbs.unpacks_cheaply
    few = pack_batch([[example(0, 7), *(example(i, 2) for i in range(1, 8))]], PAD).packing
    assert few is not None  # 8 · 6² <= 13² is false, 8 · 6 <= 2 · 13 too
    assert not few.unpacks_cheaply
    wide = pack_batch([[example(0, 11), example(1, 3), example(2, 3), example(3, 3)]], PAD).packing
    assert wide is not None  # 4 · 10² > 16² = 256
    assert not wide.unpacks_cheaply
    many = pack_batch([[example(0, 11), *(example(i, 2) for i in range(1, 91))]], PAD).packing
    assert many is not None  # 91 · 10² <= 100², but 91 · 10 > 2 · 100: too much memory
    assert not many.unpacks_cheaply
    square = pack_batch([[example(0, 9), example(1, 9)]], PAD).packing
    assert square is not None  # 2 · 8² <= 16²
    assert square.unpacks_cheaply


@pytest.mark.parametrize("packing", [True, False])
def test_losses_of_a_reference_lie_where_their_tokens_do(packing):
    some = [e._replace(reference=torch.arange(len(e.ids)) + 0.5) for e in examples_of([2, 4])]
    batch = pack_batch([some], PAD) if packing else pad_batch(some, PAD)
    assert batch.reference is not None
    assert batch.reference.tolist() == [[0.5, 1.5, 2.5, 0, 0], [0.5, 1.5, 2.5, 3.5, 4.5]]
    assert pad_batch([some[0], some[1]._replace(reference=None)], PAD).reference is None


def test_changing_a_neighbour_changes_nothing(model):
    one, two, other = example(1, 9), example(2, 7), example(5, 7)
    before, after = (
        read_batch(model, pack_batch([[one, x]], PAD), all_heads=True) for x in (two, other)
    )
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[:, :8], b[:, :8])
        assert not torch.equal(a[:, 8:], b[:, 8:])


def test_packed_rows_may_be_longer_than_the_model_has_positions(model):
    some = [example(i, 60) for i in range(4)]
    batch = pack_batch([some], PAD)
    assert batch.tokens.shape[1] > model.max_positions
    (states,) = read_batch(model, batch)
    (alone,) = read_batch(model, pad_batch(some[3:], PAD))
    torch.testing.assert_close(states[:, -59:], alone, rtol=1e-10, atol=1e-10)


def test_shift_labels_with_documents_agrees(model):
    """The other way to say it: labels in the packed layout, and a document number."""
    some = [example(i, m + 1) for i, m in enumerate([5, 9, 2, 7])]
    batch = pack_batch([some], PAD)
    packing = batch.packing
    assert packing is not None
    S = packing.slots.shape[1]
    documents = packing.source.div(S, rounding_mode="floor")
    here = packing.pack(batch.labels[:, :S], IGNORE_INDEX)  # the last token of each is missing
    direct = shift_labels(here, N_HEADS, documents=documents)
    ours = packing.pack(plain_targets(batch, N_HEADS), IGNORE_INDEX)
    known = direct != IGNORE_INDEX
    assert torch.equal(direct[known], ours[known])
    # What it cannot see are the targets behind the last position: one for each head and document.
    assert int((ours != IGNORE_INDEX).sum() - known.sum()) == sum(
        min(N_HEADS, e.positions) for e in some
    )
