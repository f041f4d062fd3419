"""Texts on disk as soon as they are written, and the file of rows once all are.

OUT.work/journal.jsonl   the request, then a text on each line, in the order they ended
OUT                      the rows, in the order of the prompts; it replaces the journal
OUT.request.json         the request, the digest of OUT, and its figures
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.core.input_files import parse_json, read_json
from weighted_mtp.core.line_file import LineFile
from weighted_mtp.data.datasets import file_digest, write_jsonl
from weighted_mtp.evaluation.result_files import write_json
from weighted_mtp.pipelines.generating.rows import Written

_JOURNAL = "journal.jsonl"


def work_directory(out: Path) -> Path:
    """Where the journal of a file of rows is."""
    return out.with_name(out.name + ".work")


def request_file(out: Path) -> Path:
    """What a file of rows was made by."""
    return out.with_name(out.name + ".request.json")


def template_of_rows(path: Path) -> str | None:
    """Name of the template that `prepare self` wrote a file of rows with; None for other files."""
    try:
        request = read_json(request_file(path))["request"]
        return str(request["template"]).split()[0]
    except (OSError, ValueError, KeyError, TypeError, IndexError, UserError):
        return None


class TextJournal:
    """Texts that are done.

    A journal of the same request is gone on with, even with `overwrite`. A last line that a kill
    cut short is written again.

    Args:
        out: the file of rows.
        request: what the texts depend on.
        overwrite: discard another request's journal and rows.

    Attributes:
        texts: by number, those found on disk and those added.
        finished: figures of a file of rows that this request has made already; None if it has not.

    Raises:
        UserError: journal or rows are those of another request, or damaged.
    """

    def __init__(self, out: Path, request: Mapping[str, Any], overwrite: bool = False) -> None:
        self.out, self.path = out, work_directory(out) / _JOURNAL
        self.texts: dict[int, Written] = {}
        self.finished: dict[str, Any] | None = None
        self._request: dict[str, Any] = json.loads(json.dumps(request))
        self._lines = LineFile(self.path)
        if self.path.exists():
            self._read(overwrite)
        elif out.exists() and not overwrite:
            self.finished = self._figures()

    def add(self, number: int, text: Written) -> None:
        """Write a text to disk.

        Raises:
            UserError: it cannot be written.
        """
        try:
            if self._lines.is_empty and not self._lines.is_open:
                self._lines.append({"request": self._request})
            self._lines.append({"number": number, **text._asdict()})
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); {len(self.texts)} texts are "
                "kept there; free some space, then run the same command to go on"
            ) from error
        self.texts[number] = text

    def finish(self, figures: Mapping[str, Any]) -> None:
        """Write the rows, in the order of their numbers, and remove the journal.

        Raises:
            UserError: they cannot be written.
        """
        rows = (self.texts[number].row for number in sorted(self.texts))
        write_jsonl(self.out, (row for row in rows if row is not None))
        made = {"request": self._request, "sha256": file_digest(self.out), "figures": figures}
        write_json(request_file(self.out), made)
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; nothing is left to write."""
        self._lines.close()

    def __enter__(self) -> TextJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, overwrite: bool) -> None:
        for number, line in enumerate(self._lines.read()):
            try:
                record = parse_json(line)
                if number:
                    values = {name: record[name] for name in Written._fields}
                    self.texts[int(record["number"])] = Written(**values)
                else:
                    there = dict(record["request"])
            except (ValueError, TypeError, KeyError) as error:
                if overwrite:
                    self.texts = {}
                    self._lines.discard()
                    return
                raise UserError(
                    f"{self.path}, line {number + 1}: broken ({one_line(error, 120)}); add "
                    "--overwrite to start over"
                ) from error
            if not number and there != self._request:
                if overwrite:
                    return
                raise self._other(self.path, there)

    def _figures(self) -> dict[str, Any]:
        path = request_file(self.out)
        try:
            made = read_json(path)
            there, digest, figures = made["request"], made["sha256"], dict(made["figures"])
        except (OSError, UserError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.out}: exists, and {path.name} beside it does not say that this command "
                "wrote it; choose another --out, or add --overwrite"
            ) from error
        if there != self._request:
            raise self._other(self.out, there)
        if digest != file_digest(self.out):
            raise UserError(
                f"{self.out}: was changed since it was written; choose another --out, or add "
                "--overwrite"
            )
        return figures

    def _other(self, path: Path, there: Mapping[str, Any]) -> UserError:
        keys = [key for key in self._request if there.get(key) != self._request[key]] or ["request"]
        key = keys[0]
        values = [f"{json.dumps(x.get(key)):.60}" for x in (there, self._request)]
        return UserError(
            f"{path}: was made with another {' and '.join(keys)} ({key}: {values[0]}, now "
            f"{values[1]}); choose another --out, or add --overwrite"
        )
