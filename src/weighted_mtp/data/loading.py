"""What a training reads: an endless sequence of groups, cut into the micro-batches of each step.

Position p of the sequence is the same group on every rank and in every process, so that any process
can make the batches of any step, and a run resumes at the very group where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from weighted_mtp.core.processes import end_with_parent
from weighted_mtp.data.batches import Batch, Example
from weighted_mtp.data.packing import Cutter, Group
from weighted_mtp.data.rows.metadata import Indices
from weighted_mtp.data.sampling import RowOrder

READ_AHEAD = 1 << 40
"""Groups; more than any training reads."""


class Groups(Protocol):
    """The groups of a training, in the order it reads them. They need not all be different.

    Attributes:
        planned: how many the order was planned for; a run that is resumed keeps the plan.
        epoch_size: how many are read before any comes again.
    """

    planned: int
    epoch_size: int

    def take(self, position: int, count: int) -> list[Group]:
        """The groups at `position` and after. Those from which nothing can be learned are left out,
        so there may be fewer than `count`."""
        ...


class ShuffledGroups:
    """Every group once an epoch, each epoch in an order of its own."""

    def __init__(self, groups: Sequence[Group], seed: int) -> None:
        self.groups, self.seed, self.planned = groups, seed, 0
        self.epoch_size = len(groups)

    def __len__(self) -> int:
        return len(self.groups)

    def take(self, position: int, count: int) -> list[Group]:
        chosen: list[int] = []
        while len(chosen) < count:
            epoch, offset = divmod(position + len(chosen), len(self.groups))
            order = _permutation(len(self.groups), self.seed, epoch)
            chosen += order[offset : offset + count - len(chosen)].tolist()
        groups = (self.groups[i] for i in chosen)
        return [group for group in groups if any(example.has_targets for example in group)]


class Examples(Protocol):
    """Tokenised rows by their number in the file."""

    def __getitem__(self, row: int) -> Example: ...


class RowGroups:
    """Rows, or pairs of rows, as a sampling strategy draws them."""

    def __init__(self, order: RowOrder, examples: Examples) -> None:
        self.order, self.examples, self.planned = order, examples, order.total
        self.epoch_size = order.epoch_size

    def take(self, position: int, count: int) -> list[Group]:
        drawn = self.order.take(position, count).tolist()
        groups = ([self.examples[row] for row in rows] for rows in drawn)
        # A prompt may fill the whole length; a pair needs both.
        return [group for group in groups if all(example.has_targets for example in group)]


class StepReader:
    """Reads the micro-batches of one rank, step by step, ahead of the training if it has workers.

    Args:
        groups: what to read; picklable if there are workers.
        cutter: how a step is cut.
        groups_per_step: over all ranks.
        workers: processes that make batches while the step before is trained; 0 makes them when
            they are asked for.
        pin_memory: for a GPU.
    """

    def __init__(
        self,
        groups: Groups,
        cutter: Cutter,
        groups_per_step: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.groups, self.groups_per_step = groups, groups_per_step
        self.position = 0
        self._steps = _Steps(groups, cutter, groups_per_step, rank, world)
        self._workers, self._pin_memory = workers, pin_memory
        self._ahead: Iterator[list[Batch]] | None = None

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        """The micro-batches of the next step."""
        if self._ahead is None:
            self._ahead = iter(self._loader())
        batches = next(self._ahead)
        self.position += self.groups_per_step
        return batches

    def last_examples(self) -> list[Example]:
        """All examples of the step that was read last, those of other ranks too."""
        groups = self.groups.take(self.position - self.groups_per_step, self.groups_per_step)
        return [example for group in groups for example in group]

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "planned": self.groups.planned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.position = int(state["position"])
        self._ahead = None

    def _loader(self) -> DataLoader[list[Batch]]:
        return DataLoader(
            self._steps,
            batch_size=None,
            sampler=range(self.position, self.position + READ_AHEAD, self.groups_per_step),
            num_workers=self._workers,
            pin_memory=self._pin_memory,
            collate_fn=_as_it_is,
            worker_init_fn=end_with_parent if self._workers else None,
            generator=torch.Generator(),  # its own: the run's must not depend on workers
        )


class _Steps(Dataset[list[Batch]]):
    """Item p: the micro-batches of the step whose first group is p."""

    def __init__(
        self, groups: Groups, cutter: Cutter, groups_per_step: int, rank: int, world: int
    ) -> None:
        self.groups, self.cutter, self.groups_per_step = groups, cutter, groups_per_step
        self.rank, self.world = rank, world

    def __getitem__(self, position: int) -> list[Batch]:
        groups = self.groups.take(position, self.groups_per_step)
        return self.cutter.cut(groups, self.rank, self.world)


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> Indices:
    return np.random.default_rng([seed, epoch]).permutation(size)


def _as_it_is(batches: list[Batch]) -> list[Batch]:
    return batches
