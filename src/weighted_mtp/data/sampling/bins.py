"""Rows sorted into bins of like difficulty.

Letters: C candidates, the rows that may be drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from weighted_mtp.core.config.sampling import OTHER, THIRDS, Bin, Range, SamplingConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.rows.metadata import Indices, Metadata

Numbers = np.ndarray[Any, np.dtype[np.float32]]

_MOST_LABELS = 20  # named in a message
_NUMBERS = ("difficulty_number", "cf_rating")  # columns


def bin_counts(metadata: Metadata, candidates: Indices, config: SamplingConfig) -> dict[str, int]:
    """How many candidates each bin holds, and `other`: how many fit none.

    Raises:
        UserError: no bins are given and none can be made, or a row fits two.
    """
    return {name: len(rows) for name, rows in rows_by_bin(metadata, candidates, config).items()}


def rows_by_bin(
    metadata: Metadata, candidates: Indices, config: SamplingConfig
) -> dict[str, Indices]:
    """The candidates of each bin, in the order of the configuration, `other` last.

    Raises:
        UserError: as for `bin_counts`.
    """
    bins = config.bins if config.bins is not None else thirds(metadata, candidates)
    place = np.full(len(candidates), len(bins), dtype=np.int16)  # [C] which bin; the last: other
    for i, (name, each) in enumerate(bins.items()):
        fits = _fits(metadata, candidates, each)  # [C]
        twice = np.flatnonzero(fits & (place < len(bins)))
        if len(twice):
            first = list(bins)[place[twice[0]]]
            raise UserError(
                f"data.sampling.bins {first} and {name} overlap: row {candidates[twice[0]]} fits "
                "both; define them by the same column, or narrow one"
            )
        place[fits] = i
    return {name: candidates[place == i] for i, name in enumerate([*bins, OTHER])}


def check_not_empty(
    name: str, rows: Indices, metadata: Metadata, candidates: Indices, config: SamplingConfig
) -> None:
    """Raise `UserError` if a bin that has a weight holds no row."""
    if len(rows):
        return
    if name == OTHER:
        raise UserError(
            f"data.sampling gives the bin {OTHER} a weight, but every row fits another bin; take "
            "the weight away"
        )
    bins: Mapping[str, Bin] = config.bins or {}
    raise UserError(
        f"data.sampling.bins.{name} has a weight, but none of the {len(candidates):,} rows fits "
        f"it; {_what_there_is(metadata, candidates, bins[name])}; change the bin, or take its "
        "weight away"
    )


def thirds(metadata: Metadata, candidates: Indices) -> dict[str, Bin]:
    """`low`, `medium` and `high`: ranges of numeric difficulty, or of Codeforces rating if more
    rows have that, that cut the rows that have one as nearly into thirds as equal values, which
    stay together, allow.

    Raises:
        UserError: rows have neither, or fewer than three different values.
    """
    columns = {kind: _known(getattr(metadata, kind)[candidates]) for kind in _NUMBERS}
    kind = max(_NUMBERS, key=lambda kind: len(columns[kind]))
    values, counts = np.unique(columns[kind], return_counts=True)
    if len(values) < len(THIRDS):
        found = f"{len(values)} different values of {kind}" if len(values) else "no numbers"
        raise UserError(
            "data.sampling.bins is missing and cannot be made: thirds by difficulty need rows "
            f"with a numeric difficulty or a cf_rating, and these have {found}; name the bins, "
            "e.g. --set 'data.sampling.bins.low.labels=[A, B]' "
            f"({_labels_there_are(metadata, candidates)})"
        )
    upto = counts.cumsum()  # rows with a value of at most values[i]
    first = int(np.abs(upto[:-2] - upto[-1] / 3).argmin())
    second = first + 1 + int(np.abs(upto[first + 1 : -1] - upto[-1] * 2 / 3).argmin())
    low, high = float(values[first + 1]), float(values[second + 1])
    ranges = Range(below=low), Range(at_least=low, below=high), Range(at_least=high)
    return {
        name: Bin.model_validate({kind: each}) for name, each in zip(THIRDS, ranges, strict=True)
    }


def _fits(metadata: Metadata, rows: Indices, each: Bin) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if each.labels is not None:
        wanted = [label in each.labels for label in metadata.difficulties]
        return np.array([*wanted, False])[metadata.difficulty[rows]]  # −1, no label, reads the last
    kind, held = _range_of(each)
    column = getattr(metadata, kind)[rows]
    fits: np.ndarray[Any, np.dtype[np.bool_]] = (column >= held.low) & (column < held.high)
    return fits


def _range_of(each: Bin) -> tuple[str, Range]:
    for kind in _NUMBERS:
        held = getattr(each, kind)
        if isinstance(held, Range):
            return kind, held
    raise ValueError("a bin of labels has no range")


def _what_there_is(metadata: Metadata, candidates: Indices, each: Bin) -> str:
    if each.labels is not None:
        return _labels_there_are(metadata, candidates)
    kind, _ = _range_of(each)
    values = _known(getattr(metadata, kind)[candidates])
    if not len(values):
        return f"none has a {kind}"
    return f"{kind} goes from {values.min():g} to {values.max():g}"


def _labels_there_are(metadata: Metadata, candidates: Indices) -> str:
    used = np.unique(metadata.difficulty[candidates])
    labels = [metadata.difficulties[i] for i in used if i >= 0]
    more = ", …" if len(labels) > _MOST_LABELS else ""
    return f"labels there are: {', '.join(labels[:_MOST_LABELS]) or 'none'}{more}"


def _known(column: Numbers) -> Numbers:
    known: Numbers = column[~np.isnan(column)]
    return known
