"""Files of tensors in parts: read back in any shape of parts, and no code in them ever runs."""

import pickle
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import save

from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.core.config.runtime import RuntimeConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.resolve import check_sharding
from weighted_mtp.runtime import shards
from weighted_mtp.runtime.modes import check_mode, shard_size

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


@pytest.fixture
def folder(tmp_path) -> Path:
    tensors = {"a.b": torch.arange(6.0).view(2, 3), "c": torch.tensor(7.0, dtype=torch.bfloat16)}
    save(tensors, storage_writer=FileSystemWriter(tmp_path / "shards"))
    return tmp_path / "shards"


def test_what_was_written_is_read(folder):
    assert shards.stored_shapes(folder) == {"a.b": (2, 3), "c": ()}
    tensors = {"a.b": torch.zeros(2, 3), "c": torch.zeros((), dtype=torch.bfloat16)}
    shards.load(tensors, folder)
    assert torch.equal(tensors["a.b"], torch.arange(6.0).view(2, 3))
    assert tensors["c"] == 7


@pytest.mark.parametrize(("name", "size"), [("absent", (2, 3)), ("a.b", (3, 2))])
def test_another_name_or_shape_is_refused(name, size, folder):
    with pytest.raises(ValueError, match=f"{name} is .* asked for"):
        shards.load({name: torch.zeros(size)}, folder)


def test_a_process_that_is_lost_is_no_damage(folder, monkeypatch):
    """Or one would be told to delete a checkpoint that is whole."""

    def lose(*_, **__):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")

    monkeypatch.setattr(shards, "load_state", lose)
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        shards.load({"c": torch.zeros((), dtype=torch.bfloat16)}, folder)


def edit(folder: Path, change) -> None:
    path = folder / shards.INDEX
    metadata = FileSystemReader(folder).read_metadata()
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


class Looked:
    """`getattr(kind, name)`, as Python 3.11.0 to 3.11.3 pickle a member of an enumeration."""

    def __init__(self, kind, name):
        self.found = (kind, name)

    def __reduce__(self):
        return (getattr, self.found)


def test_members_of_enumerations_are_read_as_any_python_pickles_them(folder):
    member = Looked(_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT")
    expected = shards.stored_shapes(folder)
    edit(folder, lambda metadata: setattr(metadata, "planner_data", member))
    assert shards.stored_shapes(folder) == expected


LOOKED = [Looked(Path, "touch"), Looked(_MEM_FORMAT_ENCODING, "mro")]


@pytest.mark.parametrize("thing", [Evil(), OrderedDict(), print, *LOOKED])
def test_an_index_that_would_build_anything_else_is_refused(thing, folder, monkeypatch):
    monkeypatch.chdir(folder)
    edit(folder, lambda metadata: setattr(metadata, "planner_data", thing))
    with pytest.raises(ValueError, match="refused, because it carries"):
        shards.stored_shapes(folder)
    with pytest.raises(ValueError, match="refused, because it carries"):
        shards.load({"a.b": torch.zeros(2, 3)}, folder)
    assert not (folder / "evil").exists()


def test_an_entry_that_is_no_tensor_is_refused(folder):
    """PyTorch would read it with the full unpickler."""
    edit(folder, lambda m: m.state_dict_metadata.update({"a.b": BytesStorageMetadata()}))
    with pytest.raises(ValueError, match=r"BytesStorageMetadata|no index of tensors"):
        shards.load({"a.b": torch.zeros(2, 3)}, folder)


def test_a_file_elsewhere_is_refused(folder):
    def lead_out(metadata):
        for info in metadata.storage_data.values():
            info.relative_path = "../elsewhere"

    edit(folder, lead_out)
    with pytest.raises(ValueError, match=r"\.\./elsewhere leads out of the folder"):
        shards.load({"a.b": torch.zeros(2, 3)}, folder)


def cut(metadata, *pieces: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """Let `a.b` [2, 3] consist of these pieces (offsets, sizes), each in the file."""
    (where,) = (index for index in metadata.storage_data if index.fqn == "a.b")
    info = metadata.storage_data.pop(where)
    metadata.state_dict_metadata["a.b"].chunks = [
        ChunkStorageMetadata(torch.Size(start), torch.Size(extent)) for start, extent in pieces
    ]
    for number, (start, _) in enumerate(dict(pieces).items()):
        length = info.length // len(pieces)
        metadata.storage_data[MetadataIndex("a.b", torch.Size(start))] = replace(
            info, offset=info.offset + number * length, length=length
        )


def info_of(metadata, name: str = "a.b"):
    return next(i for index, i in metadata.storage_data.items() if index.fqn == name)


DAMAGES = {
    "a row is missing": (lambda m: cut(m, ((0, 0), (1, 3))), "parts of a.b do not cover it"),
    "a column is missing": (lambda m: cut(m, ((0, 0), (2, 2))), "parts of a.b do not cover it"),
    "no part": (lambda m: cut(m), "parts of a.b do not cover it"),
    "a hole": (
        lambda m: cut(m, ((0, 0), (1, 3)), ((1, 1), (1, 2))),
        "parts of a.b do not cover it",
    ),
    "an overlap": (lambda m: cut(m, ((0, 0), (2, 3)), ((1, 0), (1, 3))), "parts of a.b overlap"),
    "an overlap as large as a hole": (
        lambda m: cut(m, ((0, 0), (2, 2)), ((0, 1), (1, 2))),
        "parts of a.b overlap",
    ),
    "a part too far": (lambda m: cut(m, ((0, 0), (1, 3)), ((2, 0), (1, 3))), "lies outside"),
    "a part too large": (lambda m: cut(m, ((0, 0), (3, 3))), "lies outside"),
    "a negative place": (lambda m: cut(m, ((-1, 0), (2, 3))), "lies outside"),
    "another rank": (lambda m: cut(m, ((0,), (2,))), "lies outside"),
    "another size": (
        lambda m: setattr(m.state_dict_metadata["a.b"], "size", torch.Size((4, 3))),
        "do not cover it",
    ),
    "no place": (
        lambda m: m.storage_data.pop(next(i for i in m.storage_data if i.fqn == "a.b")),
        "a part of a.b is in no file",
    ),
    "another file": (lambda m: setattr(info_of(m), "relative_path", "__9_0.distcp"), "missing"),
    "the index itself": (lambda m: setattr(info_of(m), "relative_path", ".metadata"), "missing"),
    "past the end": (lambda m: setattr(info_of(m), "length", 10**6), "overlap|shorter"),
    "before the start": (lambda m: setattr(info_of(m), "offset", -1), "overlap"),
    "nothing": (lambda m: setattr(info_of(m), "length", 0), "overlap"),
    "the same bytes twice": (
        lambda m: setattr(info_of(m), "offset", info_of(m, "c").offset),
        "overlap",
    ),
    "text for a number": (lambda m: setattr(info_of(m), "offset", "0"), "metadata"),
    "no chunks": (lambda m: setattr(m.state_dict_metadata["a.b"], "chunks", None), "metadata"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_parts_that_do_not_make_up_a_tensor_are_refused(name, folder):
    """PyTorch leaves what no part covers as it was in memory."""
    change, message = DAMAGES[name]
    edit(folder, change)
    with pytest.raises(ValueError, match=message):
        shards.load({"a.b": torch.zeros(2, 3)}, folder)
    with pytest.raises(ValueError, match=message):
        shards.stored_shapes(folder)


def test_a_missing_file_is_refused(folder):
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(ValueError, match=r"__0_0\.distcp is missing"):
        shards.stored_shapes(folder)


@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        ((), [((), ())]),
        ((4,), [((0,), (2,)), ((2,), (2,)), ((4,), (0,))]),  # an empty part of one process
        ((4, 4), [((a, b), (2, 2)) for a in (0, 2) for b in (0, 2)]),
        ((0, 3), [((0, 0), (0, 3))]),
    ],
)
def test_parts_that_make_up_a_tensor_are_taken(size, pieces):
    chunks = [ChunkStorageMetadata(torch.Size(a), torch.Size(n)) for a, n in pieces]
    entry = TensorStorageMetadata(TensorProperties(), torch.Size(size), chunks)
    places = {MetadataIndex("x", torch.Size(a)): None for a, _ in pieces}
    shards._check_chunks("x", entry, Metadata({"x": entry}, storage_data=places))


# --- modes ---------------------------------------------------------------------------------------


def test_a_mode_that_does_not_fit_is_refused():
    with pytest.raises(
        UserError, match=r"torchrun started 2 processes; --set runtime.parallel=ddp"
    ):
        check_mode(RuntimeConfig(parallel="none"), 2)
    config = RuntimeConfig.model_validate({"parallel": "hsdp", "fsdp": {"shard_size": 4}})
    with pytest.raises(UserError, match=r"runtime.fsdp.shard_size 4 does not divide the 6"):
        check_mode(config, 6)
    check_mode(config, 8)


def test_replicas_are_nodes_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert shard_size(RuntimeConfig(parallel="hsdp"), 32) == 8
    assert shard_size(RuntimeConfig(parallel="fsdp"), 32) == 32
    assert shard_size(RuntimeConfig(parallel="ddp"), 32) == 1


def test_muon_wants_whole_matrices():
    changes = ["runtime.parallel=fsdp", "training.optimizer=muon"]
    recipe = load_recipe("baseline", "micro", changes)
    with pytest.raises(UserError, match=r"muon needs whole matrices.*runtime.parallel=ddp"):
        check_sharding(recipe, 2)
    check_sharding(recipe, 1)


def test_sixteen_bit_weights_need_sixteen_bit_products():
    changes = ["runtime.compute_dtype=float32", "runtime.fsdp.param_dtype=bfloat16"]
    with pytest.raises(UserError, match=r"param_dtype bfloat16 needs runtime.compute_dtype"):
        load_recipe("baseline", "micro", changes)
