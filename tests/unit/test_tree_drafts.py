"""Trees of drafts: they are the likeliest, a model reads them as it reads each of their paths, and
the text is the one without them."""

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import tiny_args, tiny_model
from tests.unit.test_draft_cost import Time
from tests.unit.test_speculative import make_model, tied, trained_model
from tests.unit.test_speculative_distribution import Forking, by_chain_rule, by_enumeration
from tests.unit.test_speculative_distribution import make_model as random_model

from weighted_mtp.decoding import (
    LossyTypical,
    Sampling,
    Speculation,
    Stopping,
    Stream,
    complete,
    complete_naively,
    step_clock,
    tree_speculative,
)
from weighted_mtp.decoding.batch import Batch
from weighted_mtp.decoding.fast_model import FastModel
from weighted_mtp.decoding.head_odds import HeadOdds
from weighted_mtp.decoding.running import RunningBatch
from weighted_mtp.decoding.running_rows import Order
from weighted_mtp.decoding.speculative import Speculative
from weighted_mtp.decoding.tree import Tree, likeliest, worthwhile
from weighted_mtp.decoding.tree_speculative import TreeSpeculative
from weighted_mtp.models.meta_mtp.args import Family
from weighted_mtp.models.meta_mtp.kv_cache import KVCache
from weighted_mtp.pipelines.evaluating.writer import sampling_identity

# --- trees ---------------------------------------------------------------------------------------

GUESSES = [
    [(7, 0.5), (3, 0.3), (1, 0.1)],
    [(2, 0.6), (7, 0.25), (4, 0.0)],
    [(5, 0.9), (6, 0.05)],
]


@pytest.mark.parametrize("most", range(1, 30))
def test_no_tree_of_that_size_is_likelier(most):
    tree = likeliest(9, GUESSES, most)
    chances = [
        torch.tensor([chance for _, chance in path]).prod().item()
        for depth in range(4)
        for path in itertools.product(*GUESSES[:depth])
    ]
    best = sorted((chance for chance in chances if chance > 0), reverse=True)[:most]
    assert tree.gains == pytest.approx(best)
    assert tree.tokens[0] == 9
    for node in range(1, len(tree)):
        parent = tree.parents[node]
        assert parent < node
        assert tree.depths[node] == tree.depths[parent] + 1 <= 3
        assert tree.children[parent][tree.tokens[node]] == node
    assert sum(map(len, tree.children)) == len(tree) - 1


def test_a_cut_tree_is_the_smaller_tree():
    for count in range(1, 10):
        tree, small = likeliest(9, GUESSES, 12), likeliest(9, GUESSES, count)
        tree.cut(count)
        assert vars(tree) == vars(small)


def test_the_number_of_nodes_follows_their_cost():
    gains = [1.0, 0.8, 0.5, 0.2, 0.1]

    def costs(*each):
        return lambda width: each[width - 1]

    assert worthwhile(gains, lambda width: 1.0) == 4  # 5 is no size of WIDTHS
    assert worthwhile(gains, costs(1, 2, 3, 4)) == 1
    assert worthwhile(gains, costs(1, 1.1, 1.2, 1.7)) == 3
    assert worthwhile(gains, costs(1, 3, 3, 3)) == 1
    assert worthwhile(gains, costs(1, 2, 2, 1.1)) == 4  # past a hump
    assert worthwhile([1.0], costs(1.0, 1.0)) == 1


def test_heads_are_believed_by_how_they_fared():
    odds = HeadOdds(2)
    assert odds[0] == odds[1] == 1
    for _ in range(200):
        odds.learn(0, 0.8, False)
        odds.learn(0, 0.8, True)
    assert odds[0] == pytest.approx(0.5 / 0.8, rel=0.05)
    assert odds[1] == 1


# --- reading them --------------------------------------------------------------------------------


def make_tree(newest: int, vocab: int, depth: int, size: int, seed: int) -> Tree:
    """Any tree at all."""
    choose, tree = random.Random(seed), Tree(newest)
    for _ in range(4 * size):
        parent, token = choose.randrange(len(tree)), choose.randrange(vocab)
        free = token not in tree.children[parent] and tree.depths[parent] < depth
        if free and len(tree) < size:
            tree.add(parent, token, 0.1)
    return tree


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_heads": 1},
        {"family": Family(sliding_window=4), "n_kv_heads": 2},
        {"family": Family(sliding_window=2)},
        {"family": Family(qk_norm=True, head_dim=6, rotary_dim=4, no_rope_layers=(1,))},
        {"family": Family(embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=2.0)},
    ],
)
def test_a_tree_is_read_as_each_of_its_paths(changes):
    """States of the first head at every node; after a path was kept, what the others guess there,
    and the next read."""
    model = tiny_model(tiny_args(dim=16, **changes), dtype=torch.float64).requires_grad_(False)
    text, near = [3, 1, 4, 1, 5, 9], {"atol": 1e-10, "rtol": 1e-10}
    for seed in range(4):
        fast, cache = FastModel(model, 1), KVCache(model.args, 1, 20, dtype=torch.float64)
        fast.read(torch.tensor([text[:-1]]), 0, cache)
        tree = make_tree(text[-1], 37, 3, 9, seed)
        assert len(tree) == 9
        placed = tree.context(model, 5, torch.device("cpu"))
        states, window = fast.read(torch.tensor([tree.tokens]), 5, cache, placed)
        for node in range(9):
            tokens = text + [tree.tokens[i] for i in tree.path(node)[1:]]
            whole = model.head_states(torch.tensor([tokens]), return_all_heads=True)
            torch.testing.assert_close(states[0, node], whole[0][0, -1], **near)
        path = tree.path(max(range(9), key=tree.depths.__getitem__))
        tokens = text + [tree.tokens[i] for i in path[1:]]
        whole = model.head_states(torch.tensor([tokens]), return_all_heads=True)
        cache.move(path, 5)
        guesses = fast.guess(window.of_path(path, 5), [len(path) - 1], 2)
        torch.testing.assert_close(guesses[0], torch.stack(whole[1:])[:, 0, -1], **near)
        states, window = fast.read(torch.tensor([[8, 2]]), len(tokens), cache)
        whole = model.head_states(torch.tensor([[*tokens, 8, 2]]), return_all_heads=True)
        torch.testing.assert_close(states[0], whole[0][0, -2:], **near)
        guesses = fast.guess(window, [1], 2)
        torch.testing.assert_close(guesses[0], torch.stack(whole[1:])[:, 0, -1], **near)


# --- the text ------------------------------------------------------------------------------------


def text_of(model, prompt, stopping, sampling=None, speculation=None):
    (row,), report = complete(model, [prompt], stopping, sampling, speculation, logprobs=True)
    return row, report


def same(row, other) -> bool:
    assert row.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    return (row.tokens, row.text, row.finish) == (other.tokens, other.text, other.finish)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    prompt=st.lists(st.integers(0, 4), min_size=1, max_size=9),
    new=st.integers(1, 23),
    seed=st.integers(0, 7),
    shape=st.sampled_from([(2, 2), (5, 4), (11, 3), (37, 5)]),  # vocabulary, heads
    nodes=st.integers(2, 14),
    k=st.none() | st.just(2),
    adaptive=st.booleans(),
    penalty=st.sampled_from([1.0, 1.0, 1.4]),
    temperature=st.sampled_from([0.0, 0.0, 0.8]),
    eos_id=st.none() | st.integers(0, 4),
    window=st.sampled_from([None, 3]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_the_text_is_plain_decodings(
    prompt, new, seed, shape, nodes, k, adaptive, penalty, temperature, eos_id, window, dtype
):
    """Greedy and drawn alike, up to the model's last position (9 + 23 = 32)."""
    vocab, n = shape
    changes = {} if window is None else {"family": Family(sliding_window=window)}
    model = make_model(seed, vocab, n, dtype, **changes)
    prompt, stopping = [token % vocab for token in prompt], Stopping(new, eos_id)
    sampling = Sampling(temperature, repetition_penalty=penalty, seed=seed, top_p=0.9)
    speculation = Speculation(k, adaptive, 0.05, tree=nodes)
    plain, _ = text_of(model, prompt, stopping, sampling)
    fast, report = text_of(model, prompt, stopping, sampling, speculation)
    assert same(fast, plain)
    assert report.tokens == len(plain.tokens)
    assert report.nodes <= nodes * report.steps


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, repetition_penalty=1.3)])
def test_it_is_so_whatever_the_tree(monkeypatch, sampling):
    """Trees of guesses from nowhere: right ones are kept, wrong ones do no harm."""
    kept = 0
    for seed in range(8):
        model = make_model(seed, 3, 4)
        plain, _ = text_of(model, [1, 2], Stopping(24), sampling)
        counter = itertools.count(100 * seed)

        def any_tree(newest, guesses, most, counter=counter):
            return make_tree(newest, 3, len(guesses), most, next(counter))

        with monkeypatch.context() as patch:
            patch.setattr(tree_speculative, "likeliest", any_tree)
            patch.setattr(TreeSpeculative, "_count", lambda *args: None)
            fast, report = text_of(model, [1, 2], Stopping(24), sampling, Speculation(tree=9))
        assert same(fast, plain)
        kept += 24 - report.forwards
    assert kept > 20


def copies():
    """A model to whom every token is tied with another, and which does not repeat itself."""
    model = tiny_model(tiny_args(dim=16, vocab_size=36, n_future_tokens=4), 0, dtype=torch.float64)
    with torch.no_grad():
        model.output.weight[18:] = model.output.weight[:18]
    return model.requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "sampling"),
    [
        (make_model(1, 37, 4), Sampling(repetition_penalty=3.0)),
        (make_model(2, 37, 4), Sampling(0.5, repetition_penalty=3.0, seed=1)),
        (copies(), Sampling()),
    ],
)
def test_right_paths_are_kept_whole(monkeypatch, model, sampling):
    """What depends on the path before a node: tokens seen, and the text by which ties are settled.
    The path to keep lies behind a wrong one in the tree."""
    prompt, new, vocab = [1, 2], 25, model.args.vocab_size
    plain, alone = text_of(model, prompt, Stopping(new), sampling)
    assert sampling.repetition_penalty > 1 or alone.rereads > 0

    def right_tree(newest, guesses, most):
        tree = Tree(newest)
        rest, node = plain.tokens[new - rows[0].remaining :][: len(guesses)], 0
        wrong = tree.add(0, (rest[0] + 1) % vocab, 0.1)
        for token in rest:
            wrong = tree.add(wrong, token, 0.1)
            node = tree.add(node, token, 0.1)
            assert node != tree.depths[node]
        return tree

    rows = []
    grow = TreeSpeculative._grow
    monkeypatch.setattr(tree_speculative, "likeliest", right_tree)
    monkeypatch.setattr(
        TreeSpeculative, "_grow", lambda self, last: rows.insert(0, self._row) or grow(self, last)
    )
    monkeypatch.setattr(TreeSpeculative, "_count", lambda *args: None)
    fast, report = text_of(model, prompt, Stopping(new), sampling, Speculation(tree=8))
    assert same(fast, plain)
    assert report.forwards == 7  # of 1 and six times 4 tokens


def test_a_node_has_seen_its_path():
    tree = make_tree(9, 12, 3, 9, 0)
    marked = tree.mark(torch.arange(12) == 5)
    for node in range(9):
        on_path = {5, *(tree.tokens[i] for i in tree.path(node))}
        assert set(marked[node].nonzero().flatten().tolist()) == on_path


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_near_ties_are_settled_alike(dtype):
    for which in ("all", "copies"):
        model, sampling = tied(which, dtype), Sampling(ties="exact")
        for prompt in ([1, 2, 3], [4]):
            plain, _ = text_of(model, prompt, Stopping(8), sampling)
            fast, report = text_of(model, prompt, Stopping(8), sampling, Speculation(tree=7))
            assert fast.tokens == plain.tokens
            assert report.rereads > 0


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, seed=5)])
def test_ends_inside_a_path_are_kept(sampling):
    """EOS, stop strings across tokens, and the limit; as the definition says."""
    model, ends = trained_model(torch.float64), []
    decode = lambda ids: "".join("abcdefghijklmnopq"[i] for i in ids)  # noqa: E731
    free = decode(text_of(model, [1], Stopping(20), sampling)[0].tokens)
    for new in (2, 3, 19, 20):
        for eos_id, strings in ((None, ()), ((4, 8), ()), (None, (free[5:8],)), (6, (free[9:],))):
            stopping = Stopping(new, eos_id, strings, decode)
            fast, report = text_of(model, [1], stopping, sampling, Speculation(tree=8))
            naive = complete_naively(model, [1], stopping, sampling)
            assert (fast.tokens, fast.text, fast.finish) == (naive.tokens, naive.text, naive.finish)
            ends.append(fast.finish)
            assert sum(report.histogram) == report.steps
    assert set(ends) == {"length", "eos", "stop"}


# --- the distribution ----------------------------------------------------------------------------


class _Chosen:
    """A node's token is decided when the walk comes by it: the others come about nowhere."""

    def __init__(self, p):
        self._p = p.tolist()

    def __getitem__(self, node):
        return Forking.current.decide(self._p[node])


CASES = [
    (3, 3, 4, Sampling(1.0), Speculation(tree=6)),
    (3, 2, 4, Sampling(0.7, repetition_penalty=1.5), Speculation(tree=4)),
    (4, 3, 4, Sampling(1.3, top_p=0.8, top_k=3), Speculation(tree=9, draft=Sampling(2.0))),
    (3, 4, 5, Sampling(1.0, min_p=0.2), Speculation(tree=8, adaptive=True, token_cost=0.2)),
]


@pytest.mark.parametrize(("vocab", "n", "length", "sampling", "speculation"), CASES)
def test_every_text_has_the_models_probability(
    monkeypatch, vocab, n, length, sampling, speculation
):
    """Over every path that the decoder can take."""
    monkeypatch.setattr(TreeSpeculative, "_drawn", lambda self, p, tree: _Chosen(p))
    model, prompt = random_model(vocab, n), [1, 0, 1]
    got, paths = by_enumeration(monkeypatch, model, prompt, length, sampling, speculation)
    expected = by_chain_rule(model, prompt, length, sampling)
    assert paths == len(expected)  # nothing but the choices is left to chance
    assert got.keys() == expected.keys()
    for text, chance in expected.items():
        assert got[text] == pytest.approx(chance, abs=1e-10)


def test_the_enumeration_would_see_a_wrong_rule(monkeypatch):
    """A draft that is kept where another token was drawn."""

    class Loose(_Chosen):
        def __getitem__(self, node):
            token = super().__getitem__(node)
            return token if token != 2 else 0

    monkeypatch.setattr(TreeSpeculative, "_drawn", lambda self, p, tree: Loose(p))
    vocab, n, length, sampling, speculation = CASES[0]
    model, prompt = random_model(vocab, n), [1, 0, 1]
    got, _ = by_enumeration(monkeypatch, model, prompt, length, sampling, speculation)
    expected = by_chain_rule(model, prompt, length, sampling)
    assert max(abs(got[text] - chance) for text, chance in expected.items()) > 0.01


# --- what it took --------------------------------------------------------------------------------


def test_the_report_adds_up():
    stream = Stream(trained_model(), [[3]], Stopping(30), speculation=Speculation(tree=6))
    turns = [len(piece.tokens) for (piece,) in stream]
    report = stream.report
    assert report.forwards == len(turns) == report.steps + 1
    assert report.histogram == [turns[1:].count(count) for count in range(1, 5)]
    assert sum(report.accepted) == sum(turns[1:]) - report.steps
    assert all(a >= b for a, b in zip(report.tested, report.accepted, strict=True))
    assert report.tested[1] <= report.accepted[0]
    assert 1 < report.nodes_per_pass <= 6
    assert report.tokens_per_forward > 2


def test_more_branches_keep_more_drafts():
    """Of a model whose heads know the first head's choice only roughly."""
    model, forwards = make_model(1, 11, 4), []
    for speculation in (Speculation(), Speculation(tree=4), Speculation(tree=24)):
        each = [text_of(model, [i], Stopping(28), None, speculation)[1] for i in range(11)]
        forwards.append(sum(report.forwards for report in each))
    assert forwards[2] < 0.9 * forwards[0]
    assert forwards[2] < forwards[1]


def test_dear_passes_get_small_trees():
    model, sizes = make_model(1, 37, 4), []
    for cost in (0.0, 0.05, 2.0):
        speculation = Speculation(tree=12, adaptive=True, token_cost=cost)
        sizes.append(text_of(model, [4], Stopping(24), None, speculation)[1].nodes_per_pass)
    assert sizes[0] > sizes[1] > sizes[2] == 1


def test_hopeless_heads_are_asked_less_and_less():
    model, asked = make_model(1, 37, 4), []
    guess = FastModel.guess_some
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FastModel, "guess_some", lambda *args: asked.append(1) or guess(*args))
        speculation = Speculation(tree=4, adaptive=True, token_cost=9.0)
        _, report = text_of(model, [4], Stopping(28), None, speculation)
    assert report.nodes_per_pass == 1
    assert len(asked) == 6  # for the trees after tokens 1, 2, 4, 7, 12 and 21


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_trees_hold_tokens_of_the_draft_vocabulary(temperature):
    model, held = make_model(1, 37, 4), set()
    sampling = Sampling(temperature)
    plain, _ = text_of(model, [4], Stopping(28), sampling, None)
    model.draft_ids = torch.arange(0, 37, 3)
    add = Tree.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Tree, "add", lambda self, at, token, x: held.add(token) or add(self, at, token, x)
        )
        text, report = text_of(model, [4], Stopping(28), sampling, Speculation(tree=9))
    assert text.tokens == plain.tokens
    assert report.nodes_per_pass > 5
    assert held
    assert held <= set(range(0, 37, 3))


def test_what_is_measured_does_not_identify_texts():
    """Else an evaluation would never be resumed; nor one from before there were trees."""
    for sampling in (Sampling(), Sampling(1.0)):
        found = sampling_identity(sampling, Speculation(tree=2, adaptive=True), 3)
        assert found["speculation"]["tree"] == 2
        chain = sampling_identity(sampling, Speculation(adaptive=True), 3)
        assert "tree" not in chain["speculation"]
        automatic = Speculation(adaptive=True, tree="auto")
        assert sampling_identity(sampling, automatic, 3) == chain


AUTO = Speculation(tree="auto")


def test_a_greedy_text_by_itself_gets_a_tree_and_others_a_chain(monkeypatch):
    model, engines = make_model(0, 37, 4), []
    for kind in (TreeSpeculative, Speculative):
        step = kind.step
        monkeypatch.setattr(
            kind, "step", lambda self, step=step: engines.append(type(self)) or step(self)
        )
    for prompts, sampling, engine in (
        ([[4]], Sampling(), TreeSpeculative),
        ([[4], [5]], Sampling(), Speculative),
        ([[4]], Sampling(1.0), Speculative),
    ):
        plain, _ = complete(model, prompts, Stopping(9), sampling)
        engines.clear()
        found, report = complete(model, prompts, Stopping(9), sampling, AUTO)
        assert set(engines) == {engine}
        assert report.k == 4
        if sampling.greedy:
            assert all(map(same, found, plain))
    assert complete(make_model(n=1), [[1]], Stopping(3), None, AUTO)[1].k == 1
    batch = RunningBatch(make_model(), 2, 8, AUTO)
    batch.admit([Order([1], Stopping(5))])
    assert len(batch.rows) == 1


@pytest.mark.parametrize(
    ("seconds", "least", "most"),
    [(lambda width: width, 1, 1.2), (lambda width: 1 + 0.01 * width, 5, 32)],
)
def test_trees_grow_as_far_as_steps_say_they_pay(monkeypatch, seconds, least, most):
    model, clock = make_model(1, 37, 4), Time()
    batch_read = Batch.read_tree

    def timed(self, tree):
        clock.now += seconds(len(tree))
        return batch_read(self, tree)

    monkeypatch.setattr(Batch, "read_tree", timed)
    monkeypatch.setattr(step_clock, "time", clock)
    monkeypatch.setattr(step_clock, "_CLOCKS", type(step_clock._CLOCKS)())
    plain, _ = text_of(model, [4], Stopping(28))
    for _ in range(2):  # what was measured stays with the model
        text, report = text_of(model, [4], Stopping(28), None, AUTO)
        assert same(text, plain)
    assert least <= report.nodes_per_pass <= most


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("speculation", "prompts", "message"),
    [
        (lambda: Speculation(tree=1), 1, "from 2 on"),
        (lambda: Speculation(tree="full"), 1, "auto or a number"),
        (lambda: Speculation(1, tree=4), 1, "k of at least 2"),
        (lambda: Speculation(tree=4, lossy_typical=LossyTypical()), 1, "leave out lossy"),
        (lambda: Speculation(tree=4), 2, "one row at a time, and 2 prompts"),
    ],
)
def test_what_no_tree_can_do_is_refused(speculation, prompts, message):
    with pytest.raises(ValueError, match=message):
        complete(make_model(), [[1]] * prompts, Stopping(3), None, speculation())


def test_a_model_of_one_head_and_a_running_batch_have_no_trees():
    with pytest.raises(ValueError, match="needs heads to draft with"):
        complete(make_model(n=1), [[1]], Stopping(3), None, Speculation(tree=4))
    with pytest.raises(ValueError, match="drafts chains"):
        RunningBatch(make_model(), 2, 8, Speculation(tree=4))
