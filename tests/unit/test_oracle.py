"""The oracle in vendor/: what it promises, and that its arithmetic is right."""

import ast
import io
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from vendor.meta_llama import Llama, ModelArgs, Tokenizer, Transformer
from vendor.meta_llama.model import (
    Attention,
    FeedForward,
    RMSNorm,
    at_least_float32,
    causal_mask,
    rotary_table,
)

ROOT = Path(__file__).resolve().parents[2]
ARGS = ModelArgs(
    dim=16,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    vocab_size=11,
    multiple_of=8,
    n_future_tokens=3,
    max_batch_size=2,
    max_seq_len=12,
)


def tiny(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(ARGS).double()
    for parameter in model.parameters():  # large enough that attention is far from uniform
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def some_tokens(batch: int = 2, length: int = 10) -> Tensor:
    return torch.randint(ARGS.vocab_size, (batch, length), generator=torch.manual_seed(1))


# --- imports -------------------------------------------------------------------------------------


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(top-level package, is it imported inside a function?) for every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(inner)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], id(node) in lazy
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).split(".")[0], id(node) in lazy


def test_the_promised_import_works_from_the_repository_root() -> None:
    code = "from vendor.meta_llama import Transformer, ModelArgs; print('OK')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "OK", done.stderr


def test_vendor_imports_only_torch_and_the_standard_library() -> None:
    files = sorted((ROOT / "vendor").rglob("*.py"))
    assert files
    for path in files:
        for package, lazy in imports(path):
            allowed = package in {"torch", "vendor"} | sys.stdlib_module_names
            assert allowed or (package == "sentencepiece" and lazy), f"{path}: {package}"


def test_src_never_imports_vendor() -> None:
    files = sorted((ROOT / "src" / "weighted_mtp").rglob("*.py"))
    assert files
    assert [path for path in files if "vendor" in dict(imports(path))] == []


# --- names and shapes ----------------------------------------------------------------------------


def test_shapes_with_and_without_all_heads() -> None:
    model, tokens = tiny(), some_tokens()
    every, first = model(tokens, return_all_heads=True), model(tokens)
    assert every.shape == (2, 10, 3, 11)
    assert first.shape == (2, 10, 1, 11)
    torch.testing.assert_close(first, every[:, :, :1], rtol=0, atol=1e-12)
    assert not every.requires_grad


def test_state_dict_has_exactly_the_published_names() -> None:
    attention = {f"attention.{name}.weight" for name in ("wq", "wk", "wv", "wo")}
    feed_forward = {f"feed_forward.{name}.weight" for name in ("w1", "w2", "w3")}
    block = attention | feed_forward | {"attention_norm.weight", "ffn_norm.weight"}
    blocks = ["layers.0", "layers.1", "extra_heads.0", "extra_heads.1"]
    expected = {"tok_embeddings.weight", "norm.weight", "output.weight"}
    expected |= {f"{prefix}.{name}" for prefix in blocks for name in block}
    assert set(tiny().state_dict()) == expected


@pytest.mark.parametrize(
    ("dim", "multiplier", "width"), [(4096, 1.0, 11008), (4096, None, 11008), (4096, 1.3, 14336)]
)
def test_swiglu_width(dim: int, multiplier: float | None, width: int) -> None:
    with torch.device("meta"):
        layer = FeedForward(ModelArgs(dim=dim, ffn_dim_multiplier=multiplier))
    assert layer.w1.weight.shape == layer.w3.weight.shape == (width, dim)
    assert layer.w2.weight.shape == (dim, width)


@pytest.mark.parametrize(
    "wrong",
    [
        {"vocab_size": -1},
        {"dim": 18},
        {"n_heads": 16},  # head width 1 cannot be paired
        {"n_kv_heads": 3},
        {"n_future_tokens": 0},
        {"n_future_tokens": 5},
    ],
)
def test_impossible_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        Transformer(ModelArgs(**{**vars(ARGS), **wrong}))


def test_inputs_beyond_the_cache_are_refused() -> None:
    with pytest.raises(ValueError, match="max_seq_len"):
        tiny()(some_tokens(1, 3), start_pos=10)
    with pytest.raises(ValueError, match="max_batch_size"):
        tiny()(some_tokens(3, 2))


# --- arithmetic ----------------------------------------------------------------------------------


def test_one_attention_head_by_hand() -> None:
    """Head 1 of 4, with loops and real rotations; it must read key/value head 0 of 2."""
    length, width, head, kv_head = 3, 4, 1, 0
    torch.manual_seed(2)
    layer = Attention(ARGS).double()
    with torch.no_grad():
        layer.wo.weight.copy_(torch.eye(ARGS.dim))  # so that the heads come out side by side
    x = torch.randn(1, length, ARGS.dim, dtype=torch.float64)

    def project(weight: Tensor, which: int, t: int) -> list[float]:
        rows = weight[which * width : (which + 1) * width].tolist()
        return [sum(a * b for a, b in zip(row, x[0, t].tolist(), strict=True)) for row in rows]

    def turn(vector: list[float], t: int) -> list[float]:
        turned = []
        for j in range(width // 2):
            angle = t * ARGS.rope_theta ** (-2 * j / width)
            a, b = vector[2 * j], vector[2 * j + 1]
            turned.append(a * math.cos(angle) - b * math.sin(angle))
            turned.append(a * math.sin(angle) + b * math.cos(angle))
        return turned

    expected = []
    for t in range(length):
        q = turn(project(layer.wq.weight, head, t), t)
        seen = range(t + 1)
        keys = [turn(project(layer.wk.weight, kv_head, s), s) for s in seen]
        values = [project(layer.wv.weight, kv_head, s) for s in seen]
        powers = [
            math.exp(sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(width)) for k in keys
        ]
        expected.append(
            [
                sum(powers[s] / sum(powers) * values[s][feature] for s in seen)
                for feature in range(width)
            ]
        )

    table = rotary_table(width, length, ARGS.rope_theta, x)
    out = layer(x, 0, table, causal_mask(0, length, x))
    actual = out[0, :, head * width : (head + 1) * width]
    exact = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual, exact, rtol=0, atol=1e-12)


def test_norm_and_feed_forward_by_hand() -> None:
    x = torch.tensor([3.0, 4.0], dtype=torch.float64)
    norm = RMSNorm(2, eps=0.5).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0]))
    scale = math.sqrt((9 + 16) / 2 + 0.5)
    expected = torch.tensor([3 / scale, 8 / scale], dtype=torch.float64)
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-12)

    layer = FeedForward(ModelArgs(dim=2, multiple_of=1)).double()
    gate, up = layer.w1.weight @ x, layer.w3.weight @ x
    expected = layer.w2.weight @ (gate / (1 + torch.exp(-gate)) * up)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_every_head_reads_the_trunk_and_nothing_else() -> None:
    model, tokens = tiny(), some_tokens()
    before = model(tokens, return_all_heads=True)
    model.extra_heads[0].load_state_dict(model.layers[-1].state_dict())
    after = model(tokens, return_all_heads=True)
    # Head 2, given head 1's weights, says what head 1 says; heads 1 and 3 do not notice.
    assert not torch.allclose(before[:, :, 1], after[:, :, 1])
    assert torch.equal(after[:, :, 1], after[:, :, 0])
    assert torch.equal(after[:, :, ::2], before[:, :, ::2])


@pytest.mark.parametrize("steps", [[1] * 10, [4, 1, 1, 4], [3, 4, 1, 2], [1, 9]])
def test_decoding_through_the_cache_equals_one_pass(steps: list[int]) -> None:
    tokens = some_tokens()
    expected = tiny()(tokens, return_all_heads=True)
    model, start, parts = tiny(), 0, []
    model(tokens.flip(1))  # what an earlier sequence left in the cache must not matter
    for step in steps:
        parts.append(model(tokens[:, start : start + step], start, return_all_heads=True))
        start += step
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=1e-12)


def test_a_prefill_that_asked_for_one_head_still_serves_all() -> None:
    tokens, model = some_tokens(), tiny()
    expected = model(tokens, return_all_heads=True)[:, 6:]
    model = tiny()
    model(tokens[:, :6])
    actual = model(tokens[:, 6:], 6, return_all_heads=True)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "angles"),
    [
        (torch.bfloat16, torch.complex64),
        (torch.float32, torch.complex64),
        (torch.float64, torch.complex128),
    ],
)
def test_precision(dtype: torch.dtype, angles: torch.dtype) -> None:
    tokens = some_tokens()
    exact = tiny()(tokens)
    logits = tiny().to(dtype)(tokens)
    assert logits.dtype == dtype
    assert rotary_table(4, 2, 1e4, at_least_float32(logits)).dtype == angles
    error = (logits.double() - exact).abs().max() / exact.abs().max()
    assert error < 20 * torch.finfo(dtype).eps


# --- generation and tokenizer --------------------------------------------------------------------


def test_greedy_generation_is_repeated_argmax() -> None:
    model, prompts = tiny(), [[1, 2, 3], [4]]
    for prompt, new in zip(prompts, Llama(model).generate(prompts, 5, 0.0, 1.0), strict=True):
        tokens = list(prompt)
        for _ in range(5):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1, 0].argmax()))
        assert prompt + new == tokens


def test_generation_ends_at_eos_and_at_the_longest_sequence() -> None:
    model = tiny()
    (free,) = Llama(model).generate([[1, 2, 3]], 100, 0.0, 1.0)
    assert len(free) == ARGS.max_seq_len - 3
    (ended,) = Llama(model, eos_id=free[4]).generate([[1, 2, 3]], 100, 0.0, 1.0)
    assert ended == free[: free.index(free[4])]
    with pytest.raises(ValueError, match="prompt"):
        Llama(model).generate([[]], 1)


def test_sampling_follows_temperature_and_top_p() -> None:
    llama = Llama(tiny())
    greedy = llama.generate([[1, 2]], 6, 0.0, 1.0)
    assert llama.generate([[1, 2]], 6, 1.0, 0.0) == greedy  # no mass beyond the likeliest token

    probs = torch.softmax(llama.model(torch.tensor([[1, 2]]))[0, -1, 0] / 2.0, dim=-1)
    torch.manual_seed(3)
    drawn = [new[0] for new in llama.generate([[1, 2]] * 400, 1, 2.0, 1.0)]
    seen = torch.bincount(torch.tensor(drawn), minlength=ARGS.vocab_size) / len(drawn)
    assert (seen - probs).abs().max() < 0.1

    order = probs.argsort(descending=True)
    top_p = float(probs[order[0]] + probs[order[1]] / 2)  # met within the second token
    drawn = [new[0] for new in llama.generate([[1, 2]] * 100, 1, 2.0, top_p)]
    assert set(drawn) == set(order[:2].tolist())


def test_tokenizer_round_trip(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    text = "def add(a, b): return a + b"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 4),
        model_writer=model,
        model_type="char",
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model.getvalue())
    tokenizer = Tokenizer(str(path))
    plain = tokenizer.encode(text, bos=False, eos=False)
    framed = tokenizer.encode(text, bos=True, eos=True)
    assert framed == [tokenizer.bos_id, *plain, tokenizer.eos_id]
    assert tokenizer.decode(plain) == text
    assert max(plain) < tokenizer.n_words
