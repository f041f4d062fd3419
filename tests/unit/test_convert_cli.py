"""`weighted-mtp convert` and `inspect`: what they do, and one clear line for all they refuse."""

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.checkpoint_cases import tiny, write_hf, write_meta, write_native

from weighted_mtp.cli.main import main
from weighted_mtp.core.sums import fields_digest, sha256
from weighted_mtp.models.meta_mtp.checkpoints import (
    load_meta_mtp_model,
    save_huggingface,
    value_head_path,
)

WEIGHTS = "safetensors/model.safetensors"
W1 = "layers.0.feed_forward.w1.weight"


def edit_json(path: Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})
    metadata = path.parents[1] / "metadata.json"
    if metadata.is_file():  # as if written so: its sum is not what is wrong
        fields = json.loads(metadata.read_text())
        fields["sha256"][path.relative_to(path.parents[1]).as_posix()] = sha256(path)
        metadata.write_text(json.dumps({**fields, "digest": fields_digest(fields)}))


def edit_pth(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def truncate(path: Path, keep: float = 0.6) -> None:
    os.truncate(path, int(path.stat().st_size * keep))


# --- what the commands do ------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["native", "hf"])
@pytest.mark.parametrize("source", ["native", "meta", "hf"])
def test_convert_any_to_any(tmp_path, capsys, source, to):
    model, src, dst = tiny(), tmp_path / "src", tmp_path / "deep/dst"
    if source == "meta":
        write_meta(src, model, shards=2)
    elif source == "hf":
        save_huggingface(model, src)
    else:
        write_native(src)
    folder = src / "tokenizer" if source == "native" else src
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(b"pieces")
    save_file({"value.weight": torch.zeros(1, 32)}, src / "value_head.safetensors")

    assert main(["convert", str(src), str(dst), "--to", to]) == 0
    said = capsys.readouterr().out
    assert "the weights, the tokenizer, the value head" in said
    assert ("next: weighted-mtp verify" in said) == (to in ("hf", "mtp_llama"))
    back = load_meta_mtp_model(dst, device="cpu")
    assert all(torch.equal(model.state_dict()[k], v) for k, v in back.state_dict().items())
    carried = dst / "tokenizer/tokenizer.model" if to == "native" else dst / "tokenizer.model"
    assert carried.read_bytes() == b"pieces"
    assert value_head_path(dst).is_file()
    assert [path.name for path in dst.parent.iterdir()] == ["dst"]


def test_convert_changes_the_number_format_in_place(tmp_path, capsys):
    write_native(tmp_path / "m")
    here = str(tmp_path / "m")
    assert main(["convert", here, here, "--overwrite", "--dtype", "bfloat16"]) == 0
    assert main(["inspect", here, "--verify"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"dtype\s+bfloat16", out)
    assert "every weight is finite; SHA-256 of 2 files" in out


def test_inspect_says_what_there_is(tmp_path, capsys):
    write_meta(tmp_path / "m", shards=2)
    assert main(["inspect", str(tmp_path / "m"), "--verify"]) == 0
    out = capsys.readouterr().out
    for text in ("meta", "float32", "2 file(s)", "n_future_tokens=3", "2 (the last", "+ 2 heads"):
        assert text in out
    assert "no SHA-256 sums are stored" in out


# --- what they refuse ----------------------------------------------------------------------------

CASES: dict[str, tuple[Callable[[Path], object], str]] = {}


def case(message: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """Register a function that makes a broken checkpoint, with the line expected of it."""

    def register(make: Callable[[Path], object]) -> Callable[[Path], object]:
        CASES[make.__name__] = (make, message)
        return make

    return register


def native_case(name: str, message: str, change: Callable[[dict[str, torch.Tensor]], object]):
    def make(d: Path) -> None:
        edit_weights(write_native(d) / WEIGHTS, change)

    CASES[f"native_{name}"] = (make, message)


def params_case(name: str, message: str, **fields) -> None:
    def make(d: Path) -> None:
        edit_json(write_native(d) / "configs/params.json", **fields)

    CASES[f"params_{name}"] = (make, rf"params\.json: {message}")


def config_case(name: str, message: str, **fields) -> None:
    def make(d: Path) -> None:
        edit_json(write_hf(d) / "config.json", **fields)

    CASES[f"config_{name}"] = (make, rf"config\.json: {message}")


native_case("missing_key", rf"model\.safetensors: lacks key {W1}", lambda s: s.pop(W1))
native_case(
    "missing_keys",
    r"lacks 18 keys: extra_heads\.0\.attention\.wq\.weight, .*, …",
    lambda s: [s.pop(key) for key in list(s) if key.startswith("extra_heads.")],
)
native_case(
    "extra_key",
    r"model\.safetensors: holds key layers\.9\.w, which the configuration has no place for",
    lambda s: s.update({"layers.9.w": torch.ones(2)}),
)
native_case(
    "wrong_shape",
    rf"{W1} has shape \[8, 32\], but the configuration asks for \[88, 32\]",
    lambda s: s.update({W1: torch.ones(8, 32)}),
)
native_case("wrong_rank", rf"{W1} has shape \[\], but", lambda s: s.update({W1: torch.tensor(1.0)}))
native_case("nan", rf"{W1} holds NaN or infinite", lambda s: s[W1][3, 4].fill_(float("nan")))
native_case("inf", rf"{W1} holds NaN or infinite", lambda s: s[W1][3, 4].fill_(-float("inf")))
native_case("integers", rf"{W1} is stored as I32", lambda s: s.update({W1: s[W1].int()}))

params_case("word", "n_heads must be a whole number, not 'four'", n_heads="four")
params_case("truth", "dim must be a whole number, not True", dim=True)
params_case("fraction", "n_layers must be a whole number, not 4.5", n_layers=4.5)
params_case("negative", "dim must be above 0, not -32", dim=-32)
params_case("null", "dim is missing; it must be a whole number", dim=None)
params_case("nan_eps", r"not valid JSON \(NaN is not a number\)", norm_eps=float("nan"))
params_case("vocabulary", "vocab_size must be above 0, not -7", vocab_size=-7)
params_case("heads", "dim \\(32\\) over n_heads \\(5\\)", n_heads=5)
params_case("kv_heads", "n_kv_heads \\(3\\) must divide", n_kv_heads=3)
params_case("no_end_of_layers", "n_layers 1000000000 is more than the", n_layers=10**9)
params_case("long", "no model can be built|max_seq_len", max_seq_len=10**17)
params_case("moe", "moe asks for an architecture", moe={"num_experts": 8})
params_case("scaling", "rope_scaling.factor is missing", rope_scaling={})

config_case("quantised", "quantization_config is set", quantization_config={"bits": 4})
config_case("odd_heads", r"head_dim \(7\) must be even", head_dim=7)
config_case("activation", "hidden_act = 'gelu'; only 'silu'", hidden_act="gelu")
config_case("family", "model_type = 'gpt2' is not one of llama, mistral", model_type="gpt2")
config_case("task", "architectures = .*LlamaModel", architectures=["LlamaModel"])
config_case("sizeless", "hidden_size is missing; it must be a whole number", hidden_size=None)
config_case(
    "longrope",
    r"rope_parameters\.rope_type = 'longrope' is not supported; only",
    rope_parameters={"rope_type": "longrope", "factor": 2.0},
)
config_case(
    "linear_old_spelling",
    r"rope_scaling\.factor is missing",
    rope_parameters=None,
    rope_scaling={"type": "linear"},
)
config_case(
    "partial_rotary",
    r"rope_parameters\.partial_rotary_factor = 0\.5; llama rotates all",
    rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5},
)
config_case(
    "window",
    "sliding_window must be above 0",
    model_type="mistral",
    architectures=["MistralForCausalLM"],
    sliding_window=-1,
)
params_case("unknown_family_field", r"family\.experts is not known", family={"experts": 3})
params_case("frequencies", r"rope_scaling has 1 frequencies", rope_scaling={"inverse": [1.0]})


@case(r"model\.safetensors: truncated or damaged safetensors file")
def native_truncated(d: Path) -> None:
    truncate(write_native(d) / WEIGHTS)


@case(r"model\.safetensors: truncated or damaged safetensors file")
def native_garbage(d: Path) -> None:
    (write_native(d) / WEIGHTS).write_bytes(b"\xff" * 100)


@case(r"model\.safetensors: truncated or damaged safetensors file")
def native_empty_file(d: Path) -> None:
    (write_native(d) / WEIGHTS).write_bytes(b"")


@case(r"params\.json: not valid JSON .*line 3")
def native_bad_json(d: Path) -> None:
    (write_native(d) / "configs/params.json").write_text(
        '{"dim": 32,\n"n_layers": 4,\n"n_heads" 4}'
    )


@case(r"params\.json: holds no JSON object but a list")
def native_json_list(d: Path) -> None:
    (write_native(d) / "configs/params.json").write_text("[]")


@case(r"params\.json: not (UTF-8|valid JSON)")
def native_binary_json(d: Path) -> None:
    (write_native(d) / "configs/params.json").write_bytes(b"\xff\xfe{}")


@case(r"configs/params\.json: no such file")
def native_no_params(d: Path) -> None:
    (write_native(d) / "configs/params.json").unlink()


@case(r"safetensors: holds no weights, neither model\.safetensors")
def native_no_weights(d: Path) -> None:
    (write_native(d) / WEIGHTS).unlink()


@case(r"metadata\.json: format_version 99 is newer than 2; update")
def native_newer(d: Path) -> None:
    edit_json(write_native(d) / "metadata.json", format_version=99)


def sharded(d: Path) -> Path:
    save_huggingface(tiny(n_future_tokens=1), d, max_shard_bytes=30_000)
    return d / "model.safetensors.index.json"


@case(r"model-00002-of-\d+\.safetensors: cannot be read \(No such file")
def shard_missing(d: Path) -> None:
    next(sharded(d).parent.glob("model-00002*")).unlink()


@case(r"safetensors: holds no 'model\.ghost', which model\.safetensors\.index\.json promises")
def shard_lacks_key(d: Path) -> None:
    index = sharded(d)
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map={**weight_map, "model.ghost": next(iter(weight_map.values()))})


@case(r"index\.json: weight_map\['x'\] is not a file name: '\.\./secret'")
def shard_outside(d: Path) -> None:
    edit_json(sharded(d), weight_map={"x": "../secret"})


@case(r"index\.json: weight_map must be an object")
def shard_map_is_a_list(d: Path) -> None:
    edit_json(sharded(d), weight_map=[])


@case(r"consolidated\.pth: truncated or damaged PyTorch file")
def meta_truncated(d: Path) -> None:
    truncate(write_meta(d) / "consolidated.pth")


@case(r"consolidated\.pth: not a PyTorch zip archive")
def meta_garbage(d: Path) -> None:
    (write_meta(d) / "consolidated.pth").write_bytes(b"not a model")


@case(r"consolidated\.pth: (not a PyTorch zip archive|truncated)")
def meta_empty(d: Path) -> None:
    (write_meta(d) / "consolidated.pth").write_bytes(b"")


class Evil:
    """Unpickling this would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("/tmp/weighted-mtp-was-here",)


@case(r"consolidated\.pth: refused, because its pickle carries code or objects \(.*mkdir\)")
def meta_code(d: Path) -> None:
    torch.save({"tok_embeddings.weight": Evil()}, write_meta(d) / "consolidated.pth")


@case(r"consolidated\.pth: not a PyTorch zip archive")
def meta_code_in_a_plain_pickle(d: Path) -> None:
    (write_meta(d) / "consolidated.pth").write_bytes(pickle.dumps(Evil()))


@case(r"consolidated\.pth: holds a list, not named tensors")
def meta_list(d: Path) -> None:
    torch.save([torch.ones(1)], write_meta(d) / "consolidated.pth")


@case(r"consolidated\.pth: 'model' is a dict, not a tensor")
def meta_nested(d: Path) -> None:
    torch.save({"model": {"x": torch.ones(1)}}, write_meta(d) / "consolidated.pth")


@case(r"consolidated\.pth: lacks key norm\.weight")
def meta_missing_key(d: Path) -> None:
    edit_pth(write_meta(d) / "consolidated.pth", lambda s: s.pop("norm.weight"))


@case(r"consolidated\.pth: norm\.weight holds NaN")
def meta_nan(d: Path) -> None:
    edit_pth(write_meta(d) / "consolidated.pth", lambda s: s["norm.weight"].fill_(float("nan")))


@case(r"consolidated\.01\.pth: lacks key norm\.weight, which consolidated\.00\.pth holds")
def meta_shards_differ(d: Path) -> None:
    edit_pth(write_meta(d, shards=2) / "consolidated.01.pth", lambda s: s.pop("norm.weight"))


@case(r"shards are missing or too many \(consolidated\.00\.pth, .*03\.pth\)")
def meta_shard_missing(d: Path) -> None:
    (write_meta(d, shards=4) / "consolidated.01.pth").unlink()


@case(r"has shape \[.*\] in 2 parts, but the configuration asks for")
def meta_last_shards_missing(d: Path) -> None:
    write_meta(d, shards=4)
    for rank in (2, 3):
        (d / f"consolidated.0{rank}.pth").unlink()


@case(r"holds params\.json but no consolidated\*\.pth")
def meta_no_weights(d: Path) -> None:
    (write_meta(d) / "consolidated.pth").unlink()


@case(r"params\.json: no such file")
def meta_no_params(d: Path) -> None:
    (write_meta(d) / "params.json").unlink()


@case(r"neither model\.safetensors .* nor pytorch_model\.bin")
def hf_no_weights(d: Path) -> None:
    (write_hf(d) / "model.safetensors").unlink()


@case(r"model\.safetensors: lacks key model\.layers\.1\.mlp\.up_proj\.weight")
def hf_missing_key(d: Path) -> None:
    edit_weights(
        write_hf(d) / "model.safetensors", lambda s: s.pop("model.layers.1.mlp.up_proj.weight")
    )


@case(r"config\.json: mtp_n_future_tokens is missing, but mtp_heads\.safetensors is there")
def hf_heads_unsaid(d: Path) -> None:
    save_huggingface(tiny(), d)
    config = json.loads((d / "config.json").read_text())
    del config["mtp_n_future_tokens"]
    (d / "config.json").write_text(json.dumps(config))


@case(r"mtp_heads\.safetensors: no such file, but mtp_n_future_tokens in config\.json is 3")
def hf_heads_missing(d: Path) -> None:
    save_huggingface(tiny(), d)
    (d / "mtp/mtp_heads.safetensors").unlink()


@case(r"mtp_heads\.safetensors: holds 18 keys: extra_heads\.0.*no place for")
def hf_heads_denied(d: Path) -> None:
    save_huggingface(tiny(), d)
    edit_json(d / "config.json", mtp_n_future_tokens=1)


@case(r"lm_head\.weight differs from model\.embed_tokens\.weight, though")
def hf_tied_but_different(d: Path) -> None:
    write_hf(d, tie_word_embeddings=True)
    twin = torch.zeros(40, 32)
    edit_weights(d / "model.safetensors", lambda s: s.update({"lm_head.weight": twin}))


@case(r"src: no such directory")
def nothing_there(d: Path) -> None:
    pass


@case(r"src: is a file; give the directory that holds it")
def a_file(d: Path) -> None:
    d.write_text("")


@case(r"src: no checkpoint found; looked for .* but the folder holds nothing")
def an_empty_folder(d: Path) -> None:
    d.mkdir()


@case(r"no checkpoint found; .* the folder holds a0\.gguf, a1\.gguf, .* and 2 more")
def another_layout(d: Path) -> None:
    d.mkdir()
    for i in range(7):
        (d / f"a{i}.gguf").write_text("")


def refused(capsys, argv: list[str]) -> str:
    """Run a command that must fail as a person's mistake; return its one line."""
    assert main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("name", CASES)
def test_damaged_input_is_refused_in_one_line(tmp_path, capsys, name):
    make, message = CASES[name]
    make(tmp_path / "src")
    capsys.readouterr()  # progress bars of transformers
    line = refused(capsys, ["convert", str(tmp_path / "src"), str(tmp_path / "new/dst")])
    assert re.search(message, line), line
    assert str(tmp_path / "src") in line
    assert len(line) < 400 + len(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} <= {"src"}
    assert not Path("/tmp/weighted-mtp-was-here").exists()
    assert re.search(message, refused(capsys, ["inspect", str(tmp_path / "src"), "--verify"]))


def test_a_changed_byte_is_found_by_its_sum(tmp_path, capsys):
    file = write_native(tmp_path / "src") / WEIGHTS
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    assert main(["inspect", str(tmp_path / "src")]) == 0
    capsys.readouterr()
    line = refused(capsys, ["inspect", str(tmp_path / "src"), "--verify"])
    assert "model.safetensors: its SHA-256 is not the one in metadata.json" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["DST"], "dst: already exists; choose another name or pass --overwrite"),
        (["DST", "--overwrite"], "dst: is not a checkpoint, so it is not overwritten"),
        (["NEW", "--dtype", "int3"], "dtype 'int3' is not one of float32"),
        (["NEW", "--dtype", "float16"], "holds values that float16 cannot; use bfloat16"),
        (["PARENT", "--overwrite"], "is no checkpoint|contains the source"),
    ],
)
def test_wrong_wishes_are_refused(tmp_path, capsys, options, message):
    src, dst = tmp_path / "src", tmp_path / "dst"
    write_native(src)
    edit_weights(src / WEIGHTS, lambda s: s[W1][0, 0].fill_(1e6))
    dst.mkdir()
    (dst / "thesis.tex").write_text("years")
    places = {"DST": str(dst), "NEW": str(tmp_path / "new"), "PARENT": str(tmp_path)}
    line = refused(capsys, ["convert", str(src), *(places.get(word, word) for word in options)])
    assert re.search(message, line), line
    assert {path.name for path in tmp_path.iterdir()} == {"src", "dst"}
    assert (dst / "thesis.tex").read_text() == "years"


def test_the_source_is_never_inside_what_is_replaced(tmp_path, capsys):
    write_native(tmp_path / "outer")
    write_native(tmp_path / "outer/inner")
    outer, inner = str(tmp_path / "outer"), str(tmp_path / "outer/inner")
    assert "contains the source" in refused(capsys, ["convert", inner, outer, "--overwrite"])
    assert Path(inner, WEIGHTS).is_file()
