"""A run and its remote directory meet: at the start of a training, and when it is resumed where the
run directory is missing or has fallen behind."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from weighted_mtp.core.config.recipe import Recipe, load_recipe_file
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
def telling(url: str | None, what: str) -> Iterator[None]:
    """Say which remote directory cannot be `what`, and what to do.

    Raises:
        UserError: something failed there.
    """
    try:
        yield
    except RemoteError as error:
        raise UserError(f"training.remote {url} cannot be {what}: {error}; {REMEDY}") from error


@contextmanager
def _as_file(content: bytes) -> Iterator[Path]:
    """A config.yaml for as long as it is looked at."""
    with tempfile.TemporaryDirectory() as folder:
        fetched = Path(folder) / CONFIG
        fetched.write_bytes(content)
        yield fetched


def meet(url: str | None, run_dir: Path, resume: bool) -> None:
    """Before anything else is read: can the remote directory be written to, and is it this run's?
    When resuming, fetch its newest checkpoint if that is newer than what is in `run_dir`. Every
    process calls this.

    Args:
        url: `training.remote`; None: there is none, and nothing to do.

    Raises:
        UserError: it cannot be reached, or holds another run.
    """
    if url is None:
        return

    def act() -> None:
        remote = Remote(url)
        with telling(url, "used"):
            _probe(Remote(url, waits=(1.0,)), run_dir)  # a wrong name is found soon
            _check_owner(remote, run_dir, resume)
            if resume:
                fetch(remote, run_dir)

    def say() -> None:
        parts = (path for path in run_dir.glob("checkpoints/*.partial/**/*") if path.is_file())
        log.info("%s: %d MB so far", url, sum(path.stat().st_size for path in parts) // MB)

    on_main(act, say)


def share_recipe(url: str | None, run_dir: Path) -> None:
    """Copy config.yaml to the remote directory: a checkpoint there is one of a run. Every process
    calls this.

    Raises:
        UserError: it cannot be written.
    """
    if url is None:
        return

    def act() -> None:
        with telling(url, "written to"):
            Remote(url).write(CONFIG, (run_dir / CONFIG).read_bytes())

    on_main(act)


def saved_recipe(run_dir: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe a run was started with, for resuming it, with `overrides` on top. It is read from
    `training.remote` (which may be among the overrides) if that is further on.

    Raises:
        UserError: `run_dir` holds no run, or an override would change what the checkpoint fixes.
    """
    with newest_config(run_dir, overrides) as (config, step):
        saved, changed = load_recipe_file(config), load_recipe_file(config, overrides)
    refuse_changes(run_dir, Resume(saved, changed, step))
    return changed


def has_run(run_dir: Path, overrides: Sequence[str] = ()) -> bool:
    """Whether there is a run to resume, here or in the `training.remote` of the overrides.

    Raises:
        UserError: the remote directory cannot be read.
    """
    if (run_dir / CONFIG).exists():
        return True
    url = _url(run_dir / CONFIG, overrides)
    with telling(url, "read"):
        return url is not None and Remote(url).read(CONFIG) is not None


@contextmanager
def newest_config(run_dir: Path, overrides: Sequence[str]) -> Iterator[tuple[Path, int]]:
    """The config.yaml of the run to resume, and the steps that are done: the remote directory's
    where that is further on, for which `run_dir` need not be there.

    Args:
        overrides: `section.key=value`, among which training.remote may be.

    Raises:
        UserError: there is no run in either place.
    """
    local = run_dir / CONFIG
    url = _url(local, overrides)
    remote, content, newer = None if url is None else Remote(url), None, None
    with telling(url, "read"):
        if remote is not None:
            newer = _newer(remote, run_dir)
            if newer is not None or not local.exists():
                content = remote.read(CONFIG)
    if content is not None:
        with _as_file(content) as fetched:
            yield fetched, newer or 0
    elif local.exists():
        complete = complete_checkpoints(run_dir)
        yield local, checkpoint_step(complete[-1]) if complete else 0
    else:
        where = "" if url is None else f", and none in {url}"
        hint = ", or say where it is: --set training.remote=URL" if url is None else ""
        raise UserError(f"{run_dir}: no run to resume{where}; start it without --resume{hint}")


def fetch(remote: Remote, run_dir: Path) -> None:
    """Bring the newest complete checkpoint of a remote directory to `run_dir`, with config.yaml and
    metrics.jsonl, if it is newer than those there. One process calls this.

    The checkpoint is put together under another name and renamed last: a kill at any moment leaves
    what was there before, and the next attempt begins anew.

    Raises:
        RemoteError: something cannot be read.
    """
    step = _newer(remote, run_dir)
    if step is None and (run_dir / CONFIG).exists():
        return
    config = remote.read(CONFIG)
    if config is None:
        return
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
    """The newest complete checkpoint there, if `run_dir` has none as new."""
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
        UserError: it shows up in `run_dir`, whose checkpoints would be copied onto themselves.
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
    """Raise `UserError` where a new run, or one with another model, would mix with that there."""
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
    with _as_file(content) as fetched:
        fixed = refused_changes(Resume(load_recipe_file(local), load_recipe_file(fetched), 0))
    if fixed:
        raise UserError(
            f"training.remote {remote.url} holds another run than {run_dir}: {fixed[0].key} is not "
            "the same; give another URL"
        )


def _url(config: Path, overrides: Sequence[str]) -> str | None:
    """training.remote, from the overrides or from config.yaml, if that is there."""
    if config.exists():
        return load_recipe_file(config, overrides).training.remote
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
