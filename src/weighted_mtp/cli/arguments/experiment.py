"""Options of `weighted-mtp experiment`."""

from __future__ import annotations

import argparse
from pathlib import Path

from weighted_mtp.core.files import given_path
from weighted_mtp.pipelines.experiments.arms import DESIGNS
from weighted_mtp.pipelines.experiments.request import REGIMES, ExperimentRequest
from weighted_mtp.pipelines.experiments.study import STUDY_SIZES, StudyRequest

BASE_ROWS = ("regime", "broad")
DEFAULT = ExperimentRequest(Path())
NOT_FOR_STUDIES = (
    *("regime", "flipped", "base_rows", "preset", "choice_seeds", "base_steps", "n_validation"),
    *("n_problems", "base_limit"),
)
"""Options that only the experiments from a common start have; None where they were not given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `experiment`."""
    parser.add_argument(
        *("name",),
        choices=[*DESIGNS, *STUDY_SIZES],
        help="wmtp: all token weightings and their controls; critic: what a critic adds to the "
        "labels of the rows; within: the same, where labels decide between rows and the critic "
        "within them; rho1: selection of tokens by a reference; from scratch, on small tasks of "
        "papers: star-graph: paths with one choice, by next token, several tokens, or their order; "
        "polynomials: arithmetic with 1, 2 and 4 heads; induction: names of two tokens in "
        "stories, over sizes of the model",
    )
    parser.add_argument(
        "--regime",
        choices=list(REGIMES),
        help="what there is to learn from (default scarce, or noisy-tokens for rho1): "
        + "; ".join(f"{name}: {regime.about}" for name, regime in REGIMES.items()).replace(
            "%", "%%"
        ),
    )
    parser.add_argument(
        "--flipped", type=float, metavar="SHARE", help="share of training labels that are flipped"
    )
    parser.add_argument(
        "--base-rows",
        choices=BASE_ROWS,
        help="what the common start and its critic learn from: the regime's own rows, or a broad "
        "set of other right and wrong programs (default: broad for scarce, else regime)",
    )
    parser.add_argument("--preset", help="scale (default micro)")
    parser.add_argument("--arms", default="", help="comma-separated (default: all)")
    _counts(parser)
    parser.add_argument(
        "--base-limit",
        type=float,
        metavar="NATS",
        help="leave a seed out if its base has a higher validation loss (default 0.5, rho1: 0.7)",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one option of every recipe; repeatable (weighted-mtp options lists them)",
    )
    parser.add_argument(
        "--output-dir",
        type=given_path,
        help="directory of plan and results (default runs/experiment-NAME-REGIME, or "
        "runs/experiment-NAME)",
    )
    parser.add_argument(
        "--results",
        type=given_path,
        default=Path("docs/RESULTS.md"),
        help="Markdown file that receives text and tables (default docs/RESULTS.md)",
    )


def _counts(parser: argparse.ArgumentParser) -> None:
    for name, words in (
        ("seeds", "runs of each arm, each with its own data"),
        ("choice_seeds", "further runs, which λ and β are chosen with"),
        ("steps", "steps of every arm"),
        ("base_steps", "steps of the common start"),
        ("n_test", "test problems"),
        ("n_validation", "validation problems"),
        ("n_problems", "test problems to write programs for; 0: none"),
        ("jobs", "seeds in parallel, one thread each"),
    ):
        default = f"default {getattr(DEFAULT, name)}"
        if name == "seeds":
            default += f"; {' and '.join(STUDY_SIZES)}: {StudyRequest.seeds}"
        elif name in ("steps", "n_test"):
            default += "".join(f"; {x}: {getattr(size, name)}" for x, size in STUDY_SIZES.items())
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            default=DEFAULT.jobs if name == "jobs" else None,
            help=f"{words} ({default})",
        )
