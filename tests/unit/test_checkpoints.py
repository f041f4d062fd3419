"""Checkpoints: three layouts in, two out, bit for bit, and nothing half-written."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.checkpoint_cases import (
    LLAMA3_ROPE,
    hf_model,
    some_tokens,
    tiny,
    write_hf,
    write_meta,
    write_native,
)
from transformers import AutoConfig, LlamaForCausalLM

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.sums import Sums, sha256
from weighted_mtp.models.meta_mtp import checkpoints
from weighted_mtp.models.meta_mtp.checkpoints import (
    detect_layout,
    find_tokenizer_files,
    inspect_checkpoint,
    load_meta_mtp_model,
    save_huggingface,
    save_native,
    value_head_path,
)
from weighted_mtp.models.meta_mtp.rotary import RopeScaling
from weighted_mtp.models.meta_mtp.transformer import Transformer


def assert_same(left: Transformer, right: Transformer) -> None:
    """The same weights, to the bit."""
    one, other = left.state_dict(), right.state_dict()
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert weight.dtype == other[name].dtype, name
        assert torch.equal(weight, other[name]), name


def edit_json(path: Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@torch.no_grad()
def parity_with_hf(model: Transformer, reference: LlamaForCausalLM) -> float:
    tokens = some_tokens(21)
    return float((model(tokens)[:, :, 0] - reference(tokens).logits).abs().max())


# --- native --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_native_round_trip_is_exact(tmp_path, dtype):
    model = tiny(rope_scaling=RopeScaling(4.0, 1.0, 4.0, 16), n_kv_heads=2).to(dtype)
    save_native(model, tmp_path / "out")
    back = load_meta_mtp_model(tmp_path / "out", device="cpu")
    assert back.args == model.args
    assert_same(model, back)
    assert all(p.requires_grad and p.is_leaf and not p.is_meta for p in back.parameters())


def test_native_sharded_round_trip(tmp_path):
    model = tiny()
    save_native(model, tmp_path / "out", max_shard_bytes=20_000)
    shards = sorted((tmp_path / "out/safetensors").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(shard.stat().st_size < 25_000 for shard in shards)
    assert_same(model, load_meta_mtp_model(tmp_path / "out", device="cpu"))


def test_tied_embeddings_are_stored_once_and_stay_tied(tmp_path):
    model = tiny(tie_embeddings=True)
    save_native(model, tmp_path / "out")
    assert "output.weight" not in load_file(tmp_path / "out/safetensors/model.safetensors")
    back = load_meta_mtp_model(tmp_path / "out", device="cpu", dtype="bfloat16")
    assert back.output.weight is back.tok_embeddings.weight
    assert_same(model.to(torch.bfloat16), back)


def test_loaded_weights_do_not_live_in_the_file(tmp_path):
    write_native(tmp_path / "out")
    back = load_meta_mtp_model(tmp_path / "out", device="cpu")
    before = {name: weight.clone() for name, weight in back.state_dict().items()}
    file = tmp_path / "out/safetensors/model.safetensors"
    with file.open("r+b") as stream:
        stream.write(b"\0" * file.stat().st_size)
    assert all(torch.equal(weight, before[name]) for name, weight in back.state_dict().items())


def test_native_metadata_and_carried_files(tmp_path):
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(b"pieces")
    head = tmp_path / "some_head.safetensors"
    save_file({"value.weight": torch.zeros(1, 32)}, head)
    save_native(
        tiny(),
        tmp_path / "out",
        tokenizer_files=[tokenizer],
        extra_metadata={"run": "r1"},
        value_head_file=head,
    )
    metadata = json.loads((tmp_path / "out/metadata.json").read_text())
    assert metadata["format_version"] == 1
    assert metadata["layout"] == "native"
    assert metadata["dtype"] == "float32"
    assert metadata["extra"] == {"run": "r1"}
    assert set(metadata["sha256"]) == {
        "configs/params.json",
        "safetensors/model.safetensors",
        "tokenizer/tokenizer.model",
        "value_head.safetensors",
    }
    assert find_tokenizer_files(tmp_path / "out") == [tmp_path / "out/tokenizer/tokenizer.model"]
    assert value_head_path(tmp_path / "out").is_file()
    load_meta_mtp_model(tmp_path / "out", device="cpu", verify=True)


def test_inspect_reads_headers_only(tmp_path, monkeypatch):
    monkeypatch.setattr("weighted_mtp.models.meta_mtp.layouts.source._check_values", None)
    model = tiny()
    write_native(tmp_path / "n")
    write_meta(tmp_path / "m", model, shards=2)
    save_huggingface(model, tmp_path / "h")
    for folder, layout in (("n", "native"), ("m", "meta"), ("h", "huggingface")):
        info = inspect_checkpoint(tmp_path / folder)
        assert info.layout == layout == detect_layout(tmp_path / folder)
        assert info.dtype == "float32"
        assert info.parameters == sum(p.numel() for p in model.parameters())
        assert info.bytes == sum(file.stat().st_size for file in info.files) > 4 * info.parameters
        assert (info.args.n_layers, info.args.n_future_tokens) == (4, 3)
        assert not info.has_tokenizer
        assert not info.has_value_head


# --- Meta ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("by_vocabulary", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_meta_shards_merge_to_the_whole(tmp_path, shards, by_vocabulary, n):
    model = tiny(n_future_tokens=n)
    write_meta(tmp_path / "m", model, shards, by_vocabulary)
    back = load_meta_mtp_model(tmp_path / "m", device="cpu")
    assert back.args == replace(model.args, max_seq_len=2048)  # which Meta's files do not tell
    assert_same(model, back)


def test_meta_scaled_rope_and_unknown_keys(tmp_path):
    model = tiny(rope_scaling=RopeScaling())
    write_meta(tmp_path / "m", model)
    edit_json(tmp_path / "m/params.json", use_scaled_rope=True, some_note="x")
    back = load_meta_mtp_model(tmp_path / "m", device="cpu")
    tokens = some_tokens()
    assert torch.equal(model(tokens, return_all_heads=True), back(tokens, return_all_heads=True))
    edit_json(tmp_path / "m/params.json", rope_scaling_factor=32)
    args = inspect_checkpoint(tmp_path / "m").args
    assert args.rope_scaling == replace(RopeScaling(), factor=32.0)


# --- Hugging Face --------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["old", "new"])
@pytest.mark.parametrize("scaling", [None, LLAMA3_ROPE])
@pytest.mark.parametrize("tied", [False, True])
def test_hf_logits_are_equal(tmp_path, spelling, scaling, tied):
    rope = {"rope_theta": 7000.0, **(scaling or {"rope_type": "default"})}
    reference = hf_model(tie_word_embeddings=tied, rope_parameters=rope)
    reference.save_pretrained(tmp_path / "h")
    if spelling == "old":
        config = json.loads((tmp_path / "h/config.json").read_text())
        config.pop("rope_parameters", None)
        config |= {"rope_theta": 7000.0, "rope_scaling": scaling}
        (tmp_path / "h/config.json").write_text(json.dumps(config))
    model = load_meta_mtp_model(tmp_path / "h", device="cpu")
    assert model.args.n_future_tokens == 1
    assert (model.output.weight is model.tok_embeddings.weight) == tied
    assert parity_with_hf(model, reference) < 1e-5


def test_hf_to_native_to_hf_is_exact(tmp_path):
    reference = hf_model()
    reference.save_pretrained(tmp_path / "h")
    save_native(load_meta_mtp_model(tmp_path / "h", device="cpu"), tmp_path / "n")
    save_huggingface(load_meta_mtp_model(tmp_path / "n", device="cpu"), tmp_path / "back")
    one, other = (load_file(tmp_path / d / "model.safetensors") for d in ("h", "back"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kind", ["sharded", "bin", "sharded bin", "mistral", "no GQA"])
def test_hf_variants(tmp_path, kind):
    reference = hf_model(num_key_value_heads=4 if kind == "no GQA" else 2)
    folder = tmp_path / "h"
    reference.save_pretrained(folder, max_shard_size="20KB" if kind == "sharded" else "5GB")
    if kind == "sharded":
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    if "bin" in kind:
        (folder / "model.safetensors").unlink()
        state = reference.state_dict() | {"model.rotary_emb.inv_freq": torch.ones(4)}
        names = list(state)
        parts = [names[:5], names[5:]] if kind == "sharded bin" else [names]
        files = [f"pytorch_model-{i}.bin" for i in (1, 2)]
        for file, part in zip(files, parts, strict=False):
            single = "pytorch_model.bin" if len(parts) == 1 else file
            torch.save({name: state[name] for name in part}, folder / single)
        if len(parts) == 2:
            weight_map = {n: f for f, part in zip(files, parts, strict=True) for n in part}
            index = {"weight_map": weight_map}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    if kind == "mistral":
        fields = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
        edit_json(folder / "config.json", **fields, sliding_window=None)
    assert parity_with_hf(load_meta_mtp_model(folder, device="cpu"), reference) < 1e-5


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scaling", [None, RopeScaling(4.0, 1.0, 4.0, 16)])
def test_hf_export_loads_in_transformers(tmp_path, tied, scaling):
    model = tiny(tie_embeddings=tied, rope_scaling=scaling, n_kv_heads=2)
    save_huggingface(model, tmp_path / "h", max_shard_bytes=30_000)
    assert (tmp_path / "h/model.safetensors.index.json").is_file()
    reference = LlamaForCausalLM.from_pretrained(tmp_path / "h").eval()
    assert parity_with_hf(model, reference) < 1e-5
    back = load_meta_mtp_model(tmp_path / "h", device="cpu")  # the extra heads come back too
    assert_same(model, back)
    with torch.no_grad():
        tokens = some_tokens()
        assert torch.equal(
            model(tokens, return_all_heads=True), back(tokens, return_all_heads=True)
        )


def test_a_second_head_that_was_not_copied_is_missed(tmp_path):
    save_huggingface(tiny(n_future_tokens=2), tmp_path / "h")
    (heads,) = (tmp_path / "h").rglob("mtp_heads*")
    heads.unlink()
    with pytest.raises(UserError, match=r"mtp_n_future_tokens in config\.json is 2"):
        load_meta_mtp_model(tmp_path / "h", device="cpu")


def test_hf_export_of_one_head_is_plain_llama(tmp_path):
    save_huggingface(tiny(n_future_tokens=1).to(torch.bfloat16), tmp_path / "h")
    assert {path.name for path in (tmp_path / "h").iterdir()} == {
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "mtp",  # its sums
    }
    assert [path.name for path in (tmp_path / "h/mtp").iterdir()] == ["sums.json"]
    config = AutoConfig.from_pretrained(tmp_path / "h", trust_remote_code=False)
    assert (getattr(config, "dtype", None) or config.torch_dtype) == torch.bfloat16
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "h", torch_dtype="auto")
    assert loaded.dtype == torch.bfloat16


def test_a_stored_twin_of_tied_embeddings_may_agree(tmp_path):
    write_hf(tmp_path / "h", tie_word_embeddings=True)
    file = tmp_path / "h/model.safetensors"
    state = load_file(file)
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, file, metadata={"format": "pt"})
    model = load_meta_mtp_model(tmp_path / "h", device="cpu")
    assert model.output.weight is model.tok_embeddings.weight


# --- whole or not at all -------------------------------------------------------------------------


@pytest.mark.parametrize("save", [save_native, save_huggingface])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_nothing_and_the_old(tmp_path, monkeypatch, save, failure):
    save(tiny(), tmp_path / "old")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    written = []

    def fail_later(state, path, metadata=None):
        if written:
            raise failure
        written.append(path)
        save_file(state, path, metadata=metadata)

    module = "weighted_mtp.models.meta_mtp.layouts.tensor_files"
    monkeypatch.setattr(f"{module}.save_file", fail_later)
    expected = UserError if isinstance(failure, OSError) else KeyboardInterrupt
    for target in ("old", "new", "a/b/new"):
        written.clear()
        with pytest.raises(expected):
            save(tiny(), tmp_path / target, max_shard_bytes=30_000, overwrite=True)
        assert written
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert after == before
        assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_failed_rename_puts_the_old_back(tmp_path, monkeypatch):
    write_native(tmp_path / "old")
    before = (tmp_path / "old/metadata.json").read_bytes()
    rename = Path.rename

    def fail_on_partial(self, target):
        if ".partial-" in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_partial)
    with pytest.raises(UserError, match="cannot be written"):
        save_native(tiny(dim=64), tmp_path / "old", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old/metadata.json").read_bytes() == before


def test_overwrite_is_asked_for_and_only_replaces_checkpoints(tmp_path):
    write_native(tmp_path / "out")
    with pytest.raises(UserError, match="already exists"):
        save_native(tiny(), tmp_path / "out")
    save_huggingface(tiny(dim=64), tmp_path / "out", overwrite=True)
    assert inspect_checkpoint(tmp_path / "out").args.dim == 64
    assert not (tmp_path / "out/metadata.json").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("years")
    with pytest.raises(UserError, match="is not a checkpoint, so it is not overwritten"):
        save_native(tiny(), tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis/chapter1.tex").read_text() == "years"


def test_a_link_to_a_checkpoint_stays_a_link(tmp_path):
    write_native(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save_native(tiny(dim=64), tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert inspect_checkpoint(tmp_path / "real").args.dim == 64


def test_sums_are_those_of_sha256sum(tmp_path):
    write_native(tmp_path / "out")
    sums = json.loads((tmp_path / "out/metadata.json").read_text())["sha256"]
    assert Sums.read(tmp_path / "out", "metadata.json").verify() == len(sums) == 2
    assert sums["configs/params.json"] == sha256(tmp_path / "out/configs/params.json")
    (tmp_path / "empty").write_bytes(b"")
    assert sha256(tmp_path / "empty").startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_all_readers_have_a_name():
    assert set(checkpoints._READERS) == {"native", "meta", "huggingface"}


# --- memory --------------------------------------------------------------------------------------

_MEASURE = """
import sys, torch
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

torch.set_num_threads(1)
torch.aminmax(torch.ones(100_000).bfloat16())  # whatever the first operation costs
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts here
start = status("VmRSS")
model = load_meta_mtp_model(sys.argv[1], device="cpu", dtype=sys.argv[2])
weights = sum(p.nbytes for p in model.parameters())
print(weights, status("VmHWM") - start)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model of 199 MB in all three layouts; its largest tensors are 4 MB."""
    folder = tmp_path_factory.mktemp("large")
    shape = {"dim": 512, "n_layers": 15, "n_heads": 8, "n_kv_heads": 8, "vocab_size": 2048}
    model = tiny(**shape, multiple_of=256)
    save_native(model, folder / "native")
    write_meta(folder / "meta", model)
    save_huggingface(model, folder / "huggingface", max_shard_bytes=60_000_000)
    return folder


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        ("native", "float32"),
        ("native", "bfloat16"),
        ("meta", "float32"),
        ("meta", "bfloat16"),
        ("huggingface", "bfloat16"),
    ],
)
def test_peak_memory_while_loading(large, layout, dtype, record_property):
    """The high-water mark of resident memory (VmHWM: anonymous pages *and* mapped file pages that
    were not let go) over what the process held before, in a process of its own. `ru_maxrss` would
    not do: a child inherits its parent's. Converting halves the weights, so there the allowance
    for the file's window is twice as tight."""
    command = [sys.executable, "-c", _MEASURE, str(large / layout), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    weights, peak = map(int, done.stdout.split())
    record_property("peak_ratio", peak / weights)
    print(f"{layout} to {dtype}: peak {peak / weights:.3f} × {weights / 1e6:.0f} MB")
    assert weights > 90e6
    assert peak <= 1.2 * weights
