"""Other families than Llama: tiny random models that transformers makes, against transformers."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import transformers
from tests.helpers import random_tokens
from transformers import AutoModelForCausalLM

from weighted_mtp.cli.main import main
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.batches import Example, pack_batch
from weighted_mtp.decoding import Sampling, Speculation, Stopping, complete, complete_naively
from weighted_mtp.models.meta_mtp.add_heads import add_heads
from weighted_mtp.models.meta_mtp.checkpoints import (
    inspect_checkpoint,
    load_meta_mtp_model,
    save_huggingface,
    save_native,
)
from weighted_mtp.models.meta_mtp.kv_cache import KVCache
from weighted_mtp.models.meta_mtp.layouts.hf_config import KINDS
from weighted_mtp.models.meta_mtp.layouts.side_files import read_config_fields
from weighted_mtp.models.meta_mtp.rotary import RopeFrequencies

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
RESTATED = (
    "head_dim",
    "no_rope_layer_interval",
    "max_window_layers",
    "original_max_position_embeddings",  # Phi-3's default, which nothing reads without a scaling
)
"""Fields that an export says in another way, or makes explicit."""
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
CASES = {
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("Llama", {"head_dim": 12}),
    "llama, linear": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    "llama, dynamic": ("Llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    "llama, yarn": ("Llama", {"rope_scaling": YARN}),
    "llama, yarn, mscale": (
        "Llama",
        {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.3, "beta_fast": 16.0}},
    ),
    "mistral, window": ("Mistral", {"sliding_window": 5}),
    "mistral, head_dim": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0},
    ),
    "qwen2, yarn": ("Qwen2", {"rope_scaling": YARN}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3, biases": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.25,
            "residual_multiplier": 0.4,
            "logits_scaling": 3.0,
        },
    ),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "smollm3, last": ("SmolLM3", {"no_rope_layers": [1, 1, 0], "tie_word_embeddings": False}),
    "phi3": ("Phi3", {"pad_token_id": 0}),
    "phi3, partial": ("Phi3", {"pad_token_id": 0, "partial_rotary_factor": 0.5}),
    "phi3, window": ("Phi3", {"pad_token_id": 0, "sliding_window": 4}),
}


def made(name, dtype=torch.float32):
    """A random model of transformers whose every weight matters."""
    family, changes = CASES[name]
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", trust_remote_code=False
    )
    model = model.eval().to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key:
                weight.uniform_(0.5, 1.5, generator=generator)
            else:
                weight.normal_(std=0.2, generator=generator)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved model of transformers, and itself, by case; made when first asked for."""
    known = {}

    def get(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("family")
            model = made(name)
            model.save_pretrained(folder)
            known[name] = (folder, model)
        return known[name]

    return get


def with_heads(folder, heads=3, dtype=torch.float32):
    """The model with extra heads that differ from the last block, but not in kind."""
    model = add_heads(load_meta_mtp_model(folder, "cpu").to(dtype), heads)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in model.extra_heads.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator).to(dtype) * 0.05)
    return model


every_case = pytest.mark.parametrize("name", CASES)


@every_case
@torch.no_grad()
def test_logits_are_those_of_transformers(name, folders, record_property):
    folder, theirs = folders(name)
    ours = load_meta_mtp_model(folder, "cpu")
    tokens = random_tokens(ours.args, 2, 29)
    expected = theirs(tokens).logits
    assert expected.std() > 0.3
    error = float((ours(tokens)[:, :, 0] - expected).abs().max())
    record_property("max_error", error)
    assert error < 1e-5


def rotations_in_double(theirs, ours):
    """Have both rotate by the same angles in float64: transformers computes them in float32."""
    rotary = theirs.model.rotary_emb
    inverse, amplitude = rotary.inv_freq.double(), getattr(rotary, "attention_scaling", 1.0)

    def forward(x, position_ids, *_):
        angles = position_ids[..., None].double() * inverse
        doubled = torch.cat([angles, angles], -1)
        return doubled.cos() * amplitude, doubled.sin() * amplitude

    rotary.forward = forward
    described = RopeFrequencies(tuple(inverse.tolist()), amplitude)
    ours.args = replace(ours.args, rope_scaling=described)
    ours.freqs_cis = ours._rope_table(torch.float64)


@every_case
@torch.no_grad()
def test_logits_in_float64(name, tmp_path, record_property):
    theirs = made(name, torch.float64)
    theirs.save_pretrained(tmp_path)
    ours = load_meta_mtp_model(tmp_path, "cpu")
    for module in theirs.modules():  # their norms compute in float32 whatever they are given
        if type(module).__name__.endswith("RMSNorm"):
            eps = module.variance_epsilon
            module.forward = lambda x, m=module, e=eps: (
                m.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + e)
            )
    rotations_in_double(theirs, ours)
    tokens = random_tokens(ours.args, 2, 29)
    import torch.nn.functional as F

    softmax = F.softmax  # in float32, too
    try:
        F.softmax = torch.nn.functional.softmax = lambda x, dim, dtype=None: softmax(x, dim)
        expected = theirs(tokens).logits
    finally:
        F.softmax = torch.nn.functional.softmax = softmax
    assert expected.dtype == torch.float64
    error = float((ours(tokens)[:, :, 0] - expected).abs().max())
    record_property("max_error", error)
    assert error < 1e-9


@every_case
@torch.no_grad()
def test_cached_and_ragged_reading_is_one_pass(name, folders):
    model = with_heads(folders(name)[0], dtype=torch.float64)
    tokens = random_tokens(model.args, 3, 25)
    whole = model(tokens, return_all_heads=True)
    cache = KVCache(model.args, 3, 32, dtype=torch.float64)
    cuts = [0, 4, 5, 13, 25]
    pieces = [
        model(tokens[:, a:b], a, return_all_heads=True, cache=cache) for a, b in pairwise(cuts)
    ]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-11)
    cache = KVCache(model.args, 3, 32, dtype=torch.float64)
    model(tokens[:, :18], 0, return_all_heads=True, cache=cache)
    starts = torch.tensor([3, 9, 18])
    window = torch.stack([row[s : s + 4] for row, s in zip(tokens, starts, strict=True)])
    ragged = model(window, starts, return_all_heads=True, cache=cache)
    for row, start in enumerate(starts.tolist()):
        torch.testing.assert_close(ragged[row], whole[row, start : start + 4], rtol=0, atol=1e-11)


@pytest.mark.parametrize("lengths", [[[9, 8], [11, 6]], [[13, 2, 1], [16]]])
@every_case
@torch.no_grad()
def test_packed_documents_are_read_as_if_alone(name, lengths, folders):
    model = with_heads(folders(name)[0], dtype=torch.float64)
    ids = iter(random_tokens(model.args, 8, 20).tolist())
    rows = [[Example(next(ids)[: m + 1], 0, False, 0) for m in row] for row in lengths]
    batch = pack_batch(rows, 0)
    packing = batch.packing
    assert packing is not None
    for mask in (packing, packing._replace(runs=()), packing.mask):
        packed = model(batch.tokens, return_all_heads=True, positions=packing.positions, mask=mask)
        for row, examples in enumerate(rows):
            start = 0
            for example in examples:
                end = start + example.positions
                alone = model(torch.tensor([example.ids[:-1]]), return_all_heads=True)
                torch.testing.assert_close(packed[row, start:end], alone[0], rtol=0, atol=1e-11)
                start = end
        assert packed.isfinite().all()


@every_case
def test_decoding_with_drafts_gives_the_text_of_one_pass(name, folders):
    model = with_heads(folders(name)[0])
    prompts = [random_tokens(model.args, 1, n, seed=n)[0].tolist() for n in (3, 9, 6)]
    stopping = Stopping(max_new_tokens=14)
    with torch.no_grad():
        expected = [complete_naively(model, p, stopping, Sampling()).tokens for p in prompts]
        plain, _ = complete(model, prompts, stopping)
        drafted, _ = complete(model, prompts, stopping, speculation=Speculation())
    assert [text.tokens for text in plain] == expected
    assert [text.tokens for text in drafted] == expected


@every_case
def test_every_head_has_its_gradient(name, folders):
    """By autograd, against central differences in float64, for one number of every parameter."""
    model = with_heads(folders(name)[0], dtype=torch.float64)
    tokens = random_tokens(model.args, 2, 9)
    generator = torch.Generator().manual_seed(0)

    def loss():
        logits = model(tokens, return_all_heads=True)
        return (logits.log_softmax(-1)[..., 5] * torch.linspace(1, 2, 3)).mean()

    loss().backward()
    for key, weight in model.named_parameters():
        place = int(torch.randint(weight.numel(), (), generator=generator))
        assert weight.grad is not None, key
        flat = weight.data.view(-1)
        with torch.no_grad():
            kept, step = flat[place].item(), 1e-5
            flat[place] = kept + step
            above = loss().item()
            flat[place] = kept - step
            below = loss().item()
            flat[place] = kept
        numeric = (above - below) / (2 * step)
        assert weight.grad.view(-1)[place].item() == pytest.approx(numeric, rel=1e-4, abs=1e-8), key


@every_case
def test_to_native_and_back_bit_for_bit(name, folders, tmp_path):
    folder, theirs = folders(name)
    model = add_heads(load_meta_mtp_model(folder, "cpu"), 2)
    save_native(model, tmp_path / "native")
    again = load_meta_mtp_model(tmp_path / "native", "cpu")
    assert again.args == model.args
    save_huggingface(again, tmp_path / "hf", config_fields=read_config_fields(folder))
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=False)
    assert type(opened) is type(theirs)
    for key, weight in theirs.state_dict().items():
        assert torch.equal(weight, opened.state_dict()[key]), key
    ours, before = opened.config.to_dict(), theirs.config.to_dict()
    for key, value in before.items():
        if key not in ("dtype", "_name_or_path", "transformers_version", "torch_dtype"):
            if key in RESTATED:
                continue
            assert ours.get(key) == value, key
    last = load_meta_mtp_model(tmp_path / "hf", "cpu")
    assert last.args == model.args
    for (key, one), other in zip(model.named_parameters(), last.parameters(), strict=True):
        assert torch.equal(one, other), key


@pytest.mark.parametrize("name", KINDS)
def test_what_a_config_leaves_out_is_what_transformers_assumes(name, tmp_path):
    """A config.json of sizes alone: our defaults against those of the installed transformers."""
    kind = getattr(transformers, KINDS[name].architecture.replace("ForCausalLM", "Config"), None)
    if kind is None:
        pytest.skip(f"this transformers has no {name}")
    sizes = {
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 32,
        "vocab_size": 61,
        "intermediate_size": 48,
    }
    extra = {"pad_token_id": 0} if name in ("phi3", "smollm3") else {}
    config = kind(**sizes, **extra)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.save_pretrained(tmp_path)
    whole = inspect_checkpoint(tmp_path).args
    named = {"model_type": name, "architectures": [KINDS[name].architecture]}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, **extra, **named}))
    assert inspect_checkpoint(tmp_path).args == whole


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("qwen2", {"model_type": "qwen2_moe"}, ["model_type", "mixtures of experts"]),
        ("qwen2", {"model_type": "gemma2"}, ["model_type", "gemma2", "qwen3"]),
        ("qwen2", {"quantization_config": {"bits": 4}}, ["quantization_config", "dequantise"]),
        ("llama, biases", {"final_logit_softcapping": 30.0}, ["soft caps"]),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
            ["use_sliding_window", "max_window_layers"],
        ),
        ("llama, yarn", {"rope_scaling": {"rope_type": "longrope"}}, ["rope_type", "longrope"]),
        ("llama, yarn", {"rope_scaling": {"rope_type": "yarn"}}, ["factor"]),
        ("llama, yarn", {"rope_scaling": {"rope_type": "linear", "factor": -1}}, ["factor"]),
        ("phi3", {"partial_rotary_factor": 1.5}, ["partial_rotary_factor"]),
        ("phi3", {"num_key_value_heads": 4}, ["qkv_proj", "64 rows", "96"]),
        ("qwen3", {"head_dim": 7}, ["head_dim"]),
        ("qwen2", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ("smollm3", {"no_rope_layers": [1, 2, 0]}, ["no_rope_layers"]),
        ("granite", {"logits_scaling": 0}, ["logits_scaling"]),
    ],
)
def test_what_is_not_supported_says_so(name, changes, words, folders, tmp_path):
    folder, _ = folders(name)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("layer_types", *(["rope_parameters"] if "rope_scaling" in changes else [])):
        config.pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError) as caught:
        inspect_checkpoint(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_dynamic_scaling_ends_where_its_frequencies_do(folders):
    model = load_meta_mtp_model(folders("llama, dynamic")[0], "cpu")
    assert model.max_positions == SHAPE["max_position_embeddings"]
    with pytest.raises(ValueError, match="exceeds the 32 positions"):
        model(random_tokens(model.args, 1, 33))


@pytest.mark.parametrize("family", ["Qwen3", "Phi3"])
def test_the_whole_way_from_a_folder_to_a_trained_export(family, tmp_path, capsys):
    """convert --add-heads, plan, train, convert --to hf: transformers opens its own kind."""
    config = getattr(transformers, f"{family}Config")(
        **{
            **SHAPE,
            "vocab_size": 260,
            "head_dim": 16,
            "pad_token_id": 0,
            "max_position_embeddings": 1024,
        }
    )
    made_by_them = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    made_by_them.save_pretrained(tmp_path / "theirs")
    rows = tmp_path / "rows.jsonl"
    fields = {"instruction": "say", "input": "", "output": "yes", "is_correct": True}
    rows.write_text("".join(json.dumps({**fields, "task_id": f"t{i}"}) + "\n" for i in range(4)))
    start, run, out = (str(tmp_path / name) for name in ("start", "run", "out"))
    assert main(["convert", str(tmp_path / "theirs"), start, "--add-heads", "3"]) == 0
    assert main(["inspect", start]) == 0
    assert family.lower() in capsys.readouterr().out
    bytes_tokenizer = ("--set", "tokenizer.kind=bytes")
    assert main(["plan", "--recipe", "baseline", "--model", start, *bytes_tokenizer]) == 0
    changes = (
        f"model.path={start}",
        "tokenizer.kind=bytes",
        f"data.train={rows}",
        "data.max_length=256",
        "training.steps=2",
        "training.batch_size=2",
        "training.micro_batch_size=2",
        "training.learning_rate=0.01",
        "runtime.compute_dtype=float32",
    )
    settings = [word for change in changes for word in ("--set", change)]
    assert main(["train", "--recipe", "baseline", "--output-dir", run, *settings]) == 0
    assert main(["convert", run, out, "--to", "hf"]) == 0
    opened = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False)
    assert type(opened) is type(made_by_them)
    tokens = random_tokens(load_meta_mtp_model(out, "cpu").args, 1, 9)
    with torch.no_grad():
        ours = load_meta_mtp_model(run, "cpu")(tokens)[:, :, 0]
        error = (opened.float()(tokens).logits - ours.float()).abs().max()
    assert error < 1e-4
    key = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(opened.state_dict()[key], made_by_them.state_dict()[key])
