"""Prompts of `weighted-mtp generate`: from options, a file, or standard input."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.core.input_files import open_regular
from weighted_mtp.core.streams import CLOSED
from weighted_mtp.core.types import Message
from weighted_mtp.data.datasets import read_lines, read_messages, refuse_half_pairs, unreadable
from weighted_mtp.data.prepare.reading import decode
from weighted_mtp.data.prepare.source import BadRecordError

STDIN = "-"


@dataclass(frozen=True)
class Prompt:
    """An instruction with its input, or any text with the template `raw`; or messages, of a user
    last, where they are read."""

    text: str
    input: str = ""
    messages: Sequence[Message] = ()


def read_prompts(args: argparse.Namespace) -> list[Prompt]:
    """Return all prompts, those of `--prompt` first.

    Raises:
        UserError: there is none, standard input is named twice, or a line is not a prompt.
    """
    if [*args.prompt, args.prompts].count(STDIN) > 1:
        raise UserError("standard input can be read only once: use one - in --prompt and --prompts")
    prompts = [Prompt(_whole_stdin() if text == STDIN else text) for text in args.prompt]
    if args.prompts is not None:
        prompts += prompts_of_file(args.prompts)
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


def prompts_of_file(name: str, conversations: bool = False) -> Iterator[Prompt]:
    """The prompts of `--prompts`.

    Args:
        conversations: lines may have `messages`, of which those before the first answer are the
            prompt.

    Raises:
        UserError: it cannot be read, or a line is not a prompt.
    """
    if name == STDIN:
        content = _stdin()
        path, is_json = Path("standard input"), content.lstrip().startswith(b"{")
        yield from _of_lines(io.BytesIO(content), path, is_json, conversations)
        return
    path = Path(name)
    try:
        with open_regular(path) as file:
            is_json = path.suffix.lower() in (".jsonl", ".json")
            yield from _of_lines(file, path, is_json, conversations)
    except OSError as error:
        raise unreadable(path, error) from error


def _of_lines(file: BinaryIO, path: Path, is_json: bool, conversations: bool) -> Iterator[Prompt]:
    for number, line in read_lines(file, path):
        where = f"{path}, line {number}"
        if is_json:
            yield _of_record(line, where, conversations)
        else:
            yield Prompt(_text(line, where).rstrip("\r\n"))


def _of_record(line: bytes, where: str, conversations: bool) -> Prompt:
    try:
        record = decode(line, {})
    except BadRecordError as error:
        raise UserError(f"{where}: {error}") from error
    if conversations and record.get("messages") is not None:
        return _of_messages(record["messages"], where)
    text = record.get("prompt", record.get("instruction"))
    more = record.get("input")
    more = "" if more is None else more
    if not isinstance(text, str) or not isinstance(more, str):
        raise UserError(f"{where}: needs a string in the field 'prompt' or 'instruction'")
    refuse_half_pairs({"prompt": text, "input": more}, where)
    return Prompt(text, more)


def _of_messages(given: object, where: str) -> Prompt:
    messages = read_messages(given, where)
    refuse_half_pairs({"messages": messages}, where)
    question = list(takewhile(lambda message: message["role"] != "assistant", messages))
    if not question or question[-1]["role"] != "user":
        raise UserError(f"{where}: 'messages' should begin with what a user asks")
    return Prompt("", messages=question)


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is not UTF-8 ({error.reason})") from error
