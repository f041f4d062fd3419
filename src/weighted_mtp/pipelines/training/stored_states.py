"""Heads trained on stored states: the trunk reads every row once, and not again each epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.model_folder import find_model
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.examples import Example
from weighted_mtp.data.loading import Examples
from weighted_mtp.data.trunk_states import COMMAND, Origin, TrunkStates
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.pipelines.training.reference import model_digest


class WithStates:
    """Rows with the states stored for them."""

    def __init__(self, examples: Examples, states: TrunkStates) -> None:
        self.examples, self.states = examples, states

    def __getitem__(self, row: int) -> Example:
        example, states = self.examples[row], self.states[row]
        if len(states) != example.positions:
            raise UserError(
                f"{self.states.folder}: row {row} has another length; make the states again with: "
                f"{COMMAND}"
            )
        return example._replace(states=states)


def with_states(
    folder: Path, collator: AlpacaCollator, examples: Examples, data: str
) -> WithStates:
    """Give every row its stored states.

    Args:
        data: SHA-256 of the data file.

    Raises:
        UserError: they are missing, damaged, incomplete, or of other rows.
    """
    states = TrunkStates(folder)
    found = replace(
        states.manifest.origin,
        data=data,
        tokenizer=collator.tokenizer.fingerprint,
        template=collator.template_name,
        max_length=collator.max_length,
        joint=collator.joint,
    )
    _compare(states, found)
    return WithStates(examples, states)


def check_model(recipe: Recipe, args: ModelArgs, checkpoint: Path | None = None) -> None:
    """Check that stored states are whole, and of the model that is trained. A run that is resumed
    has compared its model when it began, and the states are compared with those of that time.

    Raises:
        UserError: they are not.
    """
    folder = recipe.data.states
    if folder is None:
        return
    states = check_header(recipe, args)
    from weighted_mtp.pipelines.checkpoint_utils import saved_state  # not for `check_header`

    known = {} if checkpoint is None else saved_state(checkpoint).get("sources") or {}
    if "states" not in known and recipe.model.path is not None:
        model = model_digest(find_model(recipe.model.path))
        _compare(states, replace(states.manifest.origin, model=model))
    states.verify()


def check_header(recipe: Recipe, args: ModelArgs) -> TrunkStates:
    """Open stored states and compare what takes no time.

    Raises:
        UserError: they are missing, or of a model of another shape, or rows cut in another way.
    """
    assert recipe.data.states is not None
    states = TrunkStates(recipe.data.states)
    origin, template = states.manifest.origin, str(recipe.data.template)
    if origin.template.split()[0] == template:
        template = origin.template  # a chat template's has a digest, which `with_states` compares
    found = replace(
        origin,
        width=args.dim,
        vocab_size=args.vocab_size,
        rope_theta=args.rope_theta,
        template=template,
        max_length=recipe.data.max_length,
        joint=recipe.data.joint,
    )
    _compare(states, found)
    return states


def _compare(states: TrunkStates, found: Origin) -> None:
    """Raise `UserError` where states are not of what a training has found."""
    other = states.manifest.origin.difference(found)
    if other is not None:
        raise UserError(
            f"{states.folder}: these states were made with {other}; make others with: {COMMAND}"
        )
