"""Options that name prompts."""

from __future__ import annotations

import argparse

from weighted_mtp.core.files import given_name


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--prompt` and `--prompts`."""
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="an instruction (with --template raw: any text); - reads standard input; repeatable",
    )
    parser.add_argument(
        "--prompts",
        type=given_name,
        metavar="FILE",
        help="one prompt per line: objects with 'prompt' or 'instruction', and optionally 'input', "
        "in FILE.jsonl, plain text in any other file; - reads standard input, as JSON if it "
        "begins with {",
    )
