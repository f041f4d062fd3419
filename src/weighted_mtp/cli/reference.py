"""The command line as Markdown (docs/cli.md), read from the parsers that parse it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

_INTRODUCTION = """# Command line

Every command and its options. This page is written by `make options` from the parsers in
`src/weighted_mtp/cli/`; do not edit it. `weighted-mtp COMMAND --help` prints the same in a
terminal. Recipes have options of their own, set with `--set KEY=VALUE`: [options.md](options.md).
`python -m weighted_mtp` is the same program as `weighted-mtp`.
"""


def command_parsers() -> Iterator[argparse.ArgumentParser]:
    """Yield the parser of the program, then that of each command and of its sub-commands."""
    from weighted_mtp.cli.main import COMMANDS, build_parser

    program = build_parser()
    yield program
    for name in COMMANDS:
        yield from _with_commands_of(_commands(build_parser(name))[name])


def command_reference() -> Iterator[str]:
    """Yield the lines of docs/cli.md."""
    yield _INTRODUCTION
    for parser in command_parsers():
        words = parser.prog.split()
        yield f"{'#' * max(len(words), 2)} {' '.join(words[1:]) or 'Common options'}\n"
        if len(words) > 1:
            yield f"{parser.description}\n"
        rows = [_row(parser, action) for action in _arguments(parser)]
        if rows:
            yield "| argument | meaning |"
            yield "|---|---|"
            yield from rows
            yield ""
        if len(words) > 1 and parser.epilog:
            yield f"    {parser.epilog.split(maxsplit=1)[1].strip()}\n"


def _arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments of a parser, without `--help` and sub-commands."""
    left_out = (argparse._HelpAction, argparse._SubParsersAction)
    return [a for a in parser._actions if not isinstance(a, left_out)]


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found[0]) if found else {}


def _with_commands_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for below in _commands(parser).values():
        yield from _with_commands_of(below)


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """`| `--out FILE` | what it does |`."""
    meaning = parser._get_formatter()._expand_help(action) if action.help else ""
    if action.required and action.option_strings:
        meaning = f"(required) {meaning}"
    cells = (f"`{_spelling(action)}`", " ".join(meaning.split()))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _spelling(action: argparse.Action) -> str:
    """An argument as one writes it: `--set KEY=VALUE`, `PATH …`, `--a, --no-a`."""
    value = _value(action)
    if not action.option_strings:
        return f"[{value}]" if action.nargs in ("?", "*") else value
    names = ", ".join(action.option_strings)
    return f"{names} {value}" if value and action.nargs != 0 else names


def _value(action: argparse.Action) -> str:
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    name = action.metavar or action.dest.upper()
    if action.choices is not None and action.metavar is None:
        name = "{" + ",".join(str(choice) for choice in action.choices) + "}"
    if action.nargs == "?" and action.option_strings:
        return f"[{name}]"
    return f"{name} …" if action.nargs in ("+", "*") else name
