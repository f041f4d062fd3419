"""Options of `weighted-mtp generate`."""

from __future__ import annotations

import argparse

from weighted_mtp.cli.arguments.decoding import DTYPE_HELP, add_decoding_arguments
from weighted_mtp.cli.arguments.prompts import add_prompt_arguments
from weighted_mtp.core.files import given_path
from weighted_mtp.data.templates import TEMPLATE_NAMES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `generate`."""
    parser.add_argument(
        "checkpoint",
        type=given_path,
        help="a run, a checkpoint, a model directory, or ORG/NAME on the Hugging Face hub",
    )
    add_prompt_arguments(parser)
    parser.add_argument(
        "--template",
        choices=list(TEMPLATE_NAMES),
        help="prompt template (default: the one of the run; for a bare model chat, or alpaca "
        "if it has no chat template; chat is the chat template of the tokenizer; raw continues the "
        "text as it is)",
    )
    parser.add_argument(
        "--system", metavar="TEXT", help="with --template chat: the system message before prompts"
    )
    parser.add_argument("--n-samples", type=int, default=1, metavar="N", help="texts per prompt")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="texts at a time (default 16; with --tree 1)"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object per line: text, tokens, finish, …",
    )
    parser.add_argument(
        "--logprobs",
        action="store_true",
        help="with --json: add the log-probabilities of the tokens",
    )
    add_decoding_arguments(parser, 256)
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    parser.add_argument("--dtype", help=DTYPE_HELP)
