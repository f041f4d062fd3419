"""Options of every command that lets a model write."""

from __future__ import annotations

import argparse
from typing import Literal

AUTO: Literal["auto"] = "auto"
ALL, OFF = "all", "off"
DTYPE_HELP = (
    "float32, bfloat16 or float16 (default: as stored); int8 or int4 quantise the weights in "
    "memory, for decoding on a CPU"
)
STORED, NONE = "stored", "none"


def add_decoding_arguments(
    parser: argparse.ArgumentParser,
    new_tokens: int | None,
    new_tokens_help: str = "",
    lossy: bool = True,
) -> None:
    """Add the options to a command.

    Args:
        new_tokens: default of the command.
        new_tokens_help: how its help names the default.
        lossy: offer `--lossy-typical`.
    """
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=new_tokens,
        metavar="N",
        help=f"most tokens to generate per text ({new_tokens_help or f'default {new_tokens}'})",
    )
    group.add_argument(
        "--temperature", type=float, default=0.0, help="sampling temperature; 0 (default) is greedy"
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the smallest set of tokens of total probability P",
    )
    group.add_argument(
        "--top-k", type=int, metavar="K", help="sample from the K most likely tokens"
    )
    group.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="drop tokens less likely than P times the most likely one",
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="penalty on tokens already used (default 1: none)",
    )
    group.add_argument("--seed", type=int, default=0, help="seed of the sampling (default 0)")
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end the text before this string; \\n is a newline, \\t a tab, \\\\ a backslash; "
        "repeatable",
    )
    add_speculation_arguments(group)
    group.add_argument(
        "--tree",
        metavar="N",
        help="draft a tree of up to N tokens for each forward pass instead of a chain, one text at "
        "a time (default auto, unless --speculate is given: for a greedy text that is decoded by "
        "itself as many as pay, for others a chain; none: always a chain)",
    )
    if lossy:
        group.add_argument(
            "--lossy-typical",
            action="store_true",
            help="LOSSY: accept drafts that are likely enough (Medusa's typical acceptance); "
            "faster, but changes the distribution of the texts",
        )
    parser.set_defaults(lossy_typical=False)
    group.add_argument(
        "--ties",
        default="auto",
        metavar="RULE",
        help="greedy near-ties: exact (recompute, so that the text depends on the model alone), "
        "fast, or auto (default: exact in float32, fast in bfloat16)",
    )


def add_speculation_arguments(group: argparse._ActionsContainer) -> None:
    """Add the options that choose how many tokens are drafted."""
    group.add_argument(
        "--speculate",
        nargs="?",
        const=ALL,
        default=AUTO,
        metavar="K",
        help="let the extra heads draft K tokens (no K: one per head) for the next forward pass to "
        "verify; greedy texts stay the same, sampled ones keep their distribution (default: all "
        "heads with --adaptive)",
    )
    group.add_argument(
        "--no-speculate",
        dest="speculate",
        action="store_const",
        const=OFF,
        help="generate one token per forward pass",
    )
    group.add_argument(
        "--adaptive",
        action="store_true",
        help="draft fewer tokens where drafts are rejected",
    )
    group.add_argument(
        "--draft-vocabulary",
        choices=[STORED, NONE],
        default=STORED,
        help="tokens that the heads may draft: those stored with the model (default; all if none "
        "are), or none for all; texts stay the same",
    )
