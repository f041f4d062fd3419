"""Sampled speculative decoding has exactly the model's distribution: by enumeration, and by χ²."""

import importlib
import itertools
from collections import defaultdict

import pytest
import torch
from tests.helpers import tiny_args, tiny_model

from weighted_mtp.decoding import LossyTypical, Sampling, Speculation, Stopping, complete
from weighted_mtp.decoding.dice import Dice
from weighted_mtp.decoding.greedy import whole_logits
from weighted_mtp.decoding.sampling import penalise, probabilities
from weighted_mtp.decoding.verify import rejection


def make_model(vocab: int, n: int, seed: int = 0):
    args = tiny_args(dim=16, n_heads=2, n_layers=n + 1, vocab_size=vocab, n_future_tokens=n)
    return tiny_model(args, seed, dtype=torch.float64).requires_grad_(False)


def by_chain_rule(model, prompt, length, sampling) -> dict[tuple[int, ...], float]:
    """Probability of every continuation, from the model read anew for each of its beginnings."""
    chances: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        longer = {}
        for text, chance in chances.items():
            tokens = [*prompt, *text]
            logits = whole_logits(model, tokens)
            seen = torch.zeros_like(logits, dtype=torch.bool)
            seen[tokens] = True
            probs = probabilities(penalise(logits, seen, sampling.repetition_penalty), sampling)
            for token, p in enumerate(probs.tolist()):
                if p > 0:
                    longer[(*text, token)] = chance * p
        chances = longer
    return chances


# --- one step, over all it may draft, accept and draw --------------------------------------------


class Certain(Dice):
    """Decisions handed in: nothing here is left to chance."""

    def pick(self, probs, uniforms):
        self.last = probs
        return torch.zeros(probs.shape[:-1], dtype=torch.long)

    def accepts(self, chances, uniforms):
        self.chances = chances
        return self.verdict.expand_as(chances)


@pytest.mark.parametrize(("vocab", "W"), [(2, 2), (3, 3), (3, 4)])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_step_has_the_distribution_of_p(vocab, W, sparse):
    """Summed over all drafts and verdicts; what a step leaves open is filled up from p."""
    generator = torch.Generator().manual_seed(vocab + W)

    def table(*shape):
        weights = torch.rand(*shape, vocab, generator=generator, dtype=torch.float64) ** 2
        if sparse:
            weights[..., 0] *= torch.randint(2, shape, generator=generator)
        return weights / weights.sum(-1, keepdim=True)

    q = table(W - 1)
    texts = [t for size in range(W) for t in itertools.product(range(vocab), repeat=size)]
    p = {text: table() for text in texts}
    dice, got = Certain(0, [0], torch.device("cpu")), defaultdict(float)

    def fill(text, chance):
        if len(text) == W:
            got[text] += chance
        elif chance > 0:
            for token in range(vocab):
                fill((*text, token), chance * float(p[text][token]))

    for drafts in itertools.product(range(vocab), repeat=W - 1):
        drawn = float(torch.prod(q[range(W - 1), drafts]))
        for kept in range(W if drawn > 0 else 0):  # the first rejected draft, or none
            dice.verdict = torch.arange(W - 1) < kept
            judged = rejection(
                torch.stack([p[drafts[:i]] for i in range(W)])[None],
                q[None],
                torch.tensor([drafts]),
                torch.tensor([W]),
                dice,
                torch.zeros(1, W - 1),
                torch.zeros(1, W),
            )
            assert judged.count.tolist() == [kept + 1]
            chance = drawn * float(dice.chances[0, :kept].prod())
            if kept < W - 1:
                chance *= 1 - float(dice.chances[0, kept])
            for token in range(vocab):
                fill((*drafts[:kept], token), chance * float(dice.last[0, token]))
    for text in itertools.product(range(vocab), repeat=W):
        expected = torch.stack([p[text[:i]][text[i]] for i in range(W)]).prod()
        assert got[text] == pytest.approx(float(expected), abs=1e-12)


# --- whole texts, over every decision of the decoder itself --------------------------------------


class Forking(Dice):
    """Follows a script of decisions, and adds the first possible one where the script ends."""

    def __init__(self, seed, row_seeds, device):
        super().__init__(seed, row_seeds, device)
        self.script: list[list[tuple[int, float]]] = type(self).path
        self.at, self.chance = 0, 1.0
        type(self).current = self

    def decide(self, options: list[float]) -> int:
        if self.at == len(self.script):
            self.script.append([(i, p) for i, p in enumerate(options) if p > 1e-15])
        choice, chance = self.script[self.at][0]
        self.at += 1
        self.chance *= chance
        return choice

    def pick(self, probs, uniforms):
        rows = probs.reshape(-1, probs.shape[-1]).tolist()
        return torch.tensor([self.decide(row) for row in rows]).reshape(probs.shape[:-1])

    def accepts(self, chances, uniforms):
        right = []
        for chance in chances[0].tolist():  # what follows a rejection does not matter
            right.append(all(right) and self.decide([1 - chance, chance]) == 1)
        return torch.tensor([right], dtype=torch.bool)


def by_enumeration(monkeypatch, model, prompt, length, sampling, speculation):
    """Probability of every text, over all paths that the decoder can take; and their number."""
    module = importlib.import_module("weighted_mtp.decoding.generate")  # not the function
    monkeypatch.setattr(module, "Dice", Forking)
    Forking.path, chances, paths = [], defaultdict(float), 0
    while True:
        done, _ = complete(model, [prompt], Stopping(length), sampling, speculation)
        chances[tuple(done[0].tokens)] += Forking.current.chance
        paths += 1
        path = Forking.path
        while path and len(path[-1]) == 1:
            path.pop()
        if not path:
            return chances, paths
        path[-1].pop(0)


@pytest.mark.parametrize(
    ("vocab", "k", "length", "sampling", "speculation"),
    [
        (3, 2, 3, Sampling(1.0), Speculation(2)),
        (2, 3, 4, Sampling(0.8), Speculation(3)),
        (2, 3, 4, Sampling(0.7, repetition_penalty=1.5), Speculation(3)),
        (4, 2, 3, Sampling(1.3, top_p=0.8, top_k=3), Speculation(2)),
        (3, 2, 3, Sampling(1.0, min_p=0.3), Speculation(2, draft=Sampling(2.0))),
        (3, 3, 3, Sampling(1.0), Speculation(3, draft=Sampling(0.0))),
        (2, 3, 5, Sampling(1.0), Speculation(2, adaptive=True, token_cost=0.8)),
    ],
)
def test_every_text_has_the_models_probability(
    monkeypatch, vocab, k, length, sampling, speculation
):
    model, prompt = make_model(vocab, k), [1, 0, 1]
    got, paths = by_enumeration(monkeypatch, model, prompt, length, sampling, speculation)
    expected = by_chain_rule(model, prompt, length, sampling)
    assert paths >= len(expected)
    assert sum(got.values()) == pytest.approx(1, abs=1e-10)
    assert got.keys() == expected.keys()
    for text, chance in expected.items():
        assert got[text] == pytest.approx(chance, abs=1e-10)


def test_the_enumeration_would_see_a_wrong_rule(monkeypatch):
    model, prompt, sampling = make_model(3, 2), [1, 0, 1], Sampling(1.0)
    lossy = Speculation(2, lossy_typical=LossyTypical(0.1, 0.1))
    got, _ = by_enumeration(monkeypatch, model, prompt, 3, sampling, lossy)
    expected = by_chain_rule(model, prompt, 3, sampling)
    assert max(abs(got[text] - chance) for text, chance in expected.items()) > 0.01


# --- χ² of texts drawn with the real dice --------------------------------------------------------


def chi_squared(vocab, n, length, sampling, speculation, draws=6000) -> tuple[float, int]:
    model, prompt = make_model(vocab, n, seed=3), [2, 1, 0]
    expected = by_chain_rule(model, prompt, length, sampling)
    done, report = complete(model, [prompt] * draws, Stopping(length), sampling, speculation)
    assert sum(report.accepted) > draws / 10  # there was something to get wrong
    counts = defaultdict(int)
    for row in done:
        counts[tuple(row.tokens)] += 1
    assert counts.keys() <= expected.keys()
    cells = [(counts[text], chance * draws) for text, chance in expected.items()]
    common = [cell for cell in cells if cell[1] >= 5]
    rare = [cell for cell in cells if cell[1] < 5]  # lumped together, as the test asks for
    cells = [*common, (sum(o for o, _ in rare), sum(e for _, e in rare))] if rare else common
    return sum((o - e) ** 2 / e for o, e in cells), len(cells) - 1


@pytest.mark.parametrize(
    ("sampling", "speculation"),
    [
        (Sampling(1.0, seed=1), Speculation()),
        (Sampling(0.7, 0.9, seed=2, repetition_penalty=1.2), Speculation(draft=Sampling(1.0))),
        (Sampling(1.5, seed=3, min_p=0.05), Speculation(adaptive=True, token_cost=0.4)),
    ],
)
def test_texts_follow_the_models_distribution(sampling, speculation):
    """Beyond d + 5·√(2d) chance goes less than once in 10 000 (d degrees of freedom)."""
    chi2, freedom = chi_squared(4, 3, 4, sampling, speculation)
    assert freedom > 20
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5


def test_the_chi_squared_test_would_see_a_wrong_rule():
    lossy = Speculation(lossy_typical=LossyTypical(0.3, 0.6))
    chi2, freedom = chi_squared(4, 3, 4, Sampling(1.0, seed=1), lossy, draws=3000)
    assert chi2 > freedom + 20 * (2 * freedom) ** 0.5
