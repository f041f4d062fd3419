"""Options of `weighted-mtp plan`."""

from __future__ import annotations

import argparse

from weighted_mtp.cli.arguments.recipe import add_recipe_options
from weighted_mtp.core.choices import PLANNED_SHAPES
from weighted_mtp.core.files import given_name

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
        help=f"a shape ({', '.join(PLANNED_SHAPES)}), or a checkpoint (default: that of the "
        "recipe)",
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
