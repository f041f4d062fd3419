"""Whatever is learned, how a step is cut changes nothing: micro-batches of 8, 4, 2 or 1 rows,
padded or packed, and chunks of the loss of any size, give the same curve and the same weights.

The quick proof is in float64, where a mistake has no rounding to hide in, and where float32 noise
cannot swap two tokens at the border of Rho-1's selection and part two runs for good. The slow one
takes every cut by itself in float32.
"""

from itertools import cycle

import pytest
import torch
from tests.integration import helpers_training
from tests.integration.helpers_training import SMALL, largest_difference, recut, run_steps, state

from weighted_mtp.pipelines.training.trainer import Trainer

rows_file = helpers_training.rows_file
make_trainer = helpers_training.make_trainer

STEPS = 50
RUN = {**SMALL, "training__steps": STEPS, "training__learning_rate": 3e-3}
STEP = {"objective__scope": "step"}
CASES = {
    "baseline": {},
    "baseline uniform": {"objective__name": "uniform"},
    "baseline dft": {"objective__name": "dft"},
    "baseline surprise": {"objective__name": "surprise"},
    "critic": {"objective__value__trunk": "all", "objective__value__lm_coef": 1.0},
    "critic pairwise": {"objective__value__loss": "pairwise", "objective__value__trunk": "top"},
    "verifiable": {"objective__value__gradient_to_trunk": True},
    "verifiable whiten batch": {"objective__td__whiten": "batch", **STEP},
    "verifiable whiten ema": {"objective__td__whiten": "ema", "objective__td__ema_decay": 0.9},
    "verifiable renormalise": {"objective__td__renormalise": True, **STEP},
    "verifiable random_matched": {"objective__name": "random_matched", **STEP},
    "verifiable shuffled": {"objective__name": "shuffled"},
    "rho1 signed": STEP,
    "rho1 absolute": {"objective__rho1__mode": "absolute", **STEP},
    "rho1 difficult": {"objective__rho1__mode": "difficult", **STEP},
    "rho1 first head": {"objective__rho1__first_head_always": True, **STEP},
}
LOGGED = ("loss", "grad_norm")


@pytest.fixture
def make(make_trainer):
    """A trainer of a case; its steps are whole unless `changes` says otherwise."""

    def make(case: str, dtype: torch.dtype, **changes) -> Trainer:
        settings = {**RUN, "training__micro_batch_size": 8, **CASES[case], **changes}
        return make_trainer(case.split()[0], dtype=dtype, **settings)

    return make


def gaps(trainer: Trainer, curve: list[dict], other: Trainer, uncut: list[dict]) -> dict:
    """Largest differences of two runs."""
    assert [c["tokens"] for c in curve] == [c["tokens"] for c in uncut]
    found = {
        key: max(abs(a[key] - b[key]) for a, b in zip(curve, uncut, strict=True)) for key in LOGGED
    }
    found["weights"] = largest_difference(state(trainer), state(other))
    print("largest differences:", {key: f"{gap:.1e}" for key, gap in found.items()})
    return found


@pytest.mark.parametrize("steps", [24, pytest.param(STEPS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_steps_may_be_cut_in_any_way(case, steps, make):
    """Ways to cut a step take turns, packed and padded; whole padded steps are the reference."""
    whole = make(case, torch.float64)
    uncut = run_steps(whole, steps)
    trainer = make(case, torch.float64)
    sizes = cycle([2, 8, 4] if "pairwise" in case else [1, 8, 2, 4])  # a pair is not cut in two
    chunks, packing, curve = cycle([7, None, 64]), cycle([False, True, True, False, True]), []
    for _ in range(steps):
        recut(trainer, micro_batch_size=next(sizes), packing=next(packing))
        trainer.module.chunk_rows = next(chunks)
        curve += run_steps(trainer, 1)
    assert len({c["loss"] for c in uncut}) == steps
    assert max(gaps(trainer, curve, whole, uncut).values()) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_each_cut_in_float32(case, make):
    whole = make(case, torch.float32)
    uncut = run_steps(whole, STEPS)
    ways = ((4, None, False), (2, None, True), (1, None, False), (8, 5, False), (2, 1, True))
    for size, chunk_rows, packing in ways:
        if "pairwise" in case and size == 1:
            continue  # a pair is not cut in two
        cut = {"training__micro_batch_size": size, "training__loss_chunk_rows": chunk_rows}
        cut["data__packing"] = packing
        trainer = make(case, torch.float32, **cut)
        found = gaps(trainer, run_steps(trainer, STEPS), whole, uncut)
        # A pairwise critic's bias cancels out: its gradient is noise, which AdamW makes visible.
        assert found["weights"] < (1e-3 if "pairwise" in case else 1e-4)
        assert max(found["loss"], found["grad_norm"]) < 1e-4


@pytest.mark.parametrize(
    "case",
    [
        "verifiable whiten batch",
        "verifiable renormalise",
        "verifiable random_matched",
        "rho1 signed",
        "rho1 first head",
    ],
)
def test_within_a_micro_batch_the_cut_does_show(case, make):
    """What is decided within a micro-batch depends on it; else the proof above would prove
    nothing."""
    norms = []
    for size in (8, 2):
        cut = {"training__micro_batch_size": size, "objective__scope": "micro_batch"}
        trainer = make(case, torch.float64, **cut)
        norms.append(run_steps(trainer, 1)[0]["grad_norm"])
    assert abs(norms[0] - norms[1]) > 1e-4


@pytest.mark.parametrize("case", ["verifiable whiten batch", "rho1 signed"])
def test_uncut_both_scopes_are_one(case, make):
    curves = []
    for scope in ("micro_batch", "step"):
        trainer = make(case, torch.float64, objective__scope=scope)
        curves.append([(c["loss"], c["grad_norm"]) for c in run_steps(trainer, 5)])
    assert curves[0] == curves[1]
