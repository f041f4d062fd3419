"""A step computes targets, temporal differences and alignments once for each batch."""

from collections import Counter

import pytest
import torch
from tests.integration import helpers_training
from tests.integration.helpers_training import SMALL

from weighted_mtp.pipelines.training import module, reference
from weighted_mtp.pipelines.training.objectives import base, distil, rho1, td_weighted

rows_file = helpers_training.rows_file
make_trainer = helpers_training.make_trainer

LM = {"objective__value__trunk": "all", "objective__value__lm_coef": 1.0}
WHOLE = {"objective__scope": "step"}
BATCH = {"objective__td__whiten": "batch"}
ONCE = {"weigh": 1, "td_errors": 1, "advantages": 1, "align": 1}
# What a step of two micro-batches calls, besides targets once for each of them.
CASES = {
    "baseline": ("baseline", {}, {"loss": 2}),
    "uniform": ("baseline", {"objective__name": "uniform"}, {"loss": 2}),
    "dft": ("baseline", {"objective__name": "dft"}, {"loss": 4, "weigh": 2}),
    "surprise": ("baseline", {"objective__name": "surprise"}, {"loss": 4, "weigh": 2}),
    "labels": ("baseline", {"objective__name": "label_weighted"}, {"loss": 2, "weigh": 2}),
    "ntp": ("ntp", {"objective__heads": 1}, {"loss": 2}),
    "heads": ("heads", {}, {"loss": 2}),
    "critic": ("critic", {}, {}),
    "critic that reads": ("critic", LM, {"loss": 2}),
    "pairs": ("critic", {**LM, "objective__value__loss": "pairwise"}, {"loss": 2}),
    **{
        f"{name} {words}": (
            "verifiable",
            {"objective__name": name, **changes},
            {"loss": 2, **{k: n * v for k, v in ONCE.items()}},
        )
        for name in ("verifiable", "random_matched", "shuffled")
        for words, changes, n in (("", {}, 2), ("batch", BATCH, 2), ("step", BATCH | WHOLE, 1))
    },
    "rho1": ("rho1", {}, {"loss": 4, "weigh": 2, "align": 2}),
    "rho1 step": ("rho1", WHOLE, {"loss": 4, "weigh": 1, "align": 1}),
    "rho1 next": (
        "rho1",
        {"objective__rho1__reference_heads": "next"},
        {"loss": 4, "weigh": 2, "align": 2},
    ),
    "rho1 difficult": ("rho1", {"objective__rho1__mode": "difficult"}, {"loss": 4, "weigh": 2}),
    "rho1 online": ("rho1", {}, {"loss": 6, "weigh": 2, "align": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_computes_once(case, make_trainer, monkeypatch):
    recipe, changes, expected = CASES[case]
    trainer = make_trainer(recipe, **SMALL, **changes)
    if case == "rho1 online":  # the policy as its own reference: it has the same targets
        model = trainer.module.adapter.transformer
        trainer.annotate = lambda batch: batch._replace(
            reference=reference.token_losses(model, batch, torch.float32)
        )
    calls: Counter[str] = Counter()

    def count(owner: object, name: str, label: str) -> None:
        function = getattr(owner, name)

        def counted(*args, **kwargs):
            calls[label] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(base, "shift_labels", "targets")
    count(td_weighted, "compute_td_errors", "td_errors")
    count(td_weighted, "advantages_of", "advantages")
    count(td_weighted, "align_reference", "align")
    count(rho1, "align_reference", "align")
    count(module, "loss_of_terms", "loss")
    count(base, "loss_of_terms", "loss")
    count(distil, "distillation_loss", "loss")
    count(trainer.objective, "weigh", "weigh")
    trainer.train_step()
    assert calls == {"targets": 2, **expected}
