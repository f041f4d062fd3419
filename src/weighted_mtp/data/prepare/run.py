"""Prepare a data set: convert every unit, put the parts together, report the outcome."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import check_output_directory
from weighted_mtp.core.input_files import read_json
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.processes import available_cores
from weighted_mtp.core.progress import Progress
from weighted_mtp.data.prepare.inputs import Input, open_input
from weighted_mtp.data.prepare.length import LengthLimit, counter
from weighted_mtp.data.prepare.merge import Merge
from weighted_mtp.data.prepare.parts import SUMMARY, Workspace, write_part, write_whole
from weighted_mtp.data.prepare.pool import run_tasks
from weighted_mtp.data.prepare.sources import SOURCES
from weighted_mtp.data.prepare.work import Job, Tally

_log = get_logger(__name__)


@dataclass(frozen=True)
class PrepareRequest:
    """What to prepare.

    Attributes:
        kind: a name in `SOURCES`.
        source: a file, a folder or `hub:OWNER/NAME`; None where the kind brings its own.
        out: the folder to write.
        limit: leave out longer rows; None keeps all.
        workers: processes; None takes one a core. The result does not depend on it.
        overwrite: replace what an earlier command wrote.
        split: what everything belongs to; None reads it from the names of files.
        renamed: our name of a field to the one it has in the source.
        revision: of a data set of the hub.
    """

    kind: str
    source: str | None
    out: Path
    limit: LengthLimit | None = None
    workers: int | None = None
    overwrite: bool = False
    split: str | None = None
    renamed: Mapping[str, str] | None = None
    revision: str | None = None

    @property
    def job(self) -> Job:
        """What the worker processes need of it."""
        return Job(self.kind, tuple(sorted((self.renamed or {}).items())), self.limit)


def prepare(request: PrepareRequest) -> dict[str, Any]:
    """Write `SPLIT.jsonl`, `problems.SPLIT.jsonl`, `rejected.jsonl` and `summary.json`.

    A command that was stopped resumes with the units that are missing. Files appear in `out` only
    once they are complete.

    Returns:
        the summary.

    Raises:
        UserError: the source cannot be read, `out` holds something else, or cannot be written.
    """
    if request.workers is not None and request.workers < 1:
        raise UserError("--workers must be at least 1")
    check_output_directory(request.out, "--out")
    source = SOURCES[request.kind]
    read = open_input(
        source,
        request.source,
        request.out,
        request.split,
        request.revision,
        request.renamed or {},
    )
    options = describe_options(request)
    identity = json.loads(json.dumps({**options, "source": read.identity()}))
    workspace = Workspace(request.out)
    check_target(workspace, identity, request.overwrite)
    with workspace.locked():
        manifest = workspace.manifest()
        if manifest is None or manifest["identity"] != identity:
            workspace.begin(identity, read.plan())
            manifest = workspace.manifest()
        assert manifest is not None
        _convert(request, workspace, read, manifest["plan"])
        read.check_unchanged()
        summary = _publish(workspace, read, manifest["plan"], options)
        workspace.remove()
    return summary


def describe_options(request: PrepareRequest) -> dict[str, Any]:
    """All that the result depends on besides the source."""
    limit = None
    if request.limit is not None:
        tokenizer = counter(request.limit).fingerprint
        limit = {**asdict(request.limit), "fingerprint": tokenizer}
    return {
        "kind": request.kind,
        "limit": limit,
        "split": request.split,
        "map": dict(sorted((request.renamed or {}).items())),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",  # decides what parses
    }


def check_target(workspace: Workspace, identity: Mapping[str, Any], overwrite: bool) -> None:
    """Refuse a folder that holds another result, or the beginning of one.

    Raises:
        UserError: it does.
    """
    out, manifest = workspace.out, workspace.manifest()
    if overwrite:
        return
    if manifest is not None:
        other = [key for key in identity if manifest["identity"].get(key) != identity[key]]
        if other:
            raise UserError(
                f"{out}: an unfinished command prepared this folder with another "
                f"{' and '.join(other)}; repeat that one, or add --overwrite to start over"
            )
        return
    there = [path.name for path in _results(out)]
    if there:
        raise UserError(
            f"{out}: holds {there[0]} already; choose another --out, or add --overwrite"
        )


def _convert(
    request: PrepareRequest, workspace: Workspace, read: Input, plan: Mapping[str, Any]
) -> None:
    finished = set(workspace.finished_names())
    if finished:
        _log.info("%s: %d parts are there already", request.out, len(finished))
    total, written, rejected = read.total(plan), 0, 0
    workers = request.workers or available_cores()
    if total:  # a stream may not know
        workers = max(1, min(workers, total - len(finished)))
    write = partial(write_part, request.job, str(workspace.folder.parent))
    start = time.monotonic()
    with Progress(total, f"preparing {request.kind}, part", done=len(finished)) as progress:
        for _, (rows, bad) in run_tasks(write, read.tasks(plan, finished), workers):
            written, rejected = written + rows, rejected + bad
            rate = written / max(time.monotonic() - start, 1e-9)
            progress.update(1, f"{written:,} rows, {rejected:,} rejected, {rate:,.0f} rows/s")


def _publish(
    workspace: Workspace, read: Input, plan: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Put the parts together; the summary goes first and comes last."""
    out = workspace.out
    merge = Merge(workspace, workspace.finished_names())
    try:
        merge.write()
        old = {path for path in _results(out) if path.name not in merge.names}
        (out / SUMMARY).unlink(missing_ok=True)
        merge.publish()
        for path in old:
            with suppress(OSError):
                path.unlink(missing_ok=True)
    finally:
        merge.discard()
    summary = {
        **options,
        "files": sorted(merge.names),
        "source": read.versions(plan),
        "splits": {
            split: {**describe(tally), "also_in_train": merge.shared.get(split, 0)}
            for split, tally in merge.tallies.items()
        },
    }
    write_whole(out / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def describe(tally: Tally) -> dict[str, Any]:
    """The counts of a split; `rows` is `written` and all `dropped`."""
    return {
        "records": tally.records,
        "rejected": tally.rejected,
        "problems": tally.problems,
        "rows": tally.rows,
        "written": tally.right + tally.wrong,
        "right": tally.right,
        "wrong": tally.wrong,
        "dropped": dict(sorted(tally.dropped.items())),
        "ignored_fields": dict(sorted(tally.ignored.items())),
        "difficulties": {
            label: {"right": right, "wrong": wrong}
            for label, (right, wrong) in sorted(tally.difficulties.items())
            if right or wrong
        },
    }


def _results(out: Path) -> list[Path]:
    """Files there that a command like this one wrote, or that it would replace."""
    names = {SUMMARY, "rejected.jsonl"}
    names |= {f"{split}.jsonl" for split in ("train", "validation", "test", "prompt")}
    try:
        named = read_json(out / SUMMARY)["files"]
        names |= {name for name in named if name.endswith(".jsonl") and Path(name).name == name}
    except (OSError, UserError, ValueError, LookupError, TypeError, AttributeError):
        pass
    return sorted(path for path in map(out.joinpath, names) if path.exists())
