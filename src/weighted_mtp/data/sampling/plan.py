"""What a strategy comes to: bins to draw from, and the share of each in each part of a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from weighted_mtp.core.config.sampling import OTHER, SamplingConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.rows.metadata import Indices, Metadata
from weighted_mtp.data.sampling.bins import check_not_empty, rows_by_bin
from weighted_mtp.data.sampling.sources import Source

MakeSource = Callable[[Indices], Source]


@dataclass(frozen=True)
class Part:
    """A part of the training.

    Attributes:
        start, stop: positions, in groups since the training began; without stop it never ends.
        shares: of the bins; not all 0.
    """

    start: int
    stop: int | None
    shares: tuple[Fraction, ...]


@dataclass(frozen=True)
class Plan:
    """Attributes:
    sources: one a bin.
    parts: one after the other, from 0 to ever.
    epoch_size: groups in an epoch.
    """

    sources: tuple[Source, ...]
    parts: tuple[Part, ...]
    epoch_size: int


def make_plan(
    metadata: Metadata,
    candidates: Indices,
    config: SamplingConfig,
    total: int,
    make: MakeSource,
) -> Plan:
    """The plan of `config.strategy`.

    Raises:
        UserError: the rows do not allow it.
    """
    if config.strategy == "uniform":
        return _uniform(candidates, config, make)
    if config.strategy == "balanced":
        return _balanced(metadata, candidates, config, make)
    return _binned(metadata, candidates, config, total, make)


def apportion(shares: Sequence[Fraction], count: int) -> list[int]:
    """`count` divided in proportion to the shares, exactly: the largest remainders are rounded up,
    the first of equal ones first."""
    whole = sum(shares)
    exact = [share * count / whole for share in shares]
    counts = [math.floor(each) for each in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: count - sum(counts)]:
        counts[i] += 1
    return counts


def as_written(number: float) -> Fraction:
    """0.1 is a tenth, as a person meant it."""
    return Fraction(str(number))


def _uniform(candidates: Indices, config: SamplingConfig, make: MakeSource) -> Plan:
    source = make(candidates)
    size = len(source) if config.n_samples is None else config.n_samples
    if size > len(source):
        raise UserError(
            f"data.sampling.n_samples {size:,} is more than the {len(source):,} there are to draw "
            "from; lower it, or take it away to draw all"
        )
    return Plan((source,), (Part(0, None, (Fraction(1),)),), size)


def _balanced(
    metadata: Metadata, candidates: Indices, config: SamplingConfig, make: MakeSource
) -> Plan:
    correct = metadata.is_correct[candidates]
    sides = make(candidates[correct]), make(candidates[~correct])
    for side, kind in zip(sides, ("correct", "incorrect"), strict=True):
        if not len(side):
            raise UserError(
                f"data.sampling.strategy balanced needs correct and incorrect rows, no {kind} row "
                "is left to draw from; set data.sampling.strategy=uniform, or give other rows "
                "(objective.rows=all; micro tasks: data.micro.incorrect_per_problem=1)"
            )
    share = as_written(config.correct_fraction)
    shares = share, 1 - share
    most = _most_balanced(len(sides[0]), len(sides[1]), share)
    size = most if config.n_samples is None else config.n_samples
    counts = apportion(shares, size)
    if min(counts) == 0:
        raise UserError(
            f"data.sampling.correct_fraction {config.correct_fraction} gives {counts[0]} correct "
            f"and {counts[1]} incorrect rows an epoch, and both are needed; bring it nearer to "
            "0.5" + ("" if config.n_samples is None else ", or raise data.sampling.n_samples")
        )
    if counts[0] > len(sides[0]) or counts[1] > len(sides[1]):
        raise UserError(
            f"data.sampling.n_samples {size:,} takes {counts[0]:,} correct and {counts[1]:,} "
            f"incorrect rows, there are {len(sides[0]):,} and {len(sides[1]):,}; lower it to "
            f"{most:,}, or take it away"
        )
    return Plan(sides, (Part(0, None, shares),), size)


def _most_balanced(right: int, wrong: int, share: Fraction) -> int:
    """Rows of an epoch that uses up the side that is short."""
    if right * (1 - share) <= wrong * share:
        return right + round(right * (1 - share) / share)
    return wrong + round(wrong * share / (1 - share))


def _binned(
    metadata: Metadata,
    candidates: Indices,
    config: SamplingConfig,
    total: int,
    make: MakeSource,
) -> Plan:
    stages = config.schedule
    sources: dict[str, Source] = {}
    for name, rows in rows_by_bin(metadata, candidates, config).items():
        if any(stage.weights.get(name) for stage in stages):
            check_not_empty(name, rows, metadata, candidates, config)
            sources[name] = _named(name, rows, make)
    ends = [math.ceil(as_written(stage.until) * total) for stage in stages]
    parts = [
        Part(start, end, tuple(as_written(stage.weights.get(name, 0)) for name in sources))
        for start, end, stage in zip([0, *ends], ends, stages, strict=False)
    ]
    parts.append(Part(total, None, parts[-1].shares))  # if training continues
    size = config.n_samples or sum(len(source) for source in sources.values())
    for part in parts:
        _check_shares(dict(zip(sources, part.shares, strict=True)), size)
    return Plan(tuple(sources.values()), tuple(parts), size)


def _check_shares(shares: dict[str, Fraction], size: int) -> None:
    """No bin may be rounded away, epoch after epoch."""
    for (name, share), count in zip(
        shares.items(), apportion(list(shares.values()), size), strict=True
    ):
        if share and not count:
            enough = math.ceil(sum(shares.values()) / share)
            raise UserError(
                f"data.sampling: the weight of the bin {name} comes to no row in an epoch of "
                f"{size:,}; set data.sampling.n_samples to {enough:,} or more, or change the weight"
            )


def _named(name: str, rows: Indices, make: MakeSource) -> Source:
    try:
        return make(rows)
    except UserError as error:
        where = "that fit no bin" if name == OTHER else f"of data.sampling.bins.{name}"
        raise UserError(f"the rows {where}: {error}") from error
