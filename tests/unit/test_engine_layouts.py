"""Exports for others' tools, read back from their files alone by the plainest reader of each."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tests.helpers import random_tokens, tiny_args, tiny_model
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from weighted_mtp.cli.main import main
from weighted_mtp.models.meta_mtp.args import Family
from weighted_mtp.models.meta_mtp.checkpoints import (
    detect_layout,
    load_meta_mtp_model,
    save_mtp_llama,
    save_native,
)
from weighted_mtp.models.meta_mtp.layouts.eagle3 import serve_command
from weighted_mtp.models.meta_mtp.rotary import RopeScaling

GQA = {"n_kv_heads": 2, "n_layers": 6}
SHAPES = {
    "gqa": GQA,
    "tied": {"tie_embeddings": True, "n_layers": 6},
    "llama3": {"n_layers": 6, "rope_scaling": RopeScaling(4.0, 1.0, 4.0, 8), "n_future_tokens": 2},
}
BIASES = Family(qkv_bias=True, output_bias=True, mlp_bias=True)


def write(folder: Path, dtype: torch.dtype = torch.float32, **shape) -> SimpleNamespace:
    """A random model in the native layout, and tokens for it."""
    args = tiny_args(**shape)
    model = tiny_model(args, dtype=dtype).eval()
    save_native(model, folder)
    return SimpleNamespace(model=model, tokens=random_tokens(args, 2, 11), args=args)


def refusal(capsys, *command: object) -> str:
    """The one line with which a command that cannot be carried out ends."""
    assert main([str(part) for part in command]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


# --- mtp_llama -----------------------------------------------------------------------------------


def fast_llm_logits(folder: Path, tokens: Tensor) -> Tensor:
    """`[B, S, n, V]` as Fast-LLM's modelling code has it: its names, transformers' blocks."""
    fields = json.loads((folder / "config.json").read_text())
    assert fields["model_type"] == "mtp_llama"
    assert fields["architectures"] == ["MTPLlamaForCausalLM"]
    n = fields["prediction_heads"]
    described = {k: v for k, v in fields.items() if k not in ("model_type", "auto_map")}
    config = LlamaConfig(**described, attn_implementation="eager")
    state = load_file(folder / "model.safetensors")
    S = tokens.shape[1]
    h = F.embedding(tokens, state["model.embed_tokens.weight"])
    positions = LlamaRotaryEmbedding(config)(h, torch.arange(S)[None])
    mask = torch.full((S, S), -math.inf).triu(1)[None, None]

    def taken(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    def block(prefix: str, x: Tensor) -> Tensor:
        layer = LlamaDecoderLayer(config, 0)
        layer.load_state_dict(taken(prefix))
        out = layer(x, attention_mask=mask, position_embeddings=positions)
        return out[0] if isinstance(out, tuple) else out

    last = config.num_hidden_layers - 1
    for i in range(last):
        h = block(f"model.layers.{i}.", h)
    unembedding = state.get("lm_head.weight", state["model.embed_tokens.weight"])
    logits = []
    for k in range(n):
        x = block(f"model.layers.{last}." if k == 0 else f"model.mtp_heads.{k - 1}.", h)
        norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        norm.load_state_dict(taken(f"model.mtp_norms.{k}."))
        logits.append(norm(x) @ unembedding.T)
    return torch.stack(logits, dim=2)


@pytest.mark.parametrize("shape", [*SHAPES.values(), {"family": BIASES}, {"n_future_tokens": 1}])
@torch.no_grad()
def test_mtp_llama_has_all_heads(tmp_path, shape):
    found = write(tmp_path / "m", **shape)
    out = tmp_path / "out"
    assert main(["convert", str(tmp_path / "m"), str(out), "--to", "mtp_llama"]) == 0

    theirs = fast_llm_logits(out, found.tokens)
    ours = found.model(found.tokens, return_all_heads=True)
    assert torch.allclose(theirs, ours, atol=1e-5, rtol=0)

    assert detect_layout(out) == "mtp_llama"
    assert main(["inspect", str(out), "--verify"]) == 0
    back = load_meta_mtp_model(out, device="cpu")
    assert back.args.n_future_tokens == found.args.n_future_tokens
    assert back.args.rope_scaling == found.args.rope_scaling
    weights, again = found.model.state_dict(), back.state_dict()
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    tied = found.args.tie_embeddings
    assert ("lm_head.weight" in load_file(out / "model.safetensors")) != tied


def test_mtp_llama_in_shards_and_with_the_value_head(tmp_path):
    model = tiny_model()
    save_file({"value.weight": torch.zeros(1, 32)}, tmp_path / "value.safetensors")
    save_mtp_llama(
        model,
        tmp_path / "out",
        max_shard_bytes=40_000,
        value_head_file=tmp_path / "value.safetensors",
    )
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert (tmp_path / "out/mtp/value_head.safetensors").is_file()
    back = load_meta_mtp_model(tmp_path / "out", device="cpu")
    assert all(torch.equal(model.state_dict()[k], v) for k, v in back.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["model.mtp_norms.2.weight"].mul_(2), "mtp_norms.2.weight differs from"),
        (lambda s: s.pop("model.mtp_norms.1.weight"), "lacks key model.mtp_norms.1.weight"),
        (lambda s: s.pop("model.mtp_norms.0.weight"), "lacks key model.mtp_norms.0.weight"),
        (
            lambda s: s.pop("model.mtp_heads.1.mlp.up_proj.weight"),
            "lacks key model.mtp_heads.1.mlp.up_proj.weight",
        ),
        (lambda s: s.update({"model.mtp_norms.3.weight": torch.ones(32)}), "mtp_norms.3.weight"),
    ],
)
def test_mtp_llama_that_does_not_fit_is_refused(tmp_path, capsys, change, message):
    save_mtp_llama(tiny_model(), tmp_path / "out")
    state = load_file(tmp_path / "out/model.safetensors")
    change(state)
    save_file(state, tmp_path / "out/model.safetensors")
    for name in ("model.safetensors.index.json", "mtp/sums.json"):  # as another tool writes it
        (tmp_path / "out" / name).unlink()
    assert message in refusal(capsys, "inspect", tmp_path / "out")


# --- EAGLE-3 -------------------------------------------------------------------------------------


def entering(base: Path, tokens: Tensor) -> list[Tensor]:
    """What enters each block of the base export, and last what leaves the final one."""
    model = load_meta_mtp_model(base, device="cpu")
    states: list[Tensor] = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    model.layers[-1].register_forward_hook(lambda *parts: states.append(parts[-1]))
    model(tokens)
    return states


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rotated(x: Tensor, theta: float) -> Tensor:
    """First half of each head against the second, `[B, S, H, d]`."""
    S, d = x.shape[1], x.shape[-1]
    steps = torch.arange(0, d, 2, dtype=torch.float64) / d
    angles = torch.arange(S, dtype=torch.float64)[:, None, None] / theta**steps
    first, second = x[..., : d // 2], x[..., d // 2 :]
    return torch.cat(
        [
            first * angles.cos() - second * angles.sin(),
            second * angles.cos() + first * angles.sin(),
        ],
        -1,
    )


def eagle3_logits(
    folder: Path, config: dict, layers: list[int], base: Path, tokens: Tensor
) -> Tensor:
    """`[B, S - 1, V']`: an EAGLE-3 draft step, from what the files say. Position t has the states
    of token t and the embedding of token t + 1."""
    stored = load_file(folder / "model.safetensors")
    w = {key.replace("layers.0.", "midlayer."): value for key, value in stored.items()}
    eps, D, d = config["rms_norm_eps"], config["hidden_size"], config["head_dim"]
    states = entering(base, tokens)
    h = torch.cat([states[i] for i in layers], -1)[:, :-1] @ w["fc.weight"].T
    B, S = h.shape[:2]
    embeddings = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    token = rms(embeddings[tokens[:, 1:]], w["midlayer.input_layernorm.weight"], eps)
    x = torch.cat([token, rms(h, w["midlayer.hidden_norm.weight"], eps)], -1)
    assert x.shape[-1] == 2 * D
    q, k, v = (
        (x @ w[f"midlayer.self_attn.{p}_proj.weight"].T).view(B, S, -1, d) for p in ("q", "k", "v")
    )
    q, k = rotated(q, config["rope_theta"]), rotated(k, config["rope_theta"])
    groups = q.shape[2] // k.shape[2]
    k, v = (part.repeat_interleave(groups, 2) for part in (k, v))
    scores = torch.einsum("bshd,bthd->bhst", q, k) / math.sqrt(d)
    scores += torch.full((S, S), -math.inf, dtype=torch.float64).triu(1)
    mixed = torch.einsum("bhst,bthd->bshd", scores.softmax(-1), v).flatten(2)
    h = h + mixed @ w["midlayer.self_attn.o_proj.weight"].T
    x = rms(h, w["midlayer.post_attention_layernorm.weight"], eps)
    gate, up = (x @ w[f"midlayer.mlp.{p}_proj.weight"].T for p in ("gate", "up"))
    h = h + (F.silu(gate) * up) @ w["midlayer.mlp.down_proj.weight"].T
    return rms(h, w["norm.weight"], eps) @ w["lm_head.weight"].T


@pytest.mark.parametrize("shape", ["gqa", "tied"])
@pytest.mark.parametrize("engine", ["vllm", "sglang", "llamacpp"])
@torch.no_grad()
def test_an_eagle3_step_is_head_2(tmp_path, capsys, engine, shape):
    found = write(tmp_path / "m", torch.float64, **SHAPES[shape])
    base = tmp_path / "a base"
    command = ["convert", str(tmp_path / "m"), str(base), "--to", "eagle3", "--engine", engine]
    assert main(command) == 0
    out = capsys.readouterr().out

    draft = base / "eagle3"
    config = json.loads((draft / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["num_hidden_layers"] == 1
    assert config["norm_before_residual"] is False
    assert config["draft_vocab_size"] == config["vocab_size"] == found.args.vocab_size
    assert config["eagle_config"]["use_aux_hidden_state"] is True
    layers = config["eagle_config"]["eagle_aux_hidden_state_layer_ids"]
    assert config["eagle_aux_hidden_state_layer_ids"] == layers
    assert len(set(layers)) == 3
    assert min(layers) >= 0
    trunk = len(found.model.layers) - 1
    assert layers[-1] == (trunk - 1 if engine == "sglang" else trunk)
    entered = [i + 1 for i in layers] if engine == "sglang" else layers
    theirs = eagle3_logits(draft, config, entered, base, found.tokens)
    ours = found.model(found.tokens, return_all_heads=True)[:, :-1, 1]
    assert torch.allclose(theirs, ours, atol=1e-9, rtol=0)
    wq = load_file(draft / "model.safetensors")["midlayer.self_attn.q_proj.weight"]
    assert not wq[:, : found.args.dim].any()

    served = serve_command(str(base), str(draft), "eagle3", engine)
    assert served in out
    assert served in (draft / "README.md").read_text()
    assert f"'{base}'" in served  # a name with a space
    assert main(["inspect", str(base), "--verify"]) == 0
    back = load_meta_mtp_model(base, device="cpu")  # the base export keeps all heads
    assert all(torch.equal(found.model.state_dict()[k], v) for k, v in back.state_dict().items())


@torch.no_grad()
def test_a_draft_vocabulary_is_rows_of_the_unembedding(tmp_path):
    found = write(tmp_path / "m", torch.float64, **GQA)
    ids = [2, 3, 5, 17, 36]
    (tmp_path / "ids.json").write_text(json.dumps([17, 5, 3, 36, 2, 3]))
    base = tmp_path / "base"
    command = ["convert", str(tmp_path / "m"), str(base), "--to", "eagle3", "--draft-tokens"]
    assert main([*command, str(tmp_path / "ids.json")]) == 0
    draft = base / "eagle3"
    config = json.loads((draft / "config.json").read_text())
    assert config["draft_vocab_size"] == 5
    assert config["vocab_size"] == found.args.vocab_size
    state = load_file(draft / "model.safetensors")
    assert state["d2t"].dtype == torch.int64
    assert state["t2d"].dtype == torch.bool
    assert (state["d2t"] + torch.arange(5)).tolist() == ids
    assert state["t2d"].nonzero().flatten().tolist() == ids
    layers = config["eagle_config"]["eagle_aux_hidden_state_layer_ids"]
    theirs = eagle3_logits(draft, config, layers, base, found.tokens)
    ours = found.model(found.tokens, return_all_heads=True)[:, :-1, 1, ids]
    assert torch.allclose(theirs, ours, atol=1e-9, rtol=0)


@torch.no_grad()
def test_the_speculators_form_has_the_same_tensors(tmp_path, capsys, monkeypatch):
    found = write(tmp_path / "m", torch.float64, **GQA)
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "m", "first", "--to", "eagle3"]) == 0
    assert main(["convert", "m", "second", "--to", "speculators"]) == 0
    base = tmp_path / "second"
    draft = base / "speculators"
    assert f"vllm serve {draft}" in capsys.readouterr().out
    config = json.loads((draft / "config.json").read_text())
    assert config["speculators_model_type"] == "eagle3"
    assert config["norm_before_residual"] is False  # its absence would mean true
    spoken = config["speculators_config"]
    assert spoken["algorithm"] == "eagle3"
    assert spoken["default_proposal_method"] == "greedy"
    assert spoken["proposal_methods"][0]["speculative_tokens"] == 1
    assert spoken["verifier"] == {"name_or_path": str(base), "architectures": ["LlamaForCausalLM"]}
    layer = config["transformer_layer_config"]
    theirs = eagle3_logits(
        draft, layer, config["eagle_aux_hidden_state_layer_ids"], base, found.tokens
    )
    ours = found.model(found.tokens, return_all_heads=True)[:, :-1, 1]
    assert torch.allclose(theirs, ours, atol=1e-9, rtol=0)
    first = load_file("first/eagle3/model.safetensors")
    second = load_file(draft / "model.safetensors")
    assert {key.replace("midlayer.", "layers.0.") for key in first} == second.keys()
    assert all(
        torch.equal(v, second[k.replace("midlayer.", "layers.0.")]) for k, v in first.items()
    )


def test_an_export_replaces_an_older_one(tmp_path):
    write(tmp_path / "m", **GQA)
    command = ["convert", str(tmp_path / "m"), str(tmp_path / "out"), "--overwrite", "--to"]
    for layout in ("eagle3", "speculators", "mtp_llama", "hf"):
        assert main([*command, layout]) == 0
    assert not (tmp_path / "out/eagle3").exists()
    assert not (tmp_path / "out/speculators").exists()


# --- what is refused -----------------------------------------------------------------------------

QWEN2 = {"family": Family("qwen2", qkv_bias=True)}
REFUSED = {
    "one head": ({"n_future_tokens": 1}, ["eagle3"], "next-token head alone"),
    "one head, speculators": ({"n_future_tokens": 1}, ["speculators"], "--to speculators"),
    "another family": (QWEN2, ["eagle3"], "family is qwen2"),
    "another family, mtp_llama": (QWEN2, ["mtp_llama"], "family is qwen2"),
    "biases": ({"family": BIASES}, ["eagle3"], "have biases"),
    "short trunk": ({"n_layers": 4}, ["eagle3"], "needs 2 blocks, but it has 1"),
    "short trunk, sglang": ({}, ["eagle3", "--engine", "sglang"], "needs 3 blocks, but it has 2"),
    "engine": ({}, ["speculators", "--engine", "sglang"], "leave out --engine sglang"),
    "engine, hf": ({}, ["hf", "--engine", "vllm"], "--engine goes with --to eagle3"),
    "ids, mtp_llama": ({}, ["mtp_llama", "--draft-tokens", "x"], "--draft-tokens goes with"),
    "no ids": ({}, ["eagle3", "--draft-tokens", "missing.json"], "missing.json: cannot be read"),
    "empty ids": ({}, ["eagle3", "--draft-tokens", "[]"], "--draft-tokens is empty"),
    "far ids": ({}, ["eagle3", "--draft-tokens", "[1, 37]"], "ids outside 0 to 36"),
    "text ids": ({}, ["eagle3", "--draft-tokens", '["a"]'], "must hold a JSON list of token ids"),
    "no JSON": ({}, ["eagle3", "--draft-tokens", "[1,"], "give a JSON list of token ids"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_one_line(tmp_path, capsys, monkeypatch, name):
    shape, options, message = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    write(Path("m"), **shape)
    if options[-1].startswith("["):
        Path("ids.json").write_text(options[-1])
        options = [*options[:-1], "ids.json"]
    before = sorted(Path().iterdir())
    assert message in refusal(capsys, "convert", "m", "out", "--to", *options)
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("layout", ["mtp_llama", "eagle3", "speculators"])
def test_no_export_into_its_source(tmp_path, capsys, layout):
    m = tmp_path / "m"
    write(m, **GQA)
    command = ("--to", layout, "--overwrite")
    assert "is the source" in refusal(capsys, "convert", m, m, *command)
    assert "lies in the source" in refusal(capsys, "convert", m, m / "out", *command)
    assert "contains the source" in refusal(capsys, "convert", m, tmp_path, *command)
    assert main(["inspect", str(m), "--verify"]) == 0
