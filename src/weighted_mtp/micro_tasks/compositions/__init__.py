"""Problems that put two known operations together: a family for each pair and shape.

    chain_numbers, chain_texts, chain_lists     outer(inner(x))
    keep_matching                               those inner(x), for x in xs, that pass a test
    total_matching                              the sum of those

Three pairs in ten, chosen by a hash of the two names, are held out: in neither order and in no
shape do they occur in the ordinary splits, and the split "compositions" has no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weighted_mtp.micro_tasks.compositions.chain import chain
from weighted_mtp.micro_tasks.compositions.each import each
from weighted_mtp.micro_tasks.compositions.pair import is_held_out
from weighted_mtp.micro_tasks.compositions.parts import (
    LIST_TO_LIST,
    LIST_TO_NUMBER,
    NUMBER_TO_NUMBER,
    NUMBER_TO_TRUTH,
    PARTS,
    TEXT_TO_TEXT,
    Part,
)

ADDED_EVERYWHERE = {
    (inner, outer)
    for inner in ("add_each", "distinct", "window_sums", "chunk_sums")
    for outer in ("steps_between", "spread")
}
"""What is added to all numbers alike changes no difference."""
TOO_COARSE = {
    ("chunk_sums", "window_sums"),
    ("window_sums", "chunk_sums"),
    ("steps_between", "filter_scale"),
    ("steps_between", "count_matching"),
    *(("count_digit", part.name) for part in NUMBER_TO_NUMBER + NUMBER_TO_TRUTH),
}
"""Nearly every answer would be the same, or many constants mean the same."""
LOST_MARKS = {(part.name, "shift") for part in TEXT_TO_TEXT if part.name != "replace"}
"""A shift turns every mark into the same."""
MEANINGLESS = (
    ADDED_EVERYWHERE
    | TOO_COARSE
    | LOST_MARKS
    | {(part.name, "without") for part in LIST_TO_LIST}  # there would be nothing to remove
)


def _pairs(inners: Sequence[Part], outers: Sequence[Part]) -> Iterator[tuple[Part, Part]]:
    for inner in inners:
        for outer in outers:
            fails = inner.may_empty and outer.never_empty
            if inner is not outer and not fails and (inner.name, outer.name) not in MEANINGLESS:
                yield inner, outer


COMPOSITIONS = (
    *(chain(*pair) for pair in _pairs(NUMBER_TO_NUMBER, NUMBER_TO_NUMBER + NUMBER_TO_TRUTH)),
    *(chain(*pair) for pair in _pairs(TEXT_TO_TEXT, TEXT_TO_TEXT)),
    *(chain(*pair) for pair in _pairs(LIST_TO_LIST, LIST_TO_LIST + LIST_TO_NUMBER)),
    *(each(*pair, total=False) for pair in _pairs(NUMBER_TO_NUMBER, NUMBER_TO_TRUTH)),
    *(each(*pair, total=True) for pair in _pairs(NUMBER_TO_NUMBER, NUMBER_TO_TRUTH)),
)
"""A family for each pair and shape."""

__all__ = ["COMPOSITIONS", "PARTS", "Part", "is_held_out"]
