"""Data sets from elsewhere, as labelled rows and problems with tests (docs/data.md).

A file is listed and cut into units (`files`), each unit is converted by a source (`sources/`) and
written as a part (`parts`), by several processes (`pool`); at the end the parts are put together
(`merge`). `run.prepare` does it all; `check.check` only looks.
"""
