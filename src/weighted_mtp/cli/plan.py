"""`weighted-mtp plan`: estimate a recipe's memory and communication on each GPU, and what fits."""

from __future__ import annotations

import argparse
import json
import math

from weighted_mtp.cli.recipe_options import add_recipe_options
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import given_name
from weighted_mtp.pipelines.planning.communication import Hardware
from weighted_mtp.pipelines.planning.plan import PlanRequest, plan
from weighted_mtp.pipelines.planning.shapes import model_names
from weighted_mtp.pipelines.planning.text import plan_lines, plan_record

SIZES = "24,40,80"

ASSUMED = {
    "--tflops": (1e12, 989.0, "dense bfloat16 peak of a GPU, in TFLOP/s"),
    "--utilisation": (1.0, 0.4, "share of it that model FLOPs reach when nothing waits"),
    "--nvlink": (1e9, 450.0, "of one GPU, each way, in GB/s"),
    "--network": (1e9, 50.0, "of one GPU out of its node, each way, in GB/s; 50 is 400 Gb/s"),
}
"""Flag → its unit, its default, its help."""


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
    assumed = parser.add_argument_group("assumptions about the hardware (default: H100 SXM)")
    for flag, (_, value, text) in ASSUMED.items():
        assumed.add_argument(flag, type=float, default=value, help=f"{text} (default {value:g})")
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
            hardware=read_hardware(args),
        )
    )
    if args.json:
        print(json.dumps(plan_record(found, sizes), indent=1))
    else:
        print("\n".join(plan_lines(found, sizes)))
    return 0


def read_hardware(args: argparse.Namespace) -> Hardware:
    """The flags of `ASSUMED`.

    Raises:
        UserError: one is not above 0.
    """
    read = {}
    for flag, (unit, default, _) in ASSUMED.items():
        name = flag.removeprefix("--")
        value = getattr(args, name)
        if not 0 < value < math.inf:
            raise UserError(f"{flag} {value:g}: give a number above 0, e.g. {default:g}")
        read["flops" if name == "tflops" else name] = unit * value
    return Hardware(**read)


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
