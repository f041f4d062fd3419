"""One exception for everything a person can put right themselves, and words for others'."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from weighted_mtp.core.urls import REMEDY, holds_credentials, without_credentials


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where (file, line or key), and the remedy.

    The command line prints the message without a traceback and exits with status 2. Library
    callers may catch it like any exception.
    """


class RowError(UserError):
    """Bad content of one row, found where its file and line are not known; the caller adds them to
    the message."""


def one_line(reason: object, longest: int | None = None) -> str:
    """What another's error says, without its line breaks, cut to `longest` characters."""
    return " ".join(str(reason).split())[:longest]


def in_brief(error: Exception, longest: int = 200) -> str:
    """A third party's error in one short line, without the credentials of an address in it."""
    return without_credentials(one_line(f"{type(error).__name__}: {error}"))[:longest]


def refuse_credentials(text: str, what: str) -> None:
    """Raise `UserError`, which names `what` and does not repeat `text`, if a URL in it holds
    credentials."""
    if holds_credentials(text):
        raise UserError(
            f"{what} holds a password or a key, which would be logged or saved; {REMEDY}"
        )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?)` with the known word nearest to `word`, "" if none is near."""
    plain = {simplified(name): name for name in reversed(list(known))}
    near = difflib.get_close_matches(simplified(word), plain, n=1)
    return f" (did you mean {plain[near[0]]}?)" if near else ""


def simplified(name: str) -> str:
    """Lower case without separators, so that `learningRate` and `learning-rate` are alike."""
    return "".join(char for char in name.lower() if char not in "-_ ")
