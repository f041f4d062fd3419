"""`weighted-mtp plan`: what a recipe takes of each GPU, and which settings fit."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

from weighted_mtp.core.config import RECIPES, available
from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.planner import SHARE, Plan, PlanRequest, model_names, plan

SIZES = "24,40,80"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `plan`."""
    recipes, presets = ", ".join(available()), ", ".join(available(RECIPES / "presets"))
    parser.add_argument("--recipe", required=True, help=f"a shipped recipe ({recipes}) or a file")
    parser.add_argument("--preset", help=f"another scale ({presets}) or a .yaml file")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one setting; may be given many times",
    )
    parser.add_argument(
        "--model",
        metavar="NAME|DIR",
        help=f"a shape ({', '.join(model_names())}), or a checkpoint; default: the recipe's own",
    )
    parser.add_argument("--gpus", type=int, default=1, help="how many, over all nodes (default 1)")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="for hsdp (default 8)")
    parser.add_argument(
        "--memory", default=SIZES, metavar="GB,…", help=f"sizes of GPU to plan for ({SIZES})"
    )
    parser.add_argument(
        "--reference-model", metavar="NAME|DIR", help="rho1: the model that scores on line"
    )
    parser.add_argument("--json", action="store_true", help="every choice, for a program")


def run(args: argparse.Namespace) -> int:
    """Print the plan; 0, whether anything fits or not."""
    sizes = read_sizes(args.memory)
    found = plan(
        PlanRequest(
            recipe=args.recipe,
            preset=args.preset,
            overrides=args.overrides,
            model=args.model,
            gpus=args.gpus,
            gpus_per_node=args.gpus_per_node,
            reference=args.reference_model,
        )
    )
    print(
        json.dumps(as_json(found, sizes), indent=1) if args.json else "\n".join(text(found, sizes))
    )
    return 0


def read_sizes(given: str) -> list[float]:
    """`24,40,80` → numbers.

    Raises:
        UserError: something else.
    """
    try:
        sizes = [float(part) for part in given.split(",")]
    except ValueError:
        sizes = [math.nan]
    if not all(0 < size < math.inf for size in sizes):
        raise UserError(f"--memory {given!r}: give GB above 0, separated by commas, e.g. {SIZES}")
    return sorted(set(sizes))


def text(found: Plan, sizes: Sequence[float]) -> list[str]:
    """What the recipe's own micro-batch takes, the largest that fits, and what to set."""
    recipe, counts = found.recipe, found.counts
    heads = counts.args.n_future_tokens
    lines = [
        f"{counts.parameters / 1e9:.2f} billion parameters ({counts.trained / 1e9:.2f} trained), "
        f"n = {heads}, {recipe.objective.name}, {recipe.runtime.compute_dtype}",
        f"{found.gpus} GPU{'s' * (found.gpus > 1)}; a step of {recipe.training.batch_size} rows of "
        f"at most {recipe.data.max_length} tokens",
        "",
        f"GiB on each GPU, micro-batches of {found.own}:",
        *_parts_table(found),
        "",
        "Largest micro-batch that fits (· without, c with activation checkpointing):",
        *_fit_table(found, sizes),
        "",
        *(_advice(found, size) for size in sizes),
    ]
    if any(choice.lean for choice in found.choices):
        changes = next(choice.changes for choice in found.choices if choice.lean)
        lean = " ".join(f"--set {change}" for change in changes if ".fsdp." in change)
        lines += ["", f"lean: {lean}"]
    lines.append(
        f"An estimate fits if it is at most {SHARE:.0%} of the memory: the rest is for CUDA, NCCL "
        "and fragments."
    )
    return lines


def _parts_table(found: Plan) -> list[str]:
    own = [choice for choice in found.choices if choice.micro_batch_size == found.own]
    shown = [
        name
        for name in own[0].memory.parts
        if name != "reference" or any(choice.memory.reference for choice in own)
    ]
    rows = [["", "checkpointing", *shown, "total", "fullest in"]]
    for choice in own:
        sizes = [*(choice.memory.parts[name] for name in shown), choice.memory.total]
        numbers = [_gib(size) for size in sizes]
        yes = "yes" if choice.checkpointing else "no"
        rows.append([choice.way, yes, *numbers, choice.memory.moment])
    return _aligned(rows, words=len(rows[0]) - 1)


def _fit_table(found: Plan, sizes: Sequence[float]) -> list[str]:
    rows = [["", *(f"{size:g} GB {mark}" for size in sizes for mark in "·c")]]
    for way in dict.fromkeys(choice.way for choice in found.choices):
        cells = []
        for size in sizes:
            for checkpointing in (False, True):
                fitting = [
                    choice.micro_batch_size
                    for choice in found.choices
                    if (choice.way, choice.checkpointing) == (way, checkpointing)
                    and choice.fits(size)
                ]
                cells.append(str(max(fitting)) if fitting else "–")
        rows.append([way, *cells])
    return _aligned(rows)


def _advice(found: Plan, size: float) -> str:
    best = found.best(size)
    if best is not None:
        changes = " ".join(f"--set {change}" for change in best.changes)
        return f"{size:g} GB: {_gib(best.memory.total)} GiB with {changes}"
    least = found.smallest()
    return (
        f"{size:g} GB: nothing fits; the least is {_gib(least.memory.total)} GiB ({least.way}, "
        f"checkpointing, micro-batches of {least.micro_batch_size}): more GPUs, shorter rows, or "
        "runtime.fsdp.cpu_offload"
    )


def _gib(size: int) -> str:
    """One decimal, or two significant ones."""
    gib = size / 2**30
    return f"{gib:.1f}" if gib >= 1 or not size else f"{gib:.2g}"


def _aligned(rows: Sequence[Sequence[str]], words: int = 0) -> list[str]:
    """Columns as wide as they need: the first one, and number `words`, to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index in (0, words) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def as_json(found: Plan, sizes: Sequence[float]) -> dict[str, Any]:
    """Everything, in bytes."""
    choices = [
        {
            "parallel": choice.mode,
            "lean": choice.lean,
            "activation_checkpointing": choice.checkpointing,
            "micro_batch_size": choice.micro_batch_size,
            "set": list(choice.changes),
            "total": choice.memory.total,
            "moment": choice.memory.moment,
            **choice.memory.parts,
            "fits": [size for size in sizes if choice.fits(size)],
        }
        for choice in found.choices
    ]
    best = {f"{size:g}": found.best(size) for size in sizes}
    return {
        "parameters": found.counts.parameters,
        "trained": found.counts.trained,
        "gpus": found.gpus,
        "share": SHARE,
        "choices": choices,
        "best": {
            size: None if choice is None else list(choice.changes) for size, choice in best.items()
        },
    }
