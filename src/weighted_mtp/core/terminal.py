"""Text as a terminal may show it."""

from __future__ import annotations

import unicodedata

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Format characters that change the order in which text is shown."""


def printable(text: str, keep: str = "") -> str:
    """`text` with control characters, line separators, bidirectional overrides and lone surrogates
    written as escapes (`\\x1b`, `\\u202e`), but for those in `keep`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in keep or not _steers(char) else _escape(char) for char in text)


def _steers(char: str) -> bool:
    return char in _BIDI or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
