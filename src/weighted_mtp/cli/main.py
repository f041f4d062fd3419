"""`weighted-mtp`: one sub-command a file; a person's mistakes end in one line and status 2."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NoReturn

from weighted_mtp import __version__
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import DISK_ERRORS
from weighted_mtp.core.logging import get_logger, setup_logging
from weighted_mtp.core.streams import (
    drop_unwritten_output,
    escaped_output,
    open_missing_streams,
    tolerant_streams,
)
from weighted_mtp.core.terminal import printable
from weighted_mtp.core.urls import without_credentials

DATA_ON_STDOUT = ("generate", "chat")
"""What these commands print is data for other programs, so that it stays as it is in a pipe."""
SHORT = ("generate", "chat", "inspect", "plan")
"""These commands exist for what they print: they end when it cannot be written. The others go on
with their work."""

COMMANDS = {
    "train": "train a model by a recipe",
    "plan": "estimate a recipe's memory, and which settings fit which GPUs",
    "evaluate": "write programs with a checkpoint and run their tests",
    "generate": "continue a prompt with a checkpoint",
    "chat": "talk with a chat model",
    "report": "a run as one HTML page",
    "experiment": "does weighting help? objectives and controls under one budget",
    "convert": "write a checkpoint in another layout",
    "inspect": "say what a checkpoint holds",
    "prepare": "generate or score data sets",
}


class _Parser(argparse.ArgumentParser):
    """Repeats what was typed without credentials and control characters."""

    def error(self, message: str) -> NoReturn:
        super().error(_shown(message))


def _shown(message: object) -> str:
    return printable(without_credentials(str(message)))


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser; only `command`'s own module is imported, so that `--help` stays quick."""
    parser = _Parser(
        prog="weighted-mtp",
        description="Train, weight, decode and evaluate multi-token-prediction LLaMA models.",
    )
    parser.add_argument("--version", action="version", version=f"weighted-mtp {__version__}")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING"])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
        if name == command:
            module = importlib.import_module(f"weighted_mtp.cli.{name}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def _check_encoding(argv: Sequence[str]) -> None:
    """Refuse bytes that the terminal's encoding cannot read: Python hands them on as surrogates,
    which no tokenizer, file or log can hold."""
    for number, word in enumerate(argv, 1):
        try:
            word.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"argument {number} ({word[:60]!a}) is not valid "
                f"{sys.getfilesystemencoding().upper()} at character {error.start + 1}; write it "
                "in this encoding"
            ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 2 on anything a person can put right, 130 on Ctrl-C."""
    open_missing_streams()
    argv = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in argv if word in COMMANDS), None)
    with tolerant_streams(output=command is not None and command not in SHORT):
        return _main(command, argv)


def _main(command: str | None, argv: Sequence[str]) -> int:
    try:
        _check_encoding(argv)
        args = build_parser(command).parse_args(argv)
        setup_logging(args.log_level)
        as_it_is = command in DATA_ON_STDOUT and not sys.stdout.isatty()
        with nullcontext() if as_it_is else escaped_output():
            status = int(args.run(args) or 0)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {_shown(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        drop_unwritten_output()
        return 0
    except OSError as error:  # a disk that is full, a name that is too long, …
        if error.errno not in DISK_ERRORS:
            raise
        drop_unwritten_output()
        get_logger(__name__).debug("where it was raised", exc_info=True)
        where = f"{error.filename}: " if error.filename else "the output cannot be written: "
        print(f"error: {_shown(where + str(error.strerror))}", file=sys.stderr)
        return 2
