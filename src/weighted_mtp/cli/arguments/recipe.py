"""Command-line options that name a recipe and change it."""

from __future__ import annotations

import argparse

from weighted_mtp.core.config.shipped import RECIPES, available
from weighted_mtp.core.files import given_name


def add_recipe_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Add `--recipe`, `--preset` and `--set`."""
    recipes, presets = ", ".join(available()), ", ".join(available(RECIPES / "presets"))
    parser.add_argument(
        "--recipe",
        type=given_name,
        required=required,
        help=f"a shipped recipe ({recipes}) or a .yaml file",
    )
    parser.add_argument(
        "--preset",
        type=given_name,
        help=f"settings of another scale, on top of the recipe: {presets}, or a .yaml file",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one option of the recipe, such as training.steps=200; repeatable "
        "(weighted-mtp options lists them all)",
    )
