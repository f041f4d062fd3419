"""`weighted-mtp options`: list every option of a recipe, as text, Markdown or JSON."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby

from weighted_mtp.cli.reference import command_reference
from weighted_mtp.core.config.options import (
    Option,
    recipe_options,
    section_titles,
    shipped_settings,
)
from weighted_mtp.core.config.suggestions import suggest_key
from weighted_mtp.core.errors import UserError

_INTRODUCTION = """# Recipe options

Every option of a recipe: set it in a YAML file, or on the command line with `--set KEY=VALUE`. A
`*` in a key stands for a name or number of your own. This page is written by `make options` from
the docstrings in `src/weighted_mtp/core/config/`; do not edit it. `weighted-mtp options` prints the
same in a terminal.
"""


def run(args: argparse.Namespace) -> int:
    """Print the options asked for."""
    if args.commands:
        if args.section is not None:
            raise UserError("--commands prints all commands; leave SECTION out")
        print("\n".join(command_reference()))
        return 0
    found = recipe_options() if args.section is None else find_options(args.section)
    if args.json:
        used = shipped_settings()
        records = [{**asdict(option), "set_by": used[option.key]} for option in found]
        print(json.dumps(records, indent=1, ensure_ascii=False))
    else:
        print("\n".join(markdown(found) if args.markdown else text(found)))
    return 0


def find_options(word: str) -> list[Option]:
    """Return the options of a section, those of a name, or else those with all words of `word` in
    key or meaning.

    Raises:
        UserError: there is none.
    """
    options, wanted = recipe_options(), word.strip(".")
    found = [o for o in options if f"{o.key}.".startswith(f"{wanted}.")]
    found = found or [o for o in options if f".{o.key}.".count(f".{wanted}.")]
    words = word.lower().split()
    found = found or [o for o in options if all(w in _searched(o) for w in words)]
    if not found:
        raise UserError(
            f"no option or section {word!r}{suggest_key(word.split('.'))}; weighted-mtp options "
            "lists all"
        )
    return found


def _searched(option: Option) -> str:
    return f"{option.key} {option.key.replace('_', ' ')} {option.meaning}".lower()


def text(options: Sequence[Option]) -> Iterator[str]:
    """Yield lines for a terminal."""
    width = min(100, shutil.get_terminal_size().columns)
    for heading, about, members in _by_section(options):
        yield from textwrap.wrap(f"{heading}: {about}", width, subsequent_indent="  ")
        yield ""
        for option in members:
            yield f"  {option.key}"
            parts = [f"{option.type}; {_default(option)}", option.meaning, _set_by(option)]
            for part in filter(None, parts):
                yield from textwrap.wrap(
                    part, width, initial_indent="      ", subsequent_indent="      "
                )
        yield ""


def markdown(options: Sequence[Option]) -> Iterator[str]:
    """Yield the lines of docs/options.md."""
    yield _INTRODUCTION
    for heading, about, members in _by_section(options):
        yield f"## {heading}\n\n{about}\n"
        yield "| option | type | default | meaning |"
        yield "|---|---|---|---|"
        for option in members:
            meaning = " ".join(filter(None, (option.meaning, _set_by(option))))
            default = _default(option).removeprefix("default ")
            cells = (f"`{option.key}`", option.type, f"`{default}`", meaning)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        yield ""


def _by_section(options: Sequence[Option]) -> Iterator[tuple[str, str, list[Option]]]:
    """Each section with what it is about and the options directly in it."""
    titles = section_titles()
    ordered = sorted(options, key=lambda option: [*titles].index(_section(option)))
    for key, members in groupby(ordered, _section):
        several = list(members)
        absent = several[0].optional_section
        note = f" Absent by default; `required` holds where `{absent}` is given." if absent else ""
        yield key or "recipe", titles[key] + note, several


def _section(option: Option) -> str:
    return option.key.rpartition(".")[0]


def _default(option: Option) -> str:
    if option.required:
        return "required"
    return f"default {_value(option.default)}"


def _set_by(option: Option) -> str:
    """`Set by baseline, critic: 1e-05; micro: 0.003.`"""
    by_value: dict[str, list[str]] = {}
    for name, value in shipped_settings()[option.key].items():
        by_value.setdefault(_value(value), []).append(name)
    groups = [f"{', '.join(names)}: {value}" for value, names in by_value.items()]
    return f"Set by {'; '.join(groups)}." if groups else ""


def _value(value: object) -> str:
    """A value as YAML would have it on one line."""
    return value if isinstance(value, str) else json.dumps(value)
