"""`weighted-mtp plan`: estimate a recipe's memory and communication on each GPU, and what fits."""

from __future__ import annotations

import argparse
import json
import math

from weighted_mtp.cli.arguments.plan import ASSUMED, SIZES
from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.planning.communication import Hardware
from weighted_mtp.pipelines.planning.plan import PlanRequest, plan
from weighted_mtp.pipelines.planning.text import plan_lines, plan_record


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
