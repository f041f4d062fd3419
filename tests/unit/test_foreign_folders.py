"""Folders as they are found: several number formats, two spellings of RoPE, stale files, tokens too
many or too few, rows that are too long. What transformers makes of them is the right answer."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.checkpoint_cases import hf_model, some_tokens, tiny, write_hf, write_meta
from tests.unit.test_tokenizers import write_huggingface
from transformers import AutoModelForCausalLM, LlamaConfig

from weighted_mtp.cli.main import main
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.tokens.row_tokens import tokenise
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer, check_vocabulary, load_tokenizer
from weighted_mtp.decoding import Speculation, generate
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.checkpoints import (
    inspect_checkpoint,
    load_meta_mtp_model,
    save_huggingface,
    save_native,
    value_head_path,
)
from weighted_mtp.models.meta_mtp.layouts.hf_config import read_config
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.models.meta_mtp.value_head import ValueHead

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


@pytest.fixture
def warnings(caplog, monkeypatch):
    """What was warned of so far, as one text."""
    monkeypatch.setattr(logging.getLogger("weighted_mtp"), "propagate", True)
    return lambda: "\n".join(r.getMessage() for r in caplog.records if r.levelname == "WARNING")


# --- number formats ------------------------------------------------------------------------------

MIXES = {
    "embeddings": (lambda name: F32 if name == "tok_embeddings.weight" else BF16, F32),
    "output": (lambda name: F32 if name == "output.weight" else BF16, F32),
    "norms": (lambda name: F32 if "norm" in name else BF16, BF16),
    "heads": (lambda name: F32 if name.startswith("extra_heads") else BF16, F32),
    "narrow heads": (lambda name: BF16 if name.startswith("extra_heads") else F32, F32),
    "both halves": (lambda name: F16 if "attention" in name else BF16, F32),
    "float16 norms": (lambda name: F16 if "norm" in name else BF16, BF16),
    "double": (lambda name: F64 if name.endswith("w2.weight") else F32, F64),
    "float16": (lambda name: F16, F16),
}


def mixed(kind: str) -> Transformer:
    model = tiny()
    for name, weight in model.named_parameters():
        weight.data = weight.data.to(MIXES[kind][0](name))
    return model


@pytest.mark.parametrize("layout", ["native", "meta", "hf"])
@pytest.mark.parametrize("kind", MIXES)
def test_a_mixed_folder_runs_in_one_format(tmp_path, kind, layout, warnings):
    stored, expected = mixed(kind), MIXES[kind][1]
    folder = tmp_path / "m"
    if layout == "meta":
        write_meta(folder, stored)
    else:
        {"native": save_native, "hf": save_huggingface}[layout](stored, folder)
    model = load_meta_mtp_model(folder, device="cpu")
    assert {weight.dtype for weight in model.parameters()} == {expected}
    formats = {weight.dtype for weight in stored.parameters()}
    assert ("several number formats" in warnings()) == (len(formats) > 1)
    assert inspect_checkpoint(folder).loaded_dtype == str(expected).removeprefix("torch.")
    tokens = some_tokens()
    with torch.no_grad():
        exact = stored.double()(tokens, return_all_heads=True)
        found = model(tokens, return_all_heads=True)
    error = (found - exact).abs().max() / exact.abs().max()
    assert error < {BF16: 0.05, F16: 0.01, F32: 1e-5, F64: 1e-12}[expected]
    for speculation in (None, Speculation(3)):
        (new,) = generate(model, [tokens[0].tolist()], 20, speculation=speculation)
        assert len(new) == 20


@pytest.mark.parametrize("kind", MIXES)
def test_a_conversion_keeps_each_format_to_the_bit(tmp_path, kind):
    stored = mixed(kind)
    save_native(stored, tmp_path / "n")
    place = tmp_path / "n"
    for number, to in enumerate(["hf", "native", "native", "hf", "native"]):
        assert main(["convert", str(place), str(tmp_path / str(number)), "--to", to]) == 0
        place = tmp_path / str(number)
    back = load_meta_mtp_model(place, device="cpu", keep_formats=True).state_dict()
    for name, weight in stored.state_dict().items():
        assert back[name].dtype == weight.dtype, name
        assert torch.equal(back[name], weight), name


@pytest.mark.parametrize("kind", ["embeddings", "norms", "both halves"])
def test_transformers_gives_a_mixed_export_the_same_logits(tmp_path, kind):
    save_huggingface(mixed(kind), tmp_path / "h")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "h", trust_remote_code=False)
    ours = load_meta_mtp_model(tmp_path / "h", device="cpu")
    assert theirs.dtype == MIXES[kind][1] == ours.output.weight.dtype
    with torch.no_grad():
        tokens = some_tokens(21)
        gap = (theirs(tokens).logits.float() - ours(tokens)[:, :, 0].float()).abs().max()
    assert gap < {BF16: 0.3, F32: 1e-5}[MIXES[kind][1]]


@pytest.mark.parametrize("dtype", [BF16, F16, F64])
def test_a_value_head_of_any_format_reads_in_float32(tmp_path, dtype):
    head = ValueHead(32)
    torch.nn.init.normal_(head.value.weight)
    head.to(dtype).save_checkpoint(tmp_path / "v.safetensors")
    save_huggingface(tiny().to(BF16), tmp_path / "h", value_head_file=tmp_path / "v.safetensors")
    adapter = MetaLlamaMTPAdapter.from_pretrained(tmp_path / "h", "cpu")
    assert adapter.value_head is not None
    assert adapter.value_head.value.weight.dtype == F32
    assert torch.equal(adapter.value_head.value.weight, head.value.weight.float())
    assert adapter.trunk_forward(some_tokens())["value_logits"].dtype == F32


def test_a_tied_twin_of_another_format_may_agree(tmp_path):
    write_hf(tmp_path / "h", tie_word_embeddings=True)
    file = tmp_path / "h/model.safetensors"
    state = {name: weight.to(BF16) for name, weight in load_file(file).items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"].float()
    save_file(state, file, metadata={"format": "pt"})
    model = load_meta_mtp_model(tmp_path / "h", device="cpu")
    assert model.output.weight is model.tok_embeddings.weight


def test_weights_have_the_permissions_of_other_files(tmp_path):
    old = os.umask(0o027)
    try:
        ValueHead(32).save_checkpoint(tmp_path / "v.safetensors")
        head = tmp_path / "v.safetensors"
        save_native(tiny(), tmp_path / "n", value_head_file=head, max_shard_bytes=30_000)
        save_huggingface(tiny(), tmp_path / "h", value_head_file=head)
    finally:
        os.umask(old)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}
    assert value_head_path(tmp_path / "h") == tmp_path / "h/mtp/value_head.safetensors"


# --- rope ----------------------------------------------------------------------------------------

LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
OTHER = {**LLAMA3, "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}
DEFAULT = {"rope_type": "default"}
ROPES: list[dict[str, object]] = [
    {},
    {"rope_theta": 500.0},
    {"rope_parameters": {**DEFAULT, "rope_theta": 700.0}},
    {"rope_parameters": {**DEFAULT, "rope_theta": 700.0}, "rope_theta": 500.0},
    {"rope_parameters": DEFAULT, "rope_theta": 500.0},
    {"rope_scaling": OTHER, "rope_theta": 500.0},
    {"rope_scaling": {**LLAMA3, "type": "llama3"}, "rope_theta": 500.0},
    {"rope_scaling": {**OTHER, "type": "linear"}},
    {"rope_scaling": {**OTHER, "rope_theta": 300.0}, "rope_theta": 500.0},
    {"rope_scaling": OTHER, "rope_parameters": {**DEFAULT, "rope_theta": 700.0}},
    {"rope_scaling": OTHER, "rope_parameters": {**DEFAULT, "rope_theta": 7.0}, "rope_theta": 5.0},
    {"rope_scaling": {**DEFAULT, "rope_theta": 30.0}, "rope_parameters": OTHER},
    {"rope_scaling": {}, "rope_parameters": {**OTHER, "rope_theta": 700.0}, "rope_theta": 5.0},
    {"rope_scaling": None, "rope_parameters": OTHER, "rope_theta": 5.0},
    {"rope_scaling": {"type": "default"}, "rope_parameters": OTHER, "rope_theta": 5.0},
    {"rope_parameters": {}, "rope_scaling": OTHER, "rope_theta": 5.0},
    {"rope_parameters": {**LLAMA3, "rope_type": "llama3"}, "original_max_position_embeddings": 8},
    {"rope_parameters": OTHER, "original_max_position_embeddings": 8},
    {"rope_scaling": OTHER, "rope_theta": 5.0, "original_max_position_embeddings": 40},
]


@pytest.mark.parametrize("rope", ROPES, ids=map(str, range(len(ROPES))))
def test_rope_is_read_in_the_order_of_transformers(tmp_path, rope, warnings):
    shape = {
        "hidden_size": 32,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 40,
        "max_position_embeddings": 64,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
    }
    (tmp_path / "config.json").write_text(json.dumps({**shape, **rope}))
    reference = AutoModelForCausalLM.from_config(
        LlamaConfig.from_pretrained(tmp_path), trust_remote_code=False
    )
    args = read_config(JsonFile.read(tmp_path / "config.json"))
    frequencies = torch.angle(Transformer(args).freqs_cis[1])  # below π: the rotations themselves
    assert torch.allclose(frequencies, reference.model.rotary_emb.inv_freq, rtol=1e-6)
    both = bool(rope.get("rope_scaling")) and bool(rope.get("rope_parameters"))
    assert ("rope_scaling and rope_parameters differ" in warnings()) == both


# --- files that are not the model's --------------------------------------------------------------


def other_model() -> dict[str, torch.Tensor]:
    return {name: weight + 1.0 for name, weight in hf_model().state_dict().items()}


def sharded(folder: Path) -> None:
    """A model in shards, and a `model.safetensors` of a newer one."""
    hf_model().save_pretrained(folder, max_shard_size="20KB")
    save_file(other_model(), folder / "model.safetensors", metadata={"format": "pt"})


def left_over_shards(folder: Path) -> None:
    hf_model().save_pretrained(folder, max_shard_size="20KB")
    save_file(other_model(), folder / "model-00009-of-00009.safetensors", metadata={"format": "pt"})


def pytorch_beside(folder: Path) -> None:
    write_hf(folder)
    torch.save(other_model(), folder / "pytorch_model.bin")


def meta_beside(folder: Path) -> None:
    write_hf(folder)
    other = write_meta(folder.parent / "meta", tiny())
    for path in other.iterdir():
        path.rename(folder / path.name)


def bin_and_its_index(folder: Path) -> None:
    write_hf(folder)
    (folder / "model.safetensors").unlink()
    torch.save(other_model(), folder / "pytorch_model.bin")
    torch.save(hf_model().state_dict(), folder / "pytorch_model-00001-of-00001.bin")
    weight_map = dict.fromkeys(hf_model().state_dict(), "pytorch_model-00001-of-00001.bin")
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def shards_and_pytorch(folder: Path) -> None:
    hf_model().save_pretrained(folder, max_shard_size="20KB")
    torch.save(other_model(), folder / "pytorch_model.bin")


STALE = {
    sharded: "read model.safetensors, as transformers does; not read: model-00001-of",
    left_over_shards: "shards of the index, as transformers does; not read: model-00009-of-00009",
    pytorch_beside: "read model.safetensors, as transformers does; not read: pytorch_model.bin",
    meta_beside: "read model.safetensors, as transformers does; not read: consolidated.pth",
    bin_and_its_index: "read pytorch_model.bin, as transformers does; not read: pytorch_model-0",
    shards_and_pytorch: "shards of the index, as transformers does; not read: pytorch_model.bin",
}


@pytest.mark.parametrize("make", STALE, ids=lambda make: make.__name__)
def test_stale_files_are_passed_over_as_transformers_does(tmp_path, make, warnings):
    folder = tmp_path / "h"
    make(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    ours = load_meta_mtp_model(folder, device="cpu")
    tokens = some_tokens()
    with torch.no_grad():
        assert torch.allclose(ours(tokens)[:, :, 0], theirs(tokens).logits, atol=1e-4)
    inspect_checkpoint(folder)
    said = [line for line in warnings().splitlines() if str(folder) in line]
    assert len(said) == 1  # once, however often it is opened
    assert STALE[make] in said[0]


def test_what_is_all_read_gives_no_warning(tmp_path, warnings):
    save_huggingface(tiny(), tmp_path / "one")
    save_huggingface(tiny(), tmp_path / "many", max_shard_bytes=30_000)
    (tmp_path / "one/mtp/mtp_heads.safetensors").rename(tmp_path / "one/mtp_heads.safetensors")
    (tmp_path / "one/mtp/sums.json").unlink()  # as in old exports
    for name in ("one", "many"):
        load_meta_mtp_model(tmp_path / name, device="cpu")
    assert str(tmp_path) not in warnings()


def test_a_meta_folder_with_a_bare_config_stays_meta(tmp_path):
    model = tiny()
    write_meta(tmp_path / "m", model)
    (tmp_path / "m/config.json").write_text("{}")
    assert load_meta_mtp_model(tmp_path / "m", device="cpu").args.n_future_tokens == 3


# --- vocabularies --------------------------------------------------------------------------------


def padded_tokenizer(folder: Path) -> tuple[Path, int]:
    """A tokenizer with a padding token that was added behind its vocabulary; its own size."""
    write_huggingface(folder)
    backend = json.loads((folder / "tokenizer.json").read_text())
    size = (
        max([*backend["model"]["vocab"].values(), *(t["id"] for t in backend["added_tokens"])]) + 1
    )
    added = {"id": size, "content": "<pad>", "special": True, "normalized": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    backend["added_tokens"].append({**added, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "<pad>"}))
    return folder, size


@pytest.mark.parametrize("more", [-1, 0, 1, 50])
def test_an_added_pad_that_the_model_lacks(tmp_path, more, warnings, capsys):
    """A model with one token fewer, as many, or more than the tokenizer: it runs, and warns."""
    folder, size = padded_tokenizer(tmp_path / "tok")
    vocab_size = size + 1 + more
    model = tiny(vocab_size=vocab_size, max_seq_len=64)
    save_native(model, tmp_path / "m", tokenizer_files=sorted(folder.iterdir()))
    asked = ["--prompt", "a b", "--template", "raw", "--max-new-tokens", "8"]
    assert main(["generate", str(tmp_path / "m"), *asked]) == 0
    tokenizer = load_tokenizer(tmp_path / "m")
    assert tokenizer.pad_id == size
    check_vocabulary(tokenizer, vocab_size, "m/")
    expected = {-1: "lacks the tokenizer's <pad>", 0: ""}.get(more, f"the model has {vocab_size}")
    assert expected in warnings() + capsys.readouterr().err
    collator = AlpacaCollator(tokenizer, "short", 32, 16)
    row = {"instruction": "a", "input": "", "output": "b", "task_id": "t", "is_correct": True}
    batch = collator([collator.encode({**row, "metadata": {}})])
    assert int(batch.tokens.max()) < vocab_size  # padding too
    assert main(["convert", str(tmp_path / "m"), str(tmp_path / "h"), "--to", "hf"]) == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "h", trust_remote_code=False)  # pad in range


def test_a_tokenizer_with_too_many_plain_tokens_is_refused(tmp_path):
    folder, size = padded_tokenizer(tmp_path / "tok")
    with pytest.raises(UserError, match=f"has {size + 1} tokens and the model only {size - 1}"):
        check_vocabulary(load_tokenizer(folder), size - 1, "m/")
    with pytest.raises(UserError, match="has 259 tokens and the model only 258"):  # it lacks EOS
        check_vocabulary(ByteTokenizer(), 258, "m/")


class WithMarker(ByteTokenizer):
    """Makes a token of the letter P that the model does not have."""

    vocab_size, fingerprint = 301, "with-marker"

    def encode(self, text: str) -> list[int]:
        return [300 if byte == ord("P") else byte for byte in super().encode(text)]


class Rows:
    path, digest = Path("rows.jsonl"), "rows"

    def __len__(self) -> int:
        return 4

    def rows(self, indices):
        output = ["a", "b", "Px", "c"]
        return [
            {
                "instruction": "i",
                "input": "",
                "output": output[i],
                "task_id": f"task-{i}",
                "is_correct": True,
                "metadata": {},
            }
            for i in indices
        ]


def test_a_row_with_a_token_that_the_model_lacks_is_named(tmp_path):
    collator = AlpacaCollator(WithMarker(), "short", 64)
    found = tokenise(Rows(), np.array([1, 2, 3]), collator, tmp_path)
    found.check_ids(301)
    with pytest.raises(UserError, match=r"row 2 \(task-2\) has token 300, .* ends at 258"):
        found.check_ids(259)


# --- lengths -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("short")
    ByteTokenizer().save(folder / "tok")
    files = [folder / "tok/bytes.json"]
    save_native(tiny(vocab_size=259, max_seq_len=64), folder / "m", tokenizer_files=files)
    return folder / "m"


PAST = "goes past the 64 positions"


@pytest.mark.parametrize(("new", "warned"), [(50, False), (70, True)])
def test_generating_past_the_positions_warns_once(short_model, new, warned, capsys):
    prompts = ["--prompt", "x" * 10, "--template", "raw"]
    assert main(["generate", str(short_model), *prompts, "--max-new-tokens", str(new)]) == 0
    assert capsys.readouterr().err.count(PAST) == warned


@pytest.mark.parametrize("command", ["dry-run", "plan"])
@pytest.mark.parametrize(("length", "warned"), [(64, False), (65, True)])
def test_training_past_the_positions_warns_once(
    short_model, tmp_path, monkeypatch, command, length, warned, capsys
):
    monkeypatch.setattr("weighted_mtp.core.logging._said", set())
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"instruction":"i","input":"","output":"o","task_id":"t","is_correct":true,"metadata":{}}\n'
    )
    settings = [f"data.max_length={length}", "runtime.device=cpu"]
    if command == "plan":
        argv = ["plan", "--recipe", "baseline", "--model", str(short_model), "--gpus", "1"]
    else:
        settings += [f"model.path={short_model}", "data.source=jsonl", f"data.train={rows}"]
        argv = ["train", "--recipe", "baseline", "--output-dir", str(tmp_path / "r"), "--dry-run"]
    options = [word for setting in settings for word in ("--set", setting)]
    assert main([*argv, *options]) == 0
    assert capsys.readouterr().err.count(PAST) == warned
