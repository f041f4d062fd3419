"""Compare a resumed run with the run as it was saved: its recipe, and the content of its inputs.

`resume_rules` says which settings may change. What a recipe only points at (rows, tokenizer,
reference) is compared by content: a checkpoint keeps fingerprints of it (`sources`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from weighted_mtp.core.config.recipe import Recipe, load_recipe_file
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.run_records import differences
from weighted_mtp.pipelines.checkpoint_utils import checkpoint_step, reading, saved_state
from weighted_mtp.pipelines.checkpointing.resume_rules import RULES, Refused, Resume
from weighted_mtp.pipelines.training.policies import BestCheckpoints
from weighted_mtp.runtime.main_process import on_main

log = get_logger(__name__)


class Change(NamedTuple):
    """A setting that differs from the saved one."""

    key: str
    old: Any
    new: Any
    verdict: str | None

    def __str__(self) -> str:
        return f"{self.key} {self.old} → {self.new}"


def changes(resume: Resume) -> list[Change]:
    """List every setting that differs from the saved one."""
    found = []
    saved, asked = (recipe.model_dump(mode="json") for recipe in (resume.saved, resume.asked))
    for key, old, new in differences(saved, asked):
        parts = key.split(".")
        ways = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        rule = next(RULES[way] for way in ways if way in RULES)
        found.append(Change(key, old, new, rule(resume)))
    return found


def refused_changes(resume: Resume) -> list[Change]:
    """List the changes that are not allowed."""
    return [change for change in changes(resume) if isinstance(change.verdict, Refused)]


def is_same_run(one: Recipe, other: Recipe) -> bool:
    """Whether a run of one recipe can continue with the other."""
    return not refused_changes(Resume(one, other, 0))


def refuse_changes(run_dir: Path, resume: Resume) -> None:
    """Raise `UserError` for changes that are not allowed, naming all of them."""
    found = refused_changes(resume)
    if found:
        listed = "; ".join(f"{change} ({change.verdict})" for change in found)
        raise UserError(f"{run_dir}: cannot be resumed with {listed}; {_remedy(run_dir)}")


def tell_changes(
    run_dir: Path, asked: Recipe, checkpoint: Path | None, saved: Recipe | None = None
) -> None:
    """If there is a run in `run_dir`, log what changes when `asked` resumes it, one line a key.
    Every process calls this.

    Args:
        saved: the run's recipe; None reads it.

    Raises:
        UserError: a change that is not allowed.
    """

    def act() -> None:
        if not (run_dir / "config.yaml").exists():
            return
        step = 0 if checkpoint is None else checkpoint_step(checkpoint)
        resume = Resume(saved or load_recipe_file(run_dir / "config.yaml"), asked, step)
        refuse_changes(run_dir, resume)
        for change in changes(resume):
            if change.verdict is not None:
                log.warning("%s: %s: %s", run_dir, change, change.verdict)
        best = BestCheckpoints(asked.training)
        if checkpoint is not None and "best" in (state := saved_state(checkpoint)):
            with reading(checkpoint / "trainer.json"):
                best.load_state_dict(state["best"])
        if best.exhausted and resume.step < asked.training.steps:
            log.warning(
                "%s: training.early_stopping ended it after step %d, so nothing is left to train: "
                "raise training.early_stopping.patience, or set training.early_stopping=null",
                run_dir,
                resume.step,
            )

    on_main(act)


def _remedy(run_dir: Path) -> str:
    return (
        "keep what the run began with, or start another run from its weights: --output-dir OTHER "
        f"--set model.path={run_dir}"
    )


SOURCES = {
    "train": "the training data",
    "tokenizer": "the tokenizer",
    "reference": "the reference model",
    "states": "the stored states",
}
"""Inputs that must not change, by their names in `sources`."""


def check_sources(run_dir: Path, checkpoint: Path | None, sources: Mapping[str, str]) -> None:
    """Compare what was read with what the run had read when it was saved.

    Args:
        sources: fingerprints by name: `train`, `validation`, `tokenizer`, `reference`, `states`.

    Raises:
        UserError: an input that the run depends on has other content.
    """
    if checkpoint is None:
        return
    saved = saved_state(checkpoint).get("sources")
    if not saved:
        log.warning(
            "%s was saved by an earlier version, which kept no fingerprint of the data: whether "
            "the data has changed since is not known",
            checkpoint,
        )
        return
    changed = {name for name in sources.keys() & saved.keys() if sources[name] != saved[name]}
    fixed = [words for name, words in SOURCES.items() if name in changed]
    if fixed:
        raise UserError(
            f"{run_dir}: {' and '.join(fixed)} changed since {checkpoint.name} was saved (other "
            f"content, whatever the settings say); restore what it was; {_remedy(run_dir)}"
        )
    if "validation" in changed:
        log.warning(
            "%s: the validation data has other content than when %s was saved: figures of "
            "validations cannot be compared with those before",
            run_dir,
            checkpoint.name,
        )
