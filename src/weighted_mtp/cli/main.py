"""`weighted-mtp`: one sub-command per file; user mistakes end in one line and exit status 2."""

from __future__ import annotations

import argparse
import gc
import importlib
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NoReturn

from weighted_mtp import __version__
from weighted_mtp.core.errors import UserError, did_you_mean
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
"""What these commands print is data for other programs and stays unescaped in a pipe."""
SHORT = ("generate", "chat", "inspect", "options", "plan", "verify")
"""These commands exist for what they print: they end when it cannot be written. The others continue
their work."""

COMMANDS = {
    "train": (
        "train a model by a recipe",
        "weighted-mtp train --recipe verifiable --preset micro --set training.steps=200",
    ),
    "plan": (
        "estimate memory and communication of a recipe, and which settings fit which GPUs",
        "weighted-mtp plan --recipe verifiable --model 7b --gpus 8",
    ),
    "evaluate": (
        "let a checkpoint write programs, and run their tests",
        "weighted-mtp evaluate runs/verifiable-micro --n-problems 100",
    ),
    "generate": (
        "continue a prompt with a checkpoint",
        "weighted-mtp generate runs/verifiable-micro --prompt 'Return the larger of a and b.'",
    ),
    "chat": (
        "talk with a chat model",
        "weighted-mtp chat models/SmolLM2-135M-Instruct --system 'Answer briefly.'",
    ),
    "serve": (
        "serve a model over HTTP with OpenAI's protocol",
        "weighted-mtp serve models/SmolLM2-135M-Instruct --port 8000",
    ),
    "report": (
        "write an HTML report of a run",
        "weighted-mtp report runs/verifiable-micro --output report.html",
    ),
    "experiment": (
        "compare objectives and controls at equal training budget: does weighting help, does "
        "looking ahead?",
        "weighted-mtp experiment wmtp --regime scarce --jobs 2",
    ),
    "convert": (
        "write a checkpoint in another layout or number format",
        "weighted-mtp convert runs/verifiable-micro exported --to hf --dtype bfloat16",
    ),
    "verify": (
        "compare a model with its export, head by head",
        "weighted-mtp verify runs/verifiable-micro exported",
    ),
    "push": (
        "upload an export to the Hugging Face hub",
        "weighted-mtp push exported me/my-model --private",
    ),
    "inspect": (
        "describe a checkpoint: layout, shape, tokenizer, value head",
        "weighted-mtp inspect runs/verifiable-micro --verify",
    ),
    "prepare": (
        "generate, convert or score data sets",
        "weighted-mtp prepare micro --n 1000 --out rows.jsonl",
    ),
    "options": (
        "list the options of a recipe: type, default, meaning, and the recipes that set them",
        "weighted-mtp options training",
    ),
}
"""Summary and example of each command. Its options are in the module of its name in `arguments/`,
which is quick to import; what it does is in the module of its name here."""


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line: with the nearest option or choice, and without
    credentials and control characters.

    Args:
        summary: of the command, a phrase without capital and full stop.
        example: a whole command, shown at the end of `--help`.
    """

    def __init__(self, summary: str = "", example: str = "", **more: Any) -> None:
        if summary:
            more["description"] = summary[0].upper() + summary[1:] + "."
        if example:
            more["epilog"] = f"example:\n  {example}"
            more["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(**more)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {_shown(message)} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Check the names of options first: a missing argument must not hide a misspelled one."""
        known = self._option_string_actions
        for word in args or ():
            if word == "--" or (self._subparsers and not word.startswith("-")):
                break
            name, _, value = word.partition("=")
            is_option = re.fullmatch(r"--[A-Za-z][\w.-]*", name)
            if is_option and not any(option.startswith(name) for option in known):
                hint = did_you_mean(name, known)
                if "--set" in known:
                    hint = hint or _recipe_hint(name, value)
                self.error(f"unknown option {name}{hint}")
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            which = isinstance(action, argparse._SubParsersAction)
            raise argparse.ArgumentError(
                None if which else action,
                f"unknown {'command' if which else 'value'} {value!r}"
                f"{did_you_mean(str(value), known)}; choose one of {', '.join(known)}",
            )


def _recipe_hint(option: str, value: str) -> str:
    """How to set the option of a recipe that was given as an option of the command."""
    from weighted_mtp.core.config.suggestions import nearest_key  # pydantic takes a moment to load

    key, remark = nearest_key(option.strip("-").replace("-", "_").split("."))
    return f" (did you mean --set {key}={value or 'VALUE'}?{remark})" if key else ""


def _shown(message: object) -> str:
    return printable(without_credentials(str(message)))


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Build the parser; only `command` gets its options, and what it does is not imported, so that
    `--help` stays quick."""
    parser = CommandParser(
        prog="weighted-mtp",
        summary="train, weight, decode and evaluate multi-token-prediction LLaMA models",
        example=COMMANDS["train"][1],
    )
    parser.add_argument("--version", action="version", version=f"weighted-mtp {__version__}")
    parser.add_argument(
        "--log-level",
        default="INFO",
        choices=["DEBUG", "INFO", "WARNING"],
        help="least severe messages to print (default INFO)",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (summary, example) in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, summary=summary, example=example)
        if name == command:
            importlib.import_module(f"weighted_mtp.cli.arguments.{name}").add_arguments(sub)
    return parser


def _check_encoding(argv: Sequence[str]) -> None:
    """Reject bytes that the terminal's encoding cannot decode: Python passes them on as surrogates,
    which no tokenizer, file or log accepts."""
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
    """Run one command; return 0 on success, 2 on a user mistake, 130 on Ctrl-C."""
    open_missing_streams()
    argv = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in argv if word in COMMANDS), None)
    with tolerant_streams(output=command is not None and command not in SHORT):
        return _main(command, argv)


def _load(name: str) -> Any:
    """Import what a command does. PyTorch and its like make many objects, and all stay: to look
    through them for garbage, again and again, takes a tenth of the time, and would in each later
    collection."""
    if name in sys.modules or not gc.isenabled():
        return importlib.import_module(name)
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()


def _main(command: str | None, argv: Sequence[str]) -> int:
    try:
        _check_encoding(argv)
        args = build_parser(command).parse_args(argv)
        setup_logging(args.log_level)
        as_it_is = command in DATA_ON_STDOUT and not sys.stdout.isatty()
        with nullcontext() if as_it_is else escaped_output():
            status = int(_load(f"weighted_mtp.cli.{args.command}").run(args) or 0)
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
    except OSError as error:  # disk full, name too long, …
        if error.errno not in DISK_ERRORS:
            raise
        drop_unwritten_output()
        get_logger(__name__).debug("where it was raised", exc_info=True)
        where = f"{error.filename}: " if error.filename else "the output cannot be written: "
        print(f"error: {_shown(where + str(error.strerror))}", file=sys.stderr)
        return 2
