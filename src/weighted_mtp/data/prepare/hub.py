"""Data sets of the Hugging Face hub, read as a stream: `hub:OWNER/NAME`, `hub:OWNER/NAME:CONFIG`.

The revision is resolved to a commit first, so that a command that was stopped resumes with the
same data. Scripts that a data set may bring are never run.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.data.prepare.files import Unit, split_of
from weighted_mtp.data.prepare.work import Task

PREFIX = "hub:"
BLOCK = 64
"""Records that are one unit."""


@dataclass(frozen=True)
class HubData:
    """An opened data set.

    Attributes:
        revision: its commit.
        splits: by the hub's name: records, with a method `skip(n)`.
        sizes: how many each has, where that is known.
    """

    revision: str
    splits: Mapping[str, Any]
    sizes: Mapping[str, int]


def open_hub(name: str, revision: str | None, columns: Sequence[str] | None) -> HubData:
    """Open a data set for streaming.

    Args:
        name: `hub:OWNER/NAME` or `hub:OWNER/NAME:CONFIG`.
        revision: a branch, tag or commit; None is the newest.
        columns: those to read; None reads all.

    Raises:
        UserError: it cannot be reached, or is none that can be read without running its code.
    """
    import datasets
    from huggingface_hub import HfApi

    repository, _, config = name.removeprefix(PREFIX).partition(":")
    try:
        commit = HfApi().dataset_info(repository, revision=revision).sha
        loaded = datasets.load_dataset(
            repository,
            config or None,
            revision=commit,
            streaming=True,
            trust_remote_code=False,  # datasets before 4.0 would run a repository's script
        )
    except Exception as error:  # the hub's client raises many kinds, of several libraries
        raise UserError(
            f"{name}: cannot be read from the hub ({' '.join(str(error).split())[:200]}); without "
            "a network, download it elsewhere and give the folder as --source"
        ) from error
    splits, sizes = {}, {}
    for split, stream in loaded.items():
        names = stream.column_names
        chosen = [c for c in columns or names or () if names and c in names]
        splits[str(split)] = stream.select_columns(chosen) if chosen else stream
        known = (stream.info.splits or {}).get(split)
        if known is not None and known.num_examples:
            sizes[str(split)] = int(known.num_examples)
    return HubData(str(commit), splits, sizes)


def blocks(
    data: HubData, name: str, splits: Mapping[str, str | None], finished: Container[str]
) -> Iterator[Task]:
    """The units of a stream that are not finished, with their records.

    Args:
        splits: our name of each split; None if its records tell.

    Raises:
        UserError: the connection breaks.
    """
    for index, (hub_name, stream) in enumerate(data.splits.items()):
        number = 0
        while unit_name(index, hub_name, number) in finished:
            number += 1
        remaining = iter(stream.skip(number * BLOCK) if number else stream)
        while records := tuple(_taken(remaining, name, hub_name, number * BLOCK)):
            unit = unit_name(index, hub_name, number)
            if unit not in finished:
                place = f"{name}/{hub_name}"
                yield Task(
                    Unit(unit, place, "stream", splits[hub_name], first=number * BLOCK + 1), records
                )
            number += 1


def unit_name(index: int, hub_name: str, number: int) -> str:
    """Sorts by split and place."""
    return f"{index:02d}-{split_of(hub_name) or 'split'}-{number:07d}"


def _taken(stream: Iterable[Any], name: str, split: str, done: int) -> Iterator[dict[str, Any]]:
    try:
        yield from islice(stream, BLOCK)
    except Exception as error:  # as above, and any of the formats' readers
        raise UserError(
            f"{name}: the stream of {split} broke off after record {done} "
            f"({' '.join(str(error).split())[:200]}); the same command resumes there"
        ) from error
