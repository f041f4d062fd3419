"""Options of the sub-commands of `weighted-mtp prepare` that let a model read or write."""

from __future__ import annotations

import argparse
import re

from weighted_mtp.cli.arguments.decoding import DTYPE_HELP, add_decoding_arguments
from weighted_mtp.core.choices import NUMBER_FORMATS, OPENINGS
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import given_name, given_path
from weighted_mtp.data.templates import TEMPLATE_NAMES

MAX_NEW_TOKENS = 128
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kMGT]?)(i?)B?", re.IGNORECASE)


def given_size(text: str) -> int:
    """Bytes from a size such as 20GB, 500 MB or 1.5TiB (argparse's `type`).

    Raises:
        UserError: it is none.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UserError(f"--budget {text!r}: write a size as 20GB, 500MB or 1.5TiB")
    number, prefix, binary = found.groups()
    size = float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " ")
    return int(size)


def add_reference(parser: argparse.ArgumentParser) -> None:
    """Add the options of `prepare reference-losses`."""
    parser.add_argument(
        "--data", type=given_path, required=True, metavar="FILE.jsonl", help="rows to score"
    )
    parser.add_argument(
        "--model",
        type=given_path,
        required=True,
        help="reference model: a run, a checkpoint, a model directory or ORG/NAME",
    )
    parser.add_argument(
        "--out", type=given_path, help="file to write (default FILE.reference.safetensors)"
    )
    _add_reading(parser)
    parser.add_argument(
        "--compute-dtype", choices=list(NUMBER_FORMATS), default="float32", help="default float32"
    )


def add_self(parser: argparse.ArgumentParser) -> None:
    """Add the options of `prepare self`."""
    parser.add_argument(
        "--model",
        type=given_path,
        required=True,
        help="the model that writes: a run, a checkpoint, a model directory or ORG/NAME",
    )
    parser.add_argument(
        "--prompts",
        type=given_name,
        metavar="FILE",
        help="one prompt per line: objects with 'prompt' or 'instruction' (and 'input'), or "
        "'messages', in FILE.jsonl, plain text in any other file; - reads standard input (default: "
        "openings of functions and classes of the Python standard library)",
    )
    parser.add_argument(
        "--n",
        type=int,
        metavar="PROMPTS",
        help=f"openings to draw (default {OPENINGS}), or most prompts to take from FILE",
    )
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="draw openings from held-out documents, for data.validation: they share none with the "
        "others",
    )
    parser.add_argument(
        "--out", type=given_path, required=True, metavar="FILE.jsonl", help="file to write"
    )
    parser.add_argument(
        "--template",
        help=f"prompt template, the data.template of the training: {', '.join(TEMPLATE_NAMES)} "
        "(default: the one of the run; for a bare model chat, or alpaca if it has no chat "
        "template)",
    )
    parser.add_argument("--n-samples", type=int, default=1, metavar="N", help="texts per prompt")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="texts at a time")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a FILE.jsonl of another command"
    )
    add_decoding_arguments(parser, MAX_NEW_TOKENS, lossy=False)
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    parser.add_argument("--dtype", help=DTYPE_HELP)


def add_states(parser: argparse.ArgumentParser) -> None:
    """Add the options of `prepare states`."""
    parser.add_argument(
        "--data", type=given_path, required=True, metavar="FILE.jsonl", help="rows to read"
    )
    parser.add_argument(
        "--model",
        type=given_path,
        required=True,
        help="model.path of the training: a run, a checkpoint, a model directory or ORG/NAME",
    )
    parser.add_argument(
        "--out", type=given_path, required=True, metavar="DIR", help="directory to write"
    )
    parser.add_argument(
        "--budget",
        type=given_size,
        metavar="SIZE",
        help="most disk to take, e.g. 20GB (default: half of what is free); more is refused first",
    )
    _add_reading(parser)
    parser.add_argument(
        "--compute-dtype",
        choices=["auto", "bfloat16", "float32"],
        default="auto",
        help="runtime.compute_dtype of the training (default auto)",
    )
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="of the stored states (default bfloat16)",
    )


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """Add how rows are read, as the training will."""
    parser.add_argument(
        "--template",
        choices=list(TEMPLATE_NAMES),
        default="alpaca",
        help="data.template of the training",
    )
    parser.add_argument("--joint", action="store_true", help="data.joint of the training is true")
    parser.add_argument(
        "--max-length",
        type=int,
        default=2048,
        help="data.max_length of the training (default 2048)",
    )
    parser.add_argument("--batch-size", type=int, default=16, help="rows at a time (default 16)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
