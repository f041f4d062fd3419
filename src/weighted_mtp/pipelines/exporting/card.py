"""The facts of an export's model card: figures and settings are the run's own records.

Paths are reduced to names and addresses left out, since a card is published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weighted_mtp.core.config.options import recipe_options, shipped_settings
from weighted_mtp.core.config.recipe import Recipe, load_recipe_file
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.model_folder import HUB_ID, MARKER, is_hub_id, newest_checkpoint
from weighted_mtp.core.run_records import last, read_stages
from weighted_mtp.models.meta_mtp.layouts.eagle3 import Speculator
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.checkpoint_utils import saved_state
from weighted_mtp.pipelines.exporting.card_text import Card, RunFacts

log = get_logger(__name__)

_PRIVATE = ("training.remote", "training.trackers", "data.cache_dir")
"""Settings that say where things are, and nothing of the model."""
_LOCAL = ("runs", "models", "checkpoints", "data", "results", "out", "output", "tmp")
"""First parts of relative paths that look like ORG/NAME."""


def make_card(
    model: Transformer, source: Path, name: str, layout: str, speculator: Speculator | None
) -> Card:
    """Gather the facts of a model that is exported.

    Args:
        source: what the user named: a run, a checkpoint, a model directory, or ORG/NAME.
    """
    head = sum(weight.numel() for weight in model.layers[-1].parameters())
    n = model.args.n_future_tokens
    every = sum(weight.numel() for weight in model.parameters())
    run, base = _of_a_run(source)
    if run is None and is_hub_id(source):
        base = _hub_name(str(source))
    return Card(
        name,
        layout,
        model.args,
        (every - (n - 1) * head, head),
        base_model=base,
        speculator=speculator,
        run=run,
    )


def check_license(text: str | None) -> None:
    """Raise `UserError` unless the hub could take this for an identifier of a licence."""
    if text is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", text):
        raise UserError(
            f"--license {text}: is not an identifier such as mit, apache-2.0, llama3.2 or other"
        )


def _of_a_run(source: Path) -> tuple[RunFacts | None, str | None]:
    """What the run of this checkpoint recorded, and the hub name of the model it began from."""
    place = newest_checkpoint(source)
    if (place.resolve().parent / MARKER).exists():
        place = place.resolve().parent
    if not (place / MARKER).exists():
        return None, None
    run_dir = place.resolve().parents[1]  # RUN/checkpoints/step-…
    config = run_dir / "config.yaml"
    if not config.is_file():
        return None, None
    try:
        recipe = load_recipe_file(config)
        state = saved_state(place)
    except UserError as error:  # the weights can be exported without
        log.warning("%s; the model card says nothing of the run", error)
        return None, None
    step = int(state["step"])
    figures, version = _figures(run_dir, step)
    path = recipe.model.path
    base = _hub_name(str(path)) if path is not None and is_hub_id(path) else None
    sources = {str(key): str(value) for key, value in state.get("sources", {}).items()}
    return (
        RunFacts(recipe.pipeline, step, _settings(recipe), figures, sources, version),
        base,
    )


def _figures(run_dir: Path, step: int) -> tuple[dict[str, Any], str]:
    """The last validation up to a step, and the version that trained."""
    try:
        records = [r for r in read_stages(run_dir)["main"] if r["step"] <= step]
    except UserError:
        return {}, ""
    return last(records, "validation"), str(last(records, "run").get("version", ""))


def _hub_name(given: str) -> str | None:
    match = HUB_ID.fullmatch(given)
    if match is None or match["name"].split("/")[0] in _LOCAL:
        return None
    return match["name"]


def _settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that differ from the recipe's own and the defaults, fit to be published."""
    defaults = {option.key: option.default for option in recipe_options()}
    shipped = {
        key: by_name[recipe.pipeline]
        for key, by_name in shipped_settings().items()
        if recipe.pipeline in by_name
    }
    usual = {**defaults, **shipped}
    return {
        key: _public(value)
        for key, value in _flat(recipe.model_dump(mode="json")).items()
        if not key.startswith(_PRIVATE) and usual.get(key) != value
    }


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _public(value: Any) -> Any:
    """A setting without what it tells of the machine: of a path its name, of an address nothing."""
    if isinstance(value, list):
        return [_public(each) for each in value]
    if not isinstance(value, str):
        return value
    if "://" in value:
        return "(address left out)"
    if re.search(r"[/\\~]", value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value
