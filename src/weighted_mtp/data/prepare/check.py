"""Look through rows without writing anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b

import numpy as np

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.processes import available_cores
from weighted_mtp.core.progress import Progress
from weighted_mtp.core.types import Row
from weighted_mtp.data.prepare.inputs import open_input
from weighted_mtp.data.prepare.merge import CONTRADICTORY, DUPLICATE, Codes, judge
from weighted_mtp.data.prepare.pool import run_tasks
from weighted_mtp.data.prepare.run import PrepareRequest
from weighted_mtp.data.prepare.sources import SOURCES
from weighted_mtp.data.prepare.work import Job, Rejection, Tally, Task, convert_unit

SHOWN = 5
"""Bad records that are kept, of each unit and in all."""


@dataclass
class SplitFindings:
    """What is in a split.

    Attributes:
        tally: its counts; duplicates and contradictions are among `dropped`.
        problems: distinct task ids; only_right, only_wrong: of them, those with rows of one label.
    """

    tally: Tally = field(default_factory=Tally)
    problems: int = 0
    only_right: int = 0
    only_wrong: int = 0


@dataclass
class Findings:
    """What a look through a source found.

    Attributes:
        bad: the first bad records, in order.
    """

    bad: list[Rejection]
    splits: dict[str, SplitFindings]

    @property
    def rejected(self) -> int:
        """Bad records."""
        return sum(split.tally.rejected for split in self.splits.values())

    @property
    def records(self) -> int:
        """All records."""
        return sum(split.tally.records for split in self.splits.values())


@dataclass
class _Seen:
    """Of one unit: bad records, counts, and by split a code for each row and for its problem."""

    bad: list[Rejection]
    tallies: dict[str, Tally]
    rows: dict[str, Codes]
    problems: dict[str, Codes]


def check(request: PrepareRequest) -> Findings:
    """Convert every record and count; `request.out` is not touched.

    Raises:
        UserError: the source cannot be read.
    """
    source = SOURCES[request.kind]
    renamed = request.renamed or {}
    read = open_input(source, request.source, None, request.split, request.revision, renamed)
    plan = read.plan()
    total, workers = read.total(plan), request.workers or available_cores()
    if workers < 1:
        raise UserError("--workers must be at least 1")
    workers = max(1, min(workers, total)) if total else workers
    seen: dict[str, _Seen] = {}
    with Progress(total, "checking, part") as progress:
        look = partial(look_through, request.job)
        for task, found in run_tasks(look, read.tasks(plan, ()), workers):
            seen[task.unit.name] = found
            progress.update()
    units = [seen[name] for name in sorted(seen)]
    splits = {split: None for unit in units for split in unit.tallies}
    return Findings(
        [bad for unit in units for bad in unit.bad][:SHOWN],
        {split: _together(split, units) for split in splits},
    )


def look_through(job: Job, task: Task) -> _Seen:
    """Convert a unit and keep what counting needs: 16 bytes a row."""
    bad: list[Rejection] = []
    tallies: dict[str, Tally] = {}
    rows: dict[str, list[int]] = {}
    problems: dict[str, list[int]] = {}
    for converted in convert_unit(job, task):
        tallies.setdefault(converted.split, Tally()).add(converted)
        if converted.rejection is not None and len(bad) < SHOWN:
            bad.append(converted.rejection)
        if converted.outcome is not None:
            rows.setdefault(converted.split, []).extend(converted.codes)
            codes = [problem_code(row) for row in converted.outcome.rows]
            problems.setdefault(converted.split, []).extend(codes)
    return _Seen(bad, tallies, _arrays(rows), _arrays(problems))


def problem_code(row: Row) -> int:
    """As `work.row_code`, of the task id."""
    number = int.from_bytes(blake2b(row["task_id"].encode(), digest_size=8).digest(), "little")
    return number >> 1 << 1 | row["is_correct"]


def _together(split: str, units: list[_Seen]) -> SplitFindings:
    found = SplitFindings()
    for unit in units:
        if split in unit.tallies:
            found.tally.merge(unit.tallies[split])
    verdict = judge(_joined(unit.rows.get(split) for unit in units))
    found.tally.dropped["duplicate"] += int((verdict == DUPLICATE).sum())
    found.tally.dropped["contradictory"] += int((verdict == CONTRADICTORY).sum())
    labels = np.unique(_joined(unit.problems.get(split) for unit in units))
    ids, count = np.unique(labels >> np.uint64(1), return_counts=True)
    right = np.unique(labels[(labels & np.uint64(1)) == 1] >> np.uint64(1))
    one_label = ids[count == 1]
    found.problems = len(ids)
    found.only_right = int(np.isin(one_label, right).sum())
    found.only_wrong = len(one_label) - found.only_right
    return found


def _arrays(numbers: dict[str, list[int]]) -> dict[str, Codes]:
    return {split: np.array(codes, np.uint64) for split, codes in numbers.items()}


def _joined(parts: Iterator[Codes | None]) -> Codes:
    return np.concatenate([np.zeros(0, np.uint64), *(p for p in parts if p is not None)])
