"""A remote directory and the copies made there, on file systems that fail when they are told to."""

import json
import logging
import threading
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tests.integration.helpers_training import tiny_recipe

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.config.section import remote_url
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.model_folder import complete_checkpoints
from weighted_mtp.pipelines.checkpoint_utils import checkpoint_path, drop_old, partial_path
from weighted_mtp.pipelines.checkpointing import remote_directory as remote_module
from weighted_mtp.pipelines.checkpointing.remote_copies import Copies, stored_files, stored_steps
from weighted_mtp.pipelines.checkpointing.remote_directory import Remote, RemoteError, in_brief
from weighted_mtp.pipelines.checkpointing.remote_runs import fetch, find_run, sync_with_remote
from weighted_mtp.runtime import distributed


class Flaky(MemoryFileSystem):
    """Keeps a list of what was done, and does what `meet` says when something is."""

    protocol = "flaky"
    store, pseudo_dirs, done = {}, [""], []
    meet = staticmethod(lambda what, path: None)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).replace("flaky://", "memory://"))

    def _met(self, what, path):
        path = self._strip_protocol(path)
        self.meet(what, path)
        self.done.append((what, path.removeprefix("/run/")))

    def put_file(self, lpath, rpath, **kwargs):
        self._met("put", rpath)
        super().put_file(lpath, rpath, **kwargs)

    def pipe_file(self, path, value, **kwargs):
        self._met("write", path)
        super().pipe_file(path, value, **kwargs)

    def cat_file(self, path, **kwargs):
        self._met("read", path)
        return super().cat_file(path, **kwargs)

    def rm(self, path, **kwargs):
        if self.exists(path):
            self._met("rm", path)
        super().rm(path, **kwargs)


@pytest.fixture(autouse=True)
def flaky(monkeypatch):
    """An empty file system at flaky://; attempts follow each other without a wait."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(remote_module, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(Flaky, "meet", staticmethod(lambda what, path: None))
    for kept in (Flaky.store, Flaky.done, MemoryFileSystem.store):
        kept.clear()
    return Flaky


@pytest.fixture(params=["memory", "file"])
def remote(request, tmp_path) -> Remote:
    return Remote("memory://box/run" if request.param == "memory" else f"file://{tmp_path}/box/run")


def save(run_dir: Path, step: int, size: int = 10) -> Path:
    """A complete checkpoint, as far as copies are concerned."""
    folder = checkpoint_path(run_dir, step)
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights").write_bytes(bytes([step]) * size)
    (folder / "rng-0.pt").write_bytes(b"")
    (folder / "trainer.json").write_text(json.dumps({"step": step, "world_size": 1}))
    (folder / "COMPLETE").touch()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": step}) + "\n")
    return folder


def remote_recipe(folder: Path, **changes) -> Recipe:
    """A recipe whose checkpoints are copied to flaky://run."""
    return tiny_recipe(folder / "rows.jsonl", training__remote="flaky://run", **changes)


def finish(copies: Copies) -> None:
    """Wait for the copies that were begun."""
    worker = copies._worker
    if worker is not None:
        worker.join()


# --- addresses -----------------------------------------------------------------------------------

SECRETS = [
    "s3://AKIA:hunter2@box/run",
    "sftp://me:hunter2@host/run",
    "ftp://me:hun/ter2@host/run",
    "https://host/run?sig=hunter2",
    "simplecache::ftp://me:hunter2@host/run",
]


@pytest.mark.parametrize("url", SECRETS)
def test_a_password_is_refused_and_not_repeated(url, tmp_path):
    for read in (
        lambda: tiny_recipe(tmp_path / "rows.jsonl", training__remote=url),
        lambda: find_run(tmp_path / "absent", [f"training.remote={url}"]),
    ):
        with pytest.raises(UserError, match=r"training\.remote holds a password.*AWS_PROFILE") as e:
            read()
        assert "ter2" not in str(e.value)


@pytest.mark.parametrize("url", ["runs/here", "s3://", "s3:///", "box", "://box"])
def test_what_is_no_address(url, tmp_path):
    with pytest.raises(UserError, match=r"training\.remote is no URL of a directory; write it as"):
        tiny_recipe(tmp_path / "rows.jsonl", training__remote=url)


@pytest.mark.parametrize(
    "url",
    ["s3://box/a:b@c", "hdfs://host:9000/runs", "sftp://me@host/runs", "memory://x", "gs://x"],
)
def test_an_address(url):
    assert remote_url(url) == remote_url(url + "/") == url


@pytest.mark.parametrize(("protocol", "extra"), [("s3", "s3"), ("gs", "gcs"), ("gcs", "gcs")])
def test_a_missing_package_is_named(protocol, extra, monkeypatch):
    def missing(url):
        raise ImportError(f"Install what is needed for {protocol}")

    monkeypatch.setattr(remote_module, "url_to_fs", missing)
    with pytest.raises(UserError, match=rf"is missing; pip install 'weighted-mtp\[{extra}\]'"):
        Remote(f"{protocol}://box/run")
    with pytest.raises(UserError, match="Install what is needed for"):
        Remote("abfs://box/run")


def test_an_unknown_protocol():
    with pytest.raises(UserError, match=r"nope://box: .*Protocol not known: nope"):
        Remote("nope://box")


# --- a directory ---------------------------------------------------------------------------------


def test_files_go_there_and_come_back(remote, tmp_path):
    source, target = tmp_path / "source", tmp_path / "new" / "folder" / "target"
    source.write_bytes(b"0123456789")
    assert remote.files("checkpoints") == {}
    assert remote.read("a/b") is None
    remote.remove("a")
    remote.write("a/b", b"first")
    remote.write("a/b", b"second")
    remote.put(source, "a/.c/d")
    assert remote.files("a") == {"b": 6, ".c/d": 10}
    assert remote.read("a/b") == b"second"
    remote.get("a/.c/d", target, 10)
    assert target.read_bytes() == b"0123456789"
    remote.remove("a/b")
    assert remote.files("a") == {".c/d": 10}
    remote.remove("a")
    assert remote.files("a") == {}


def test_a_file_of_another_size_has_not_arrived(remote, tmp_path):
    remote.write("a", b"01234")
    with pytest.raises(RemoteError, match="/run/a: OSError: 5 bytes arrived, of 6"):
        remote.get("a", tmp_path / "a", 6)


def test_what_fails_is_tried_again(flaky, monkeypatch):
    failures = iter([True, True, False, True, True, True])

    def meet(what, path):
        if next(failures):
            raise OSError("no route to https://me:hunter2@host")

    monkeypatch.setattr(flaky, "meet", staticmethod(meet))
    remote = Remote("flaky://run")
    remote.write("a", b"1")
    with pytest.raises(RemoteError) as error:
        remote.write("a", b"2")
    assert str(error.value) == "flaky://run/a: OSError: no route to https://host"
    assert in_brief(OSError("x\n y")) == "OSError: x y"


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "..\\x", ""])
def test_no_name_leads_out_of_a_checkpoint(name, remote):
    listed = json.dumps({"files": {name: 1}}).encode()
    remote.write("checkpoints/step-00000001/COMPLETE", listed)
    with pytest.raises(RemoteError, match="is not the name of a file"):
        stored_files(remote, 1)


def test_only_a_whole_marker_makes_a_checkpoint(remote, tmp_path):
    for step, marker in {1: b'{"files": {"x": 2}}', 2: b'{"files": {"x"', 3: None, 4: b""}.items():
        remote.write(f"checkpoints/step-{step:08d}/x", b"xy")
        if marker is not None:
            remote.write(f"checkpoints/step-{step:08d}/COMPLETE", marker)
    remote.write("checkpoints/notes/COMPLETE", b"")
    remote.write("config.yaml", b"pipeline: baseline\n")
    assert stored_steps(remote) == ([1, 2, 3, 4], [1, 2, 4])
    assert [stored_files(remote, step) for step in (1, 2, 3, 4)] == [{"x": 2}, None, None, {"x": 2}]
    remote.remove("checkpoints/step-00000004")
    fetch(remote, tmp_path / "run")
    assert complete_checkpoints(tmp_path / "run") == [checkpoint_path(tmp_path / "run", 1)]


# --- copies --------------------------------------------------------------------------------------


def test_the_marker_comes_last_and_goes_first(flaky, tmp_path):
    copies = Copies(tmp_path, 1, "flaky://run")
    for step in (1, 2):
        copies.offer(save(tmp_path, step), ())
        finish(copies)
    names = ["model/weights", "rng-0.pt", "trainer.json"]
    folders = [f"checkpoints/step-0000000{step}" for step in (1, 2)]

    def copied(folder):
        return [
            ("write", "metrics.jsonl"),
            *(("put", f"{folder}/{name}") for name in names),
            ("write", f"{folder}/COMPLETE"),
        ]

    gone = [("rm", f"{folders[0]}/COMPLETE"), ("rm", folders[0])]
    assert flaky.done == [*copied(folders[0]), *copied(folders[1]), *gone]
    marker = json.loads(Remote("flaky://run").read(f"{folders[1]}/COMPLETE"))
    assert marker == {"files": {"model/weights": 10, "rng-0.pt": 0, "trainer.json": 28}}


@pytest.mark.parametrize("best", [(), (2,), (2, 3)])
def test_a_newer_one_takes_the_place_of_one_that_waits(best, flaky, tmp_path, monkeypatch):
    """Unless that is one of the best. What waits is not deleted here."""
    at_work, go_on = threading.Event(), threading.Event()

    def meet(what, path):
        at_work.set()
        go_on.wait(10)

    monkeypatch.setattr(flaky, "meet", staticmethod(meet))
    copies = Copies(tmp_path, 2, "flaky://run")
    copies.offer(save(tmp_path, 1), ())
    at_work.wait(10)
    for step in (2, 3, 4):
        copies.offer(save(tmp_path, step), best)
        drop_old(tmp_path, 1, copies.pinned)
        assert copies.pinned == {1, *(s for s in best if s < step), step}
    assert [p.name[-1] for p in complete_checkpoints(tmp_path)] == ["1", *map(str, best), "4"]
    go_on.set()
    assert copies.settle(best) is None
    put = {path.split("/")[1][-1] for what, path in flaky.done if what == "put"}
    assert put == {"1", *map(str, best), "4"}
    newest = sorted([1, *best, 4])[-2:]
    assert stored_steps(Remote("flaky://run"))[1] == sorted({*newest, *best})
    assert copies.pinned == set()


def test_a_failure_is_told_once_and_training_goes_on(flaky, tmp_path, monkeypatch, caplog):
    def down(what, path):
        raise OSError("the network is down")

    monkeypatch.setattr(flaky, "meet", staticmethod(down))
    monkeypatch.setattr(logging.getLogger("weighted_mtp"), "propagate", True)
    copies = Copies(tmp_path, 2, "flaky://run")
    for step in (1, 2):
        copies.offer(save(tmp_path, step), {1})
        finish(copies)
    told = copies.settle({1})
    assert f"{tmp_path}: all is saved there, but step 1 is not in flaky://run (flaky:" in told
    assert "OSError: the network is down" in told
    assert f"weighted-mtp train --resume --output-dir {tmp_path} copies what is missing" in told
    (line,) = {record.getMessage() for record in caplog.records}
    assert line.startswith("flaky://run does not take the checkpoint of step 1 (flaky:")
    monkeypatch.setattr(flaky, "meet", staticmethod(lambda what, path: None))
    assert copies.settle({1}) is None  # the best one too, and the newest
    assert stored_steps(Remote("flaky://run"))[1] == [1, 2]


def test_what_cannot_be_deleted_stays(flaky, tmp_path, monkeypatch, caplog):
    def keep(what, path):
        if what == "rm":
            raise PermissionError("may not delete")

    copies = Copies(tmp_path, 1, "flaky://run")
    copies.offer(save(tmp_path, 1), ())
    assert copies.settle(()) is None
    monkeypatch.setattr(flaky, "meet", staticmethod(keep))
    monkeypatch.setattr(logging.getLogger("weighted_mtp"), "propagate", True)
    copies.offer(save(tmp_path, 2), ())
    assert copies.settle(()) is None
    assert "old checkpoints cannot be deleted" in caplog.text
    assert stored_steps(Remote("flaky://run"))[1] == [1, 2]


@pytest.mark.parametrize("moment", ["model/weights", "trainer.json", "COMPLETE"])
def test_a_half_copied_one_is_no_checkpoint(moment, flaky, tmp_path, monkeypatch):
    """The machine is lost while step 2 is on its way; the next one copies step 3 and tidies up."""
    first = Copies(tmp_path, 3, "flaky://run")
    first.offer(save(tmp_path, 1), ())
    assert first.settle(()) is None
    lost = threading.Event()

    def lose(what, path):
        if path.endswith(f"2/{moment}"):
            lost.set()
            threading.Event().wait()

    remote = Remote("flaky://run")
    remote.write("config.yaml", b"pipeline: baseline\n")
    monkeypatch.setattr(flaky, "meet", staticmethod(lose))
    first.offer(save(tmp_path, 2), ())
    assert lost.wait(10)
    monkeypatch.setattr(flaky, "meet", staticmethod(lambda what, path: None))
    assert stored_steps(remote)[1] == [1]
    there = tmp_path / "there"
    partial_path(checkpoint_path(there, 1)).mkdir(parents=True)  # of a fetch that was cut off
    fetch(remote, there)
    assert complete_checkpoints(there) == [checkpoint_path(there, 1)]
    assert len((there / "metrics.jsonl").read_text().splitlines()) == 2  # they went ahead of it
    second = Copies(there, 3, "flaky://run")
    second.offer(save(there, 3), ())
    assert second.settle(()) is None
    assert stored_steps(remote) == ([1, 3], [1, 3])


def test_files_that_came_later_are_added(flaky, tmp_path):
    """As the whole model of a sharded checkpoint does at the end."""
    copies = Copies(tmp_path, 2, "flaky://run")
    copies.offer(save(tmp_path, 1), ())
    assert copies.settle(()) is None
    (checkpoint_path(tmp_path, 1) / "model" / "more").write_bytes(b"more")
    flaky.done.clear()
    assert copies.settle(()) is None
    assert [path for what, path in flaky.done if what == "put"] == [
        "checkpoints/step-00000001/model/more"
    ]
    assert stored_files(Remote("flaky://run"), 1)["model/more"] == 4


def test_what_is_there_is_not_copied_again(flaky, tmp_path):
    for _ in range(2):
        copies = Copies(tmp_path, 2, "flaky://run")
        if not flaky.done:
            save(tmp_path, 1)
        assert copies.settle(()) is None
    assert len([what for what, _ in flaky.done if what == "put"]) == 3


def test_files_of_other_nodes_are_waited_for(flaky, tmp_path, monkeypatch):
    """A network file system shows them late."""
    folder = save(tmp_path, 1)
    (folder / "trainer.json").write_text(json.dumps({"step": 1, "world_size": 2}))
    copies = Copies(tmp_path, 2, "flaky://run")
    copies.offer(folder, ())
    threading.Timer(0.2, (folder / "rng-1.pt").touch).start()
    assert copies.settle(()) is None
    assert "rng-1.pt" in stored_files(Remote("flaky://run"), 1)
    (save(tmp_path, 2) / "rng-0.pt").unlink()
    monkeypatch.setattr(distributed, "FILE_LAG", 0.0)
    assert "rng-0.pt is not there" in copies.settle(())


def test_without_a_remote_nothing_is_done(tmp_path):
    copies = Copies(tmp_path, 2, None)
    copies.offer(save(tmp_path, 1), ())
    assert copies.pinned == set()
    assert copies.settle(()) is None
    sync_with_remote(tiny_recipe(tmp_path / "rows.jsonl"), tmp_path, resume=True)


def test_a_place_that_cannot_be_written_to_is_found_at_once(flaky, tmp_path, monkeypatch):
    def refuse(what, path):
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(flaky, "meet", staticmethod(refuse))
    monkeypatch.setattr(remote_module.time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match=r"flaky://run cannot be used: .*403.*your credentials"):
        sync_with_remote(remote_recipe(tmp_path), tmp_path, resume=False)
    assert list(tmp_path.iterdir()) == []


def test_the_probe_leaves_nothing(flaky, tmp_path):
    sync_with_remote(remote_recipe(tmp_path), tmp_path, resume=False)
    assert flaky.store == {}
