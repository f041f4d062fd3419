"""Compare a run with its remote directory: when a training starts, and when a run is resumed whose
local directory is missing or has fewer steps."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from weighted_mtp.core.config.recipe import Recipe, load_recipe_file, with_overrides
from weighted_mtp.core.config.section import remote_url
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.model_folder import complete_checkpoints
from weighted_mtp.pipelines.checkpoint_utils import (
    checkpoint_path,
    checkpoint_step,
    give_name,
    partial_path,
)
from weighted_mtp.pipelines.checkpointing.remote_copies import (
    MB,
    stored_files,
    stored_folder,
    stored_steps,
)
from weighted_mtp.pipelines.checkpointing.remote_directory import Remote, RemoteError
from weighted_mtp.pipelines.checkpointing.resume_rules import Resume
from weighted_mtp.pipelines.checkpointing.resuming import refuse_changes, refused_changes
from weighted_mtp.runtime.main_process import on_main

log = get_logger(__name__)

CONFIG, METRICS = "config.yaml", "metrics.jsonl"
REMEDY = (
    "check its name, your credentials and the network, or go without: --set training.remote=null"
)


@contextmanager
def as_user_error(url: str | None, what: str) -> Iterator[None]:
    """Turn a failure of the remote directory into a `UserError` that says what to do.

    Args:
        what: what cannot be done with it: "used", "read", …

    Raises:
        UserError: something failed there.
    """
    try:
        yield
    except RemoteError as error:
        raise UserError(f"training.remote {url} cannot be {what}: {error}; {REMEDY}") from error


def _parsed(content: bytes) -> Recipe:
    """The recipe in a config.yaml that was read from a remote directory."""
    with tempfile.TemporaryDirectory() as folder:
        fetched = Path(folder) / CONFIG
        fetched.write_bytes(content)
        return load_recipe_file(fetched)


def sync_with_remote(recipe: Recipe, run_dir: Path, resume: bool) -> None:
    """Before anything else is read, check that `training.remote` can be written to and belongs to
    this run. When resuming, fetch its newest checkpoint if that is newer than those in `run_dir`.
    Every process calls this.

    Args:
        recipe: what the run is to continue with.

    Raises:
        UserError: the remote directory cannot be used, holds another run, or its run cannot be
            resumed with this recipe.
    """
    url = recipe.training.remote
    if url is None:
        return

    def act() -> None:
        remote = Remote(url)
        with as_user_error(url, "used"):
            _probe(Remote(url, waits=(1.0,)), run_dir)  # report a wrong name after a second
            _check_owner(remote, run_dir, resume)
            if resume:
                fetch(remote, run_dir, recipe)

    def say() -> None:
        parts = (path for path in run_dir.glob("checkpoints/*.partial/**/*") if path.is_file())
        log.info("%s: %d MB so far", url, sum(path.stat().st_size for path in parts) // MB)

    on_main(act, say)


def share_recipe(url: str | None, run_dir: Path) -> None:
    """Copy config.yaml to the remote directory, so that checkpoints there belong to a run. Every
    process calls this.

    Raises:
        UserError: it cannot be written.
    """
    if url is None:
        return

    def act() -> None:
        with as_user_error(url, "written to"):
            Remote(url).write(CONFIG, (run_dir / CONFIG).read_bytes())

    on_main(act)


def has_run(run_dir: Path, overrides: Sequence[str] = ()) -> bool:
    """Whether there is a run to resume, here or in the `training.remote` of the overrides.

    Raises:
        UserError: the remote directory cannot be read.
    """
    if (run_dir / CONFIG).exists():
        return True
    url = _given_url(overrides)
    with as_user_error(url, "read"):
        return url is not None and Remote(url).read(CONFIG) is not None


def find_run(run_dir: Path, overrides: Sequence[str] = (), asked: Recipe | None = None) -> Resume:
    """Find the run to resume, here or in `training.remote`, whichever has done more steps, and read
    its recipe. `run_dir` need not exist if the run is remote.

    Args:
        overrides: `section.key=value`, on top of the run's recipe; may set training.remote.
        asked: a whole recipe to resume with, in place of `overrides`.

    Raises:
        UserError: there is no run in either place, or a change that the checkpoint does not allow.
    """
    local = run_dir / CONFIG
    saved = load_recipe_file(local) if local.exists() else None
    changed = asked
    if asked is None and saved is not None:
        changed = with_overrides(saved, overrides, str(local))
    url = _given_url(overrides) if changed is None else changed.training.remote
    content, newer = None, None
    if url is not None:
        remote = Remote(url)
        with as_user_error(url, "read"):
            newer = _newer(remote, run_dir)
            if newer is not None or saved is None:
                content = remote.read(CONFIG)
    if content is not None:
        saved, step = _parsed(content), newer or 0
        changed = asked or with_overrides(saved, overrides, str(local))
    elif saved is not None:
        complete = complete_checkpoints(run_dir)
        step = checkpoint_step(complete[-1]) if complete else 0
    else:
        where = "" if url is None else f", and none in {url}"
        hint = ", or say where it is: --set training.remote=URL" if url is None else ""
        raise UserError(f"{run_dir}: no run to resume{where}; start it without --resume{hint}")
    resume = Resume(saved, changed or saved, step)
    refuse_changes(run_dir, resume)
    return resume


def fetch(remote: Remote, run_dir: Path, asked: Recipe | None = None) -> None:
    """Fetch the newest complete checkpoint of a remote directory into `run_dir`, with config.yaml
    and metrics.jsonl, if it is newer than the local ones. One process calls this.

    The checkpoint is built under another name and renamed last: a kill at any moment leaves what
    was there before, and the next attempt starts over.

    Args:
        asked: the recipe that the run is to continue with.

    Raises:
        RemoteError: something cannot be read.
        UserError: the run cannot be resumed with `asked`; nothing was fetched.
    """
    step = _newer(remote, run_dir)
    if step is None and (run_dir / CONFIG).exists():
        return
    config = remote.read(CONFIG)
    if config is None:
        return
    if asked is not None:
        refuse_changes(run_dir, Resume(_parsed(config), asked, step or 0))
    run_dir.mkdir(parents=True, exist_ok=True)
    if step is not None:
        _fetch_files(remote, step, partial_path(checkpoint_path(run_dir, step)))
        metrics = remote.read(METRICS)
        if metrics is not None:
            _replace(run_dir / METRICS, metrics)
    _replace(run_dir / CONFIG, config)
    if step is not None:
        give_name(checkpoint_path(run_dir, step))


def _fetch_files(remote: Remote, step: int, folder: Path) -> None:
    files = stored_files(remote, step) or {}
    size = sum(files.values())
    log.info("fetching step %d from %s: %d MB", step, remote.url, -(-size // MB))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, n in files.items():
        remote.get(f"{stored_folder(step)}/{name}", folder / name, n)


def _newer(remote: Remote, run_dir: Path) -> int | None:
    """The step of the newest complete checkpoint there; None if `run_dir` has one as new."""
    here = [checkpoint_step(path) for path in complete_checkpoints(run_dir)[-1:]]
    for step in reversed(stored_steps(remote)[1]):
        if here and step <= here[0]:
            return None
        if stored_files(remote, step) is not None:
            return step
    return None


def _probe(remote: Remote, run_dir: Path) -> None:
    """Write a small file and delete it again.

    Raises:
        UserError: the file appears in `run_dir`: checkpoints would be copied onto themselves.
    """
    name, new = f".probe-{uuid.uuid4().hex}", not run_dir.exists()
    remote.write(name, b"weighted-mtp was here\n")
    found = (run_dir / name).exists()
    remote.remove(name)
    if found:
        if new:
            run_dir.rmdir()
        raise UserError(
            f"training.remote {remote.url} is the run directory itself; give another place"
        )


def _check_owner(remote: Remote, run_dir: Path, resume: bool) -> None:
    """Raise `UserError` where the remote directory holds another run than this one."""
    content = remote.read(CONFIG)
    if content is None:
        return
    local = run_dir / CONFIG
    if not local.exists():
        if not resume:
            raise UserError(
                f"training.remote {remote.url} holds a run already; add --resume to continue it, "
                "give another URL, or delete what is there"
            )
        return
    fixed = refused_changes(Resume(load_recipe_file(local), _parsed(content), 0))
    if fixed:
        raise UserError(
            f"training.remote {remote.url} holds another run than {run_dir}: {fixed[0].key} is not "
            "the same; give another URL"
        )


def _given_url(overrides: Sequence[str]) -> str | None:
    """The training.remote that the overrides set."""
    given = [o.partition("=")[2] for o in overrides if o.startswith("training.remote=")]
    url = yaml.safe_load(given[-1]) if given else None
    try:
        return None if url is None else remote_url(str(url))
    except ValueError as error:
        raise UserError(str(error)) from error


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
