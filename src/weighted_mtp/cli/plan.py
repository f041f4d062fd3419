"""`weighted-mtp plan`: estimate a recipe's memory on each GPU, and which settings fit."""

from __future__ import annotations

import argparse
import json
import math

from weighted_mtp.cli.recipe_options import add_recipe_options
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import given_name
from weighted_mtp.pipelines.planning.plan import PlanRequest, model_names, plan
from weighted_mtp.pipelines.planning.text import plan_lines, plan_record

SIZES = "24,40,80"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `plan`."""
    add_recipe_options(parser, required=True)
    parser.add_argument(
        "--model",
        type=given_name,
        metavar="NAME|DIR",
        help=f"a shape ({', '.join(model_names())}), or a checkpoint (default: that of the recipe)",
    )
    parser.add_argument(
        "--gpus", type=int, default=1, help="number of GPUs over all nodes (default 1)"
    )
    parser.add_argument(
        "--gpus-per-node", type=int, default=8, help="size of a node, for hsdp (default 8)"
    )
    parser.add_argument(
        "--memory",
        default=SIZES,
        metavar="GIB,…",
        help=f"GPU memory sizes to plan for, in GiB (default {SIZES})",
    )
    parser.add_argument(
        "--reference-model",
        type=given_name,
        metavar="NAME|DIR",
        help="rho1: the model that scores batches online",
    )
    parser.add_argument(
        "--json", action="store_true", help="print all choices as JSON, for programs"
    )


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
    if args.json:
        print(json.dumps(plan_record(found, sizes), indent=1))
    else:
        print("\n".join(plan_lines(found, sizes)))
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
        raise UserError(f"--memory {given!r}: give GiB above 0, separated by commas, e.g. {SIZES}")
    return sorted(set(sizes))
