"""The order in which a training reads rows.

Epoch 0, epoch 1, … one after the other make one endless sequence, which depends on nothing but the
rows, the settings and the seed. A training reads it from the start, a resumed one from wherever it
was, and every rank can tell what the others read.

Letters: M groups in an epoch, G groups asked for, L groups in a bin.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from weighted_mtp.core.config.sampling import SamplingConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.rows.metadata import Indices, Metadata
from weighted_mtp.data.sampling.pairs import pair_source
from weighted_mtp.data.sampling.plan import Part, Plan, apportion, make_plan
from weighted_mtp.data.sampling.sources import Rows, Source

# Third words of the seed. [seed, epoch] alone is the order of a uniform epoch, and 0 would be none.
_WALK, _MIX = 1, 2


class Walk:
    """A bin's groups, round and round in a fixed order drawn by seed: after any number of draws,
    and within any stretch of them, no group was drawn two times more often than another."""

    def __init__(self, source: Source, seed: int, number: int) -> None:
        self.source = source
        self._order = np.random.default_rng([seed, number, _WALK]).permutation(len(source))

    def take(self, start: int, count: int) -> Indices:
        """Groups `[count, group]` from the draw `start` on."""
        passes, items = np.divmod(np.arange(start, start + count), len(self._order))
        return self.source.groups(self._order[items], passes)

    def mark(self, count: int, used: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        """Mark in `used` the rows of the first `count` draws."""
        for start in range(0, count, len(self._order)):
            used[self.take(start, min(len(self._order), count - start))] = True
            if used[self.source.rows].all():
                return


class RowOrder:
    """Which groups (rows, or pairs of a right and a wrong row) a training reads, in what order.

    What an epoch holds:

    - `uniform`: every group once. With `n_samples`, that many different ones; ⌈all / n_samples⌉
      consecutive epochs, wherever they begin, leave none unseen.
    - `balanced`: correct and incorrect rows at `correct_fraction`, to the row; none twice. The side
      that is short is used up, the other takes turns as above.
    - `difficulty`, `curriculum`: every bin its share of each stage within the epoch, by largest
      remainders; two rows of a bin are drawn equally often, or one of them once more. Position p
      is in the first stage with p / total < `until`; beyond `total` the last stage continues.

    Except in a full `uniform` epoch, a bin is walked in one fixed order, from where the epoch
    before left off, and each stage's draws of an epoch are shuffled again. Each time round,
    pairs are those of the next epoch of `draw_pairs`, so an epoch that spans two rounds may hold
    one twice.

    Args:
        candidates: rows that may be drawn, each once, e.g. the correct ones.
        total: groups that the whole training reads.
        max_pairs_per_problem: read pairs, at most this many of a problem in an epoch (within each
            bin); None: single rows.

    Attributes:
        group: rows in a group, 1 or 2.
        epoch_size: groups in an epoch, the same for all.
        total: as given.

    Raises:
        UserError: the rows do not allow what the settings ask for.
    """

    def __init__(
        self,
        metadata: Metadata,
        candidates: Indices,
        config: SamplingConfig,
        seed: int,
        total: int,
        max_pairs_per_problem: int | None = None,
    ) -> None:
        cap, self._seed, self._rows = max_pairs_per_problem, seed, len(metadata)
        self.total = total
        self.group = 1 if cap is None else 2
        _check(candidates, config, pairs=cap is not None)

        def make(rows: Indices) -> Source:
            if cap is None:
                return Rows(rows)
            return pair_source(metadata, rows, cap, seed, config.length_balanced_pairs)

        self._plan: Plan = make_plan(metadata, candidates, config, total, make)
        self.epoch_size = self._plan.epoch_size
        sources = self._plan.sources
        self._whole = config.strategy == "uniform" and self.epoch_size == len(sources[0])
        self._walks = [Walk(source, seed, i) for i, source in enumerate(sources)]
        self._epochs: dict[int, Indices] = {}

    def take(self, position: int, count: int) -> Indices:
        """Rows `[count, group]` of the groups from `position` on, in groups since the training
        began. In pairs, the right row comes first."""
        taken: list[Indices] = [np.empty((0, self.group), dtype=np.int64)]
        while count > 0:
            epoch, offset = divmod(position, self.epoch_size)
            taken.append(self._epoch(epoch)[offset : offset + count])
            position, count = position + len(taken[-1]), count - len(taken[-1])
        return np.concatenate(taken)

    def used(self, total_groups: int) -> Indices:
        """The rows that the first `total_groups` groups hold, sorted, each once."""
        used = np.zeros(self._rows, dtype=np.bool_)
        epochs, rest = divmod(total_groups, self.epoch_size)
        for walk, count in zip(self._walks, self._drawn(epochs * self.epoch_size), strict=True):
            walk.mark(count, used)
        if rest:
            used[self._epoch(epochs)[:rest]] = True
        return np.flatnonzero(used)

    def _epoch(self, epoch: int) -> Indices:
        """Groups `[M, group]`; the last two epochs are kept, a step rarely touches more."""
        if epoch not in self._epochs:
            while len(self._epochs) > 1:
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = self._draw_whole(epoch) if self._whole else self._draw(epoch)
        return self._epochs[epoch]

    def _draw_whole(self, epoch: int) -> Indices:
        items = np.random.default_rng([self._seed, epoch]).permutation(self.epoch_size)
        return self._plan.sources[0].groups(items, np.full(len(items), epoch))

    def _draw(self, epoch: int) -> Indices:
        rng = np.random.default_rng([self._seed, epoch, _MIX])
        start = epoch * self.epoch_size
        drawn, mixed = self._drawn(start), []
        for part, size in self._pieces(start, start + self.epoch_size):
            counts = apportion(part.shares, size)
            groups = [w.take(d, c) for w, d, c in zip(self._walks, drawn, counts, strict=True)]
            mixed.append(np.concatenate(groups)[rng.permutation(size)])
            drawn = [d + c for d, c in zip(drawn, counts, strict=True)]
        return np.concatenate(mixed)

    def _drawn(self, position: int) -> list[int]:
        """How many of each bin were drawn before `position`, where an epoch begins."""
        drawn = [0] * len(self._walks)
        for part in self._plan.parts:
            stop = position if part.stop is None else min(part.stop, position)
            if part.start >= stop:
                continue
            to_border = -part.start % self.epoch_size
            head = min(to_border, stop - part.start)  # the end of an epoch already begun
            epochs, tail = divmod(stop - part.start - head, self.epoch_size)
            for size, times in ((head, 1), (self.epoch_size, epochs), (tail, 1)):
                counts = apportion(part.shares, size)
                drawn = [d + times * c for d, c in zip(drawn, counts, strict=True)]
        return drawn

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Part, int]]:
        """The parts of the training that a stretch of positions touches, with how much of each."""
        for part in self._plan.parts:
            end = stop if part.stop is None else min(part.stop, stop)
            size = end - max(part.start, start)
            if size > 0:
                yield part, size


def _check(candidates: Indices, config: SamplingConfig, pairs: bool) -> None:
    if not len(candidates):
        raise UserError("no row is left to draw from; check data.train and objective.rows")
    if pairs and config.strategy == "balanced":
        raise UserError(
            "data.sampling.strategy balanced has no meaning for objective.value.loss pairwise, "
            "where every pair holds a correct and an incorrect row; set it to uniform"
        )
    if config.length_balanced_pairs and not pairs:
        raise UserError(
            "data.sampling.length_balanced_pairs is for pairs: set objective.value.loss=pairwise, "
            "or take it away"
        )
