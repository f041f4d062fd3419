"""Objectives by name. There are three ways to add one without editing this project:

- `@register_objective("name")` on a class, in a module that the program imports;
- an installed package with the entry point `name = "module:Class"` in `weighted_mtp.objectives`;
- a recipe with `objective.name: FILE.py:CLASS` or `MODULE:CLASS`.

The last two import code. Only training does (its dry run and plan included): reading a recipe or a
run's config.yaml, evaluating, inspecting and reporting never look a name up, so that opening
somebody else's checkpoint runs nothing of theirs.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.config.section import Section
from weighted_mtp.core.errors import UserError, in_brief
from weighted_mtp.core.logging import get_logger
from weighted_mtp.pipelines.training.objectives.base import Objective
from weighted_mtp.runtime import distributed

log = get_logger(__name__)

GROUP = "weighted_mtp.objectives"
"""Entry points of installed packages."""

Kind = TypeVar("Kind", bound=type[Objective])

_registered: dict[str, type[Objective]] = {}


def register_objective(name: str) -> Callable[[Kind], Kind]:
    """Return a class decorator that makes an objective known as `objective.name: NAME`.

    Raises:
        ValueError: another class has the name.
    """

    def register(kind: Kind) -> Kind:
        other = _registered.get(name, kind)
        same = (other.__module__, other.__qualname__) == (kind.__module__, kind.__qualname__)
        if not same or ":" in name:  # the same class again: its module was imported again
            raise ValueError(f"the objective name {name!r} is taken by {other}, or has a colon")
        _registered[name] = kind
        return kind

    return register


def find_objective(name: str) -> type[Objective]:
    """Return the class with a name, importing it where it is not this project's.

    Raises:
        UserError: there is none, it cannot be imported, or it is not an objective.
    """
    if name in _registered:  # before entry points: no installed package can replace these
        return _registered[name]
    if ":" in name:
        return _imported(name, functools.partial(_load, *name.rpartition(":")[::2]))
    found = {entry.value: entry for entry in entry_points(group=GROUP, name=name)}
    if len(found) > 1:
        raise UserError(
            f"objective.name {name}: several installed packages define it; name the class: "
            + " or ".join(f"objective.name={value}" for value in sorted(found))
        )
    for entry in found.values():
        return _imported(name, entry.load)
    known = sorted({*_registered, *(entry.name for entry in entry_points(group=GROUP))})
    near = difflib.get_close_matches(name, known, n=1)
    raise UserError(
        f"objective.name {name}: no such objective"
        + (f" (did you mean {near[0]}?)" if near else "")
        + f"; there are {', '.join(known)}; code of your own is FILE.py:CLASS or MODULE:CLASS"
    )


def resolve_objective(recipe: Recipe) -> Recipe:
    """Check the objective of a recipe, and give its options their defaults, so that the run keeps
    what it trained with.

    Raises:
        UserError: no such objective, one of another pipeline, or bad options.
    """
    objective, pipeline = recipe.objective, recipe.pipeline
    kind = find_objective(objective.name)
    if pipeline not in kind.pipelines:
        takes = ", ".join(name for name, x in _registered.items() if pipeline in x.pipelines)
        raise UserError(
            f"objective.name {objective.name} does not run in the {pipeline} pipeline, which takes "
            f"{takes}; it runs with pipeline: {' or '.join(kind.pipelines)}"
        )
    if kind.needs_mutations:
        _check_mutations(recipe)
    options = kind.parse_options(objective).model_dump(mode="json")
    return recipe.model_copy(
        update={"objective": objective.model_copy(update={"options": options})}
    )


def _check_mutations(recipe: Recipe) -> None:
    """Raise `UserError` for data of which nobody knows the mutated tokens."""
    name, data = recipe.objective.name, recipe.data
    if data.source != "micro":
        raise UserError(
            f"objective.name {name} has to know which tokens of a wrong program are the mistake, "
            f"which only micro tasks tell; data.source is {data.source}, set data.source=micro"
        )
    if not data.micro.incorrect_per_problem:
        raise UserError(
            f"objective.name {name} masks the mistakes of wrong programs, and there are none: set "
            "data.micro.incorrect_per_problem=3"
        )


def _imported(name: str, load: Callable[[], object]) -> type[Objective]:
    try:
        kind = load()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        ours = (__file__, str(Path(importlib.__file__).parent), "<frozen")
        frames = traceback.extract_tb(error.__traceback__)
        places = [frame for frame in frames if not frame.filename.startswith(ours)]
        place = f"{places[-1].filename}, line {places[-1].lineno}: " if places else ""
        reason = in_brief(error) if isinstance(error, Exception) else "it exits when imported"
        raise UserError(f"objective.name {name} cannot be imported: {place}{reason}") from error
    if not (isinstance(kind, type) and issubclass(kind, Objective)):
        raise UserError(
            f"objective.name {name} is not a subclass of "
            "weighted_mtp.pipelines.training.objectives.Objective"
        )
    if not issubclass(kind.Options, Section):  # another model would ignore unknown keys
        raise UserError(
            f"objective.name {name}: its Options are not a subclass of "
            "weighted_mtp.core.config.section.Section"
        )
    return kind


@functools.cache  # a file is executed once: every use must see the same class
def _load(source: str, attribute: str) -> object:
    """Import a class from `FILE.py` or a module."""
    path = Path(source)
    if path.suffix != ".py":
        module = importlib.import_module(source)
    else:
        spec = importlib.util.spec_from_file_location(f"objective_file_{path.stem}", path)
        if spec is None or spec.loader is None or not path.is_file():
            raise UserError(f"objective.name {source}:{attribute}: no file {path.absolute()}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # pydantic looks up the annotations of Options there
        spec.loader.exec_module(module)
    if distributed.is_main_process():
        log.info("imported the objective %s from %s", attribute, module.__file__)
    return getattr(module, attribute)
