"""What a checkpoint is described by without PyTorch, held against PyTorch and safetensors."""

import json
import math
import struct
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tests.helpers import tiny_args

from weighted_mtp.core.choices import NUMBER_FORMATS
from weighted_mtp.core.device import DTYPES
from weighted_mtp.core.errors import UserError
from weighted_mtp.models.meta_mtp.args import Family, parameter_shapes
from weighted_mtp.models.meta_mtp.frame import on_meta
from weighted_mtp.models.meta_mtp.layouts.hf_config import KINDS
from weighted_mtp.models.meta_mtp.layouts.skeleton import check_size
from weighted_mtp.models.meta_mtp.layouts.source import wider
from weighted_mtp.models.meta_mtp.layouts.tensor_files import SafetensorsFile
from weighted_mtp.models.meta_mtp.layouts.tensor_header import read_header
from weighted_mtp.models.meta_mtp.transformer import Transformer

booleans = st.booleans()
families = st.builds(
    Family,
    name=st.sampled_from(sorted(KINDS)),
    head_dim=st.sampled_from([None, 2, 6, 16]),
    qkv_bias=booleans,
    output_bias=booleans,
    mlp_bias=booleans,
    qk_norm=booleans,
    no_rope_layers=st.sampled_from([(), (0,), (0, 1)]),
    logits_scaling=st.sampled_from([1.0, 8.0]),
)
shapes = st.builds(
    tiny_args,
    family=families,
    n_layers=st.integers(3, 5),
    n_future_tokens=st.integers(1, 3),
    n_kv_heads=st.sampled_from([None, 1, 2, 4]),
    tie_embeddings=booleans,
    ffn_hidden_dim=st.sampled_from([None, 24]),
    ffn_dim_multiplier=st.sampled_from([None, 1.3]),
    vocab_size=st.integers(1, 50),
)


@settings(max_examples=60, deadline=None)
@given(args=shapes)
def test_the_shapes_are_those_of_the_model(args):
    with on_meta():
        model = Transformer(args)
    built = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert list(parameter_shapes(args).items()) == list(built.items())  # in the same order
    state = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if args.tie_embeddings:
        assert state.pop("output.weight") == built["tok_embeddings.weight"]
    assert parameter_shapes(args) == state


def test_a_vocabulary_left_open_is_an_error_as_when_building(tmp_path):
    args = tiny_args(vocab_size=-1)
    for ask in (parameter_shapes, Transformer):
        with pytest.raises(ValueError, match="vocab_size must be set before"):
            ask(args)
    with pytest.raises(UserError, match=r"params\.json: no model can be built from it \(vocab_s"):
        check_size(args, tmp_path / "params.json", 100)


def test_what_pytorch_cannot_build_is_refused_by_arithmetic(tmp_path):
    huge = tiny_args(vocab_size=2**31 - 1, dim=2**31 - 4, family=Family(head_dim=2))
    with pytest.raises(RuntimeError, match="overflow"), on_meta():
        Transformer(huge)
    with pytest.raises(UserError, match=r"no model can be built from it \(tok_embeddings"):
        check_size(huge, tmp_path / "config.json", 100)
    large = replace(huge, dim=2**28)
    with on_meta():
        Transformer(large)
    check_size(large, tmp_path / "config.json", 100)


def test_the_wider_format_is_that_of_pytorch():
    for one, other in product(NUMBER_FORMATS, repeat=2):
        assert DTYPES[wider(one, other)] == torch.promote_types(DTYPES[one], DTYPES[other])


FORMATS = [*DTYPES.values(), torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
FORMATS += [torch.bool, torch.float8_e4m3fn, torch.complex64]
tensors = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12),
    st.tuples(st.sampled_from(FORMATS), st.lists(st.integers(0, 3), max_size=3)),
    max_size=5,
).filter(lambda found: "__metadata__" not in found)

notes = st.none() | st.dictionaries(st.text(max_size=3), st.text(), min_size=1)


def listed(path):
    """What safetensors itself says of a file; None if it refuses it."""
    try:
        with safe_open(path, framework="pt") as file:
            parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            return {key: (tuple(p.get_shape()), p.get_dtype()) for key, p in parts.items()}
    except SafetensorError:
        return None


def shown(header):
    names = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    return {key: (info.shape, names.get(info.dtype, info.dtype)) for key, info in header.items()}


@settings(max_examples=60, deadline=None)
@given(
    described=tensors, notes=st.none() | st.dictionaries(st.text(max_size=3), st.text(), min_size=1)
)
def test_a_header_says_what_safetensors_says(tmp_path_factory, described, notes):
    path = tmp_path_factory.mktemp("header") / "model.safetensors"
    state = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in described.items()}
    save_file(state, path, metadata=notes)
    file = SafetensorsFile(path)
    assert list(shown(file.header).items()) == list(listed(path).items())
    own = read_header(path, path.stat().st_size)
    plain = {dtype for dtype, _ in described.values()} <= set(FORMATS[:-2])
    if plain and "\\u" not in json.dumps([*described, *(notes or {}).items()], ensure_ascii=False):
        assert own == file.header


def written(path, header, size, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(
        struct.pack("<Q", len(text) if length is None else length) + text + bytes(size)
    )
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": entry()}, 7),
        ({"a": entry()}, 9),
        ({"a": entry(offsets=(4, 12))}, 12),
        ({"a": entry(offsets=(8, 0))}, 8),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, 12),
        ({"a": entry(), "b": entry(offsets=(12, 20))}, 20),
        ({"a": entry(shape=(3,))}, 8),
        ({"a": entry(shape=(-2,))}, 8),
        ({"a": entry(shape=(2.0,))}, 8),
        ({"a": entry(shape=(2**40, 2**40))}, 8),
        ({"a": entry(dtype="F33")}, 8),
        ({"a": entry(dtype=None)}, 8),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8),
        ({"a": [1, 2]}, 8),
        ({"__metadata__": {"format": 1}, "a": entry()}, 8),
        ({"__metadata__": ["pt"], "a": entry()}, 8),
        ([entry()], 8),
        (b" {}", 0),
        (b"", 0),
        (b"{", 0),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "\xff": 1}', 8),
        (b"[" * 100_000, 8),
    ],
    ids=str,
)
def test_a_damaged_header_has_the_error_of_safetensors(header, size, tmp_path):
    path = written(tmp_path / "model.safetensors", header, size)
    assert read_header(path, path.stat().st_size) is None
    if listed(path) is None:
        with pytest.raises(UserError, match=r"model\.safetensors: truncated or damaged safetens"):
            SafetensorsFile(path)


@pytest.mark.parametrize("length", [0, 1, 10**6, 10**8 + 1, 2**63, 2**64 - 1])
def test_a_wrong_length_has_the_error_of_safetensors(length, tmp_path):
    path = written(tmp_path / "model.safetensors", {"a": entry()}, 8, length)
    assert listed(path) is None
    with pytest.raises(UserError, match="truncated or damaged safetensors file"):
        SafetensorsFile(path)


def test_a_key_given_twice_is_left_to_safetensors(tmp_path):
    one = json.dumps(entry())
    path = written(tmp_path / "model.safetensors", f'{{"a": {one}, "a": {one}}}'.encode(), 8)
    assert read_header(path, path.stat().st_size) is None


@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.int64, torch.int32], ids=str)
def test_numbers_are_exact(dtype, tmp_path):
    given = torch.tensor([0.0, -1.0, 3.0, 1 / 3, 65504.0, -(2.0**-14), 2.0**-24]).to(dtype)
    if dtype.is_floating_point:
        given = torch.cat([given, torch.tensor([math.inf, math.nan]).to(dtype)])
    save_file({"z": torch.ones(3), "a": given, "none": torch.zeros(0)}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert repr(file.numbers("a")) == repr(given.tolist())
    assert file.numbers("z") == [1.0] * 3
    assert file.numbers("none") == []
