"""Which settings may change when a run is resumed, and what is said."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from tests.integration.helpers_training import tiny_recipe

from weighted_mtp.core.config.recipe import Recipe, load_recipe
from weighted_mtp.core.config.section import Section
from weighted_mtp.pipelines.checkpointing.resume_rules import RULES, Refused, Resume
from weighted_mtp.pipelines.checkpointing.resuming import changes
from weighted_mtp.pipelines.training.optimization import learning_rate

ROWS = Path("rows.jsonl")


def keys(section: type[Section] = Recipe, prefix: str = "") -> list[str]:
    """Every key of a recipe; an optional section is one key."""
    found = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and not get_args(kind) and issubclass(kind, Section):
            found += keys(kind, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def test_every_key_has_a_rule_and_every_rule_a_key():
    assert len(keys()) == len(set(keys())) > 100
    assert sorted(keys()) == sorted(RULES)


def changed(saved: Recipe, asked: Recipe, step: int = 4) -> dict[str, str | None]:
    return {change.key: change.verdict for change in changes(Resume(saved, asked, step))}


def one(step: int = 4, recipe: str = "baseline", before=None, **change) -> str | None:
    """The verdict on one change."""
    saved = tiny_recipe(ROWS, recipe, **(before or {}))
    found = changed(saved, tiny_recipe(ROWS, recipe, **{**(before or {}), **change}), step)
    assert len(found) == 1
    return next(iter(found.values()))


def test_nothing_changed():
    assert changed(tiny_recipe(ROWS), tiny_recipe(ROWS)) == {}


SILENT = {
    "training__save_every": 5,
    "training__micro_batch_size": 2,
    "training__loss_chunk_rows": 7,
    "data__packing": True,
    "data__workers": 2,
    "runtime__parallel": "none",
    "training__remote": "s3://box/run",
}


@pytest.mark.parametrize("key", SILENT)
def test_what_nothing_depends_on_is_not_told(key):
    assert one(**{key: SILENT[key]}) is None


REFUSED = {
    "objective__rows": "all",
    "objective__heads": 2,
    "objective__value__head_type": "mlp",
    "objective__td__beta": 0.5,
    "model__architecture__dim": 64,
    "model__architecture__max_seq_len": 999,
    "tokenizer__kind": "micro",
    "training__optimizer": "muon",
    "runtime__seed": 3,
    "data__template": "alpaca",
    "data__joint": True,
    "data__sampling__n_samples": 5,
    "data__sampling": "{strategy: balanced}",
    "training__steps": 3,
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_cannot_be_meant_is_refused(key):
    assert isinstance(one(**{key: REFUSED[key]}), Refused)


TOLD = {
    "training__batch_size": (16, "continues at the next row"),
    "training__betas": ([0.9, 0.999], "in force from step 5 on"),
    "training__clip_norm": (2.0, "in force from step 5 on"),
    "training__monitor": ("value_auc", "best validations so far are forgotten"),
    "data__train": ("elsewhere.jsonl", "its content is compared"),
    "data__validation": ("elsewhere.jsonl", "of other rows from step 5 on"),
    "data__max_length": (48, "cut at 48 tokens from step 5 on"),
    "runtime__compute_dtype": ("bfloat16", "rounded in another way from step 5 on"),
    "objective__value__learning_rate": (0.5, "the value head's peak rate changes from"),
}


@pytest.mark.parametrize("key", TOLD)
def test_what_may_change_is_told(key):
    value, words = TOLD[key]
    verdict = one(**{key: value})
    assert not isinstance(verdict, Refused)
    assert words in verdict


RATES = {
    "training__steps": 200,
    "training__learning_rate": 1.0,
    "training__final_learning_rate": 1e-4,
    "training__schedule": "linear",
    "training__warmup_fraction": 0.9,
}


@pytest.mark.parametrize("key", RATES)
@pytest.mark.parametrize("step", [0, 4])
def test_the_learning_rates_are_those_of_the_next_step(key, step):
    saved, asked = tiny_recipe(ROWS), tiny_recipe(ROWS, **{key: RATES[key]})
    (verdict,) = changed(saved, asked, step).values()
    before, now = (learning_rate(step, recipe.training) for recipe in (saved, asked))
    if before == now:
        assert f"the learning rate of step {step + 1} stays {now:.3g}" in verdict
    else:
        found = re.search(
            rf"the learning rate of step {step + 1} changes from (\S+) to (\S+)", verdict
        )
        assert [float(x) for x in found.groups()] == pytest.approx([before, now], rel=5e-3)


def test_a_finished_run_that_is_made_longer():
    saved, asked = tiny_recipe(ROWS), tiny_recipe(ROWS, training__steps=20)
    last, now = learning_rate(7, saved.training), learning_rate(8, asked.training)
    assert (
        f"the learning rate goes from {last:.3g} (the run's last) to {now:.3g}"
        in changed(saved, asked, 8)["training.steps"]
    )


@pytest.mark.parametrize("steps", [4, 5])
def test_no_fewer_steps_than_are_done(steps):
    assert not isinstance(one(step=steps, training__steps=steps), Refused)
    verdict = one(step=steps + 1, training__steps=steps)
    assert f"{steps + 1} steps are done already" in verdict


def test_what_else_follows_the_steps():
    curriculum = {
        "data__sampling": "{strategy: curriculum}",
        "objective__head_curriculum": "forward",
    }
    verdict = one(before=curriculum, training__steps=20)
    assert "so are the weights of the heads" in verdict
    assert "stages of data.sampling stay where they were planned" in verdict
    verdict = one(recipe="verifiable", before={"objective__td__final_lam": 0.5}, training__steps=20)
    assert "so is λ" in verdict


@pytest.mark.parametrize(
    ("recipe", "before", "matters"),
    [
        ("rho1", {}, True),
        ("rho1", {"objective__scope": "step"}, False),
        ("verifiable", {}, False),
        ("verifiable", {"objective__td__whiten": "batch"}, True),
        ("verifiable", {"objective__td__whiten": "ema"}, False),
        ("verifiable", {"objective__name": "random_matched"}, True),
        ("verifiable", {"objective__name": "shuffled", "objective__td__renormalise": True}, True),
    ],
)
def test_how_steps_are_cut_is_told_where_it_matters(recipe, before, matters):
    for change in ({"training__micro_batch_size": 2}, {"data__packing": True}):
        verdict = one(recipe=recipe, before=before, **change)
        assert (verdict is not None) == matters
        assert not isinstance(verdict, Refused)


def test_windows_of_another_length_are_other_data():
    text = {
        "data__source": "text",
        "data__packing": True,
        "data__train": None,
        "data__validation": None,
    }
    assert isinstance(one(recipe="pretrain", before=text, data__max_length=48), Refused)
    assert isinstance(one(recipe="pretrain", before=text, data__text__separator="--"), Refused)
    assert not isinstance(one(recipe="pretrain", before=text, data__text__path="x"), Refused)


def test_optional_sections_are_told_by_their_keys():
    saved = tiny_recipe(ROWS, training__early_stopping="{patience: 2}")
    assert list(changed(saved, tiny_recipe(ROWS))) == ["training.early_stopping"]
    asked = tiny_recipe(ROWS, training__early_stopping="{patience: 3}")
    assert list(changed(saved, asked)) == ["training.early_stopping.patience"]


def test_any_two_recipes_can_be_compared():
    """Whatever they are: nothing is missing from the rules."""
    recipes = [load_recipe(name, "micro") for name in ("baseline", "critic", "verifiable", "rho1")]
    for saved in recipes:
        for asked in recipes:
            found = changed(saved, asked, 0)
            assert ("pipeline" in found) == (saved is not asked)
            assert json.dumps(found)
