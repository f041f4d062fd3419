"""Prompts of `weighted-mtp generate`: from options, a file, or standard input."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.core.files import given_name
from weighted_mtp.core.input_files import open_regular
from weighted_mtp.core.streams import CLOSED
from weighted_mtp.data.datasets import read_lines, refuse_half_pairs, unreadable
from weighted_mtp.data.prepare.reading import decode
from weighted_mtp.data.prepare.source import BadRecordError

STDIN = "-"


@dataclass(frozen=True)
class Prompt:
    """An instruction with its input, or any text with the template `raw`."""

    text: str
    input: str = ""


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


def read_prompts(args: argparse.Namespace) -> list[Prompt]:
    """Return all prompts, those of `--prompt` first.

    Raises:
        UserError: there is none, standard input is named twice, or a line is not a prompt.
    """
    if [*args.prompt, args.prompts].count(STDIN) > 1:
        raise UserError("standard input can be read only once: use one - in --prompt and --prompts")
    prompts = [Prompt(_whole_stdin() if text == STDIN else text) for text in args.prompt]
    if args.prompts is not None:
        prompts += _of_file(args.prompts)
    if not prompts:
        empty = f"{args.prompts}: contains no prompt"
        raise UserError(empty if args.prompts else "give --prompt TEXT or --prompts FILE")
    return prompts


def _whole_stdin() -> str:
    return _text(_stdin(), "standard input")


def _stdin() -> bytes:
    if "stdin" in CLOSED:
        raise UserError("standard input is closed; give the text itself, or a file to --prompts")
    try:
        return sys.stdin.buffer.read()
    except (OSError, ValueError) as error:
        raise UserError(f"standard input: cannot be read ({one_line(error, 120)})") from error


def _of_file(name: str) -> Iterator[Prompt]:
    if name == STDIN:
        content = _stdin()
        path, is_json = Path("standard input"), content.lstrip().startswith(b"{")
        yield from _of_lines(io.BytesIO(content), path, is_json)
        return
    path = Path(name)
    try:
        with open_regular(path) as file:
            yield from _of_lines(file, path, path.suffix.lower() in (".jsonl", ".json"))
    except OSError as error:
        raise unreadable(path, error) from error


def _of_lines(file: BinaryIO, path: Path, is_json: bool) -> Iterator[Prompt]:
    for number, line in read_lines(file, path):
        where = f"{path}, line {number}"
        if is_json:
            yield _of_record(line, where)
        else:
            yield Prompt(_text(line, where).rstrip("\r\n"))


def _of_record(line: bytes, where: str) -> Prompt:
    try:
        record = decode(line, {})
    except BadRecordError as error:
        raise UserError(f"{where}: {error}") from error
    text = record.get("prompt", record.get("instruction"))
    more = record.get("input")
    more = "" if more is None else more
    if not isinstance(text, str) or not isinstance(more, str):
        raise UserError(f"{where}: needs a string in the field 'prompt' or 'instruction'")
    refuse_half_pairs({"prompt": text, "input": more}, where)
    return Prompt(text, more)


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is not UTF-8 ({error.reason})") from error
