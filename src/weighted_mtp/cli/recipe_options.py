"""Options that name a recipe and change it."""

from __future__ import annotations

import argparse

from weighted_mtp.core.config.recipe import RECIPES, available
from weighted_mtp.core.files import given_name


def add_recipe_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """`--recipe`, `--preset`, `--set`."""
    recipes, presets = ", ".join(available()), ", ".join(available(RECIPES / "presets"))
    parser.add_argument(
        "--recipe",
        type=given_name,
        required=required,
        help=f"a shipped recipe ({recipes}) or a .yaml file",
    )
    parser.add_argument(
        "--preset", type=given_name, help=f"another scale ({presets}) or a .yaml file"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one setting; may be given many times",
    )
