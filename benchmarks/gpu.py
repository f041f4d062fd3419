"""Training steps on a GPU against `transformers`; their memory against the planner; parity.

    python benchmarks/gpu.py                      # on the GPU: 8 blocks of the 7B's shape
    python benchmarks/gpu.py --device cpu --tiny  # the same code, to see that it runs

Training (forward, fused loss, backward, clip, AdamW with float32 master weights, bfloat16
autocast), 8 blocks of width 4096, V 32,000, B × S tokens, all labelled:

    hf            `transformers` Llama of as many blocks, its own loss, SDPA, the same step
    n1, n4        ours: 8 blocks, next token; 5 + 3 extra heads, four tokens
    *-compile     the same with `torch.compile` (hf: the whole model; ours: block by block)
    n4-full       ours with activation checkpointing

Every variant runs in a process of its own, in turn, `--runs` times; the figure is the median of the
steps after the warm-up. Memory is the largest that PyTorch's allocator held, beside what
`pipelines.memory` says for the step. The rate of 8192³ bfloat16 products in the same process (2048³
on a CPU) is what utilisation is a share of; a step counts 6 FLOP for each weight that a token
meets and 12 · D · S for each block's attention, half of it for causality.

Parity: logits of all heads on the GPU in float32 (TF32 off) and bfloat16 against the CPU in
float64, on a model of width 512; and the greedy tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from train_step import PeakMemory, cpu_name
from weighted_mtp.core.config.recipe import Recipe, load_recipe
from weighted_mtp.losses import LossTerms, count_targets, mtp_loss, shift_labels
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.compose import prepare_blocks
from weighted_mtp.pipelines.planning.estimate import count, setting_of
from weighted_mtp.pipelines.planning.memory import peak_memory
from weighted_mtp.pipelines.training.objectives import make_objective

VARIANTS = ("hf", "n1", "n4", "hf-compile", "n1-compile", "n4-compile", "n4-full")


@dataclass(frozen=True)
class Size:
    """Of the model and the batch."""

    dim: int = 4096
    n_layers: int = 8
    n_heads: int = 32
    vocab_size: int = 32000
    B: int = 4
    S: int = 2048
    gemm: int = 8192

    def args(self, n: int) -> ModelArgs:
        return ModelArgs(
            dim=self.dim,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            vocab_size=self.vocab_size,
            n_future_tokens=n,
            max_seq_len=self.S,
        )


TINY = Size(dim=128, n_layers=6, n_heads=4, vocab_size=1000, B=2, S=64, gemm=512)


def build(
    variant: str, size: Size, device: torch.device
) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A float32 model on the device, and tokens `[B, S]` → loss."""
    name, _, extra = variant.partition("-")
    args = size.args(4 if name == "n4" else 1)
    with device:
        if name == "hf":
            config = LlamaConfig(
                hidden_size=size.dim,
                intermediate_size=args.ffn_dim,
                num_hidden_layers=size.n_layers,
                num_attention_heads=size.n_heads,
                vocab_size=size.vocab_size,
                max_position_embeddings=size.S,
                attn_implementation="sdpa",
                use_cache=False,
            )
            peer = LlamaForCausalLM(config)
            called = torch.compile(peer) if extra == "compile" else peer
            return peer, lambda tokens: called(input_ids=tokens, labels=tokens).loss
        model = Transformer(args)
    model.init_weights()
    prepare_blocks(recipe_of(variant, size), model)
    n = args.n_future_tokens

    def loss(tokens: Tensor) -> Tensor:
        targets = shift_labels(tokens, n)
        states = model.head_states(tokens, return_all_heads=n > 1)
        terms = LossTerms(targets, count_targets(targets))
        return mtp_loss(states, model.output.weight, *terms).loss

    return model, loss


def recipe_of(variant: str, size: Size) -> Recipe:
    """The recipe that trains as the variant does."""
    args = size.args(4 if variant.startswith("n4") else 1)
    shape = {
        "dim": size.dim,
        "n_layers": size.n_layers,
        "n_heads": size.n_heads,
        "n_future_tokens": args.n_future_tokens,
        "max_seq_len": size.S,
    }
    settings = {f"model.architecture.{key}": value for key, value in shape.items()}
    settings |= {
        "data.train": "none.jsonl",
        "data.max_length": size.S + 1,
        "training.batch_size": size.B,
        "training.micro_batch_size": size.B,
        "training.activation_checkpointing": "full" if variant.endswith("full") else "none",
        "runtime.compile": variant.endswith("compile"),
        "runtime.device": "cpu",
        "tokenizer.kind": "bytes",
    }
    changes = [f"{key}={str(value).lower()}" for key, value in settings.items()]
    return load_recipe("baseline", None, changes)


def planned(variant: str, size: Size, on_gpu: bool) -> int | None:
    """What the planner says such a step takes, in bytes."""
    if variant.startswith("hf"):
        return None
    recipe, args = recipe_of(variant, size), size.args(4 if variant.startswith("n4") else 1)
    objective = make_objective(recipe.objective, args.n_future_tokens)
    counts = count(recipe, args, objective)
    return peak_memory(counts, setting_of(recipe, args, objective, gpu=on_gpu)).total


def flop_per_token(model: nn.Module, size: Size, n: int) -> int:
    """Arithmetic of forward and backward; embeddings are looked up, not multiplied."""
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    unembedding = size.vocab_size * size.dim
    met = matrices - 2 * unembedding + n * unembedding
    return 6 * met + 6 * size.n_layers * size.dim * size.S


def gemm_rate(device: torch.device, width: int) -> float:
    """FLOP/s of a bfloat16 product."""
    a = torch.randn(width, width, device=device, dtype=torch.bfloat16)
    times = []
    for _ in range(12):
        synchronise(device)
        started = time.perf_counter()
        a @ a
        synchronise(device)
        times.append(time.perf_counter() - started)
    return 2 * width**3 / statistics.median(times[2:])


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(variant: str, size: Size, device: torch.device, steps: int) -> dict[str, object]:
    """One variant in this process."""
    torch.manual_seed(0)
    on_gpu = device.type == "cuda"
    rate = gemm_rate(device, size.gemm)
    with PeakMemory() as memory:
        model, loss_of = build(variant, size, device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=on_gpu)
        tokens = torch.randint(size.vocab_size, (size.B, size.S), device=device)
        seconds, losses = [], []
        for step in range(steps + 3):
            if step == 3 and on_gpu:  # after compilation and the optimizer's first state
                torch.cuda.reset_peak_memory_stats()
            synchronise(device)
            started = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16):
                loss = loss_of(tokens)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            synchronise(device)
            seconds.append(time.perf_counter() - started)
            losses.append(loss.item())
    n = 4 if variant.startswith("n4") else 1
    return {
        "variant": variant,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds[3:],
        "loss": losses[-1],
        "flop": flop_per_token(model, size, n) * size.B * size.S,
        "gemm": rate,
        "peak": torch.cuda.max_memory_allocated() if on_gpu else memory.bytes,
        "planned": planned(variant, size, on_gpu),
    }


@torch.no_grad()
def parity(device: torch.device) -> dict[str, object]:
    """Largest difference of logits from the CPU's in float64, and whether the best token is one."""
    torch.manual_seed(0)
    args = ModelArgs(dim=512, n_layers=8, n_heads=8, vocab_size=4000, n_future_tokens=4)
    exact = Transformer(args).double()
    exact.init_weights(0.05)
    tokens = torch.randint(args.vocab_size, (2, 256))
    wanted = exact(tokens, return_all_heads=True)  # [B, S, n, V]
    torch.backends.cuda.matmul.allow_tf32 = False
    found: dict[str, object] = {"largest logit": float(wanted.abs().max())}
    for dtype in (torch.float32, torch.bfloat16):
        model = Transformer(args).to(device, dtype)
        model.load_state_dict(exact.state_dict())
        logits = model(tokens.to(device), return_all_heads=True).double().cpu()
        found[str(dtype)] = {
            "largest difference": float((logits - wanted).abs().max()),
            "same best token": float((logits.argmax(-1) == wanted.argmax(-1)).double().mean()),
        }
    return found


def table(records: list[dict], size: Size) -> list[str]:
    """A line for each variant, medians over its runs."""
    tokens = size.B * size.S
    by = {v: [r for r in records if r["variant"] == v] for v in VARIANTS}
    by = {v: found for v, found in by.items() if found}
    time_of = {v: statistics.median(s for r in by[v] for s in r["seconds"]) for v in by}
    lines = [
        "| variant | M weights | ms/step | tokens/s | × hf | × hf-compile | of the GEMM rate "
        "| peak GB | planned GB | planned ÷ peak |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for v, found in by.items():
        first, seconds = found[0], time_of[v]
        share = first["flop"] / seconds / statistics.median(r["gemm"] for r in found)
        peak = statistics.median(r["peak"] for r in found)
        plan = first["planned"]
        against = [f"{time_of[p] / seconds:.2f}" if p in by else "–" for p in ("hf", "hf-compile")]
        lines.append(
            f"| {v} | {first['parameters'] / 1e6:.0f} | {1e3 * seconds:.1f} "
            f"| {tokens / seconds:,.0f} | {' | '.join(against)} | {share:.0%} | {peak / 1e9:.2f} "
            + (f"| {plan / 1e9:.2f} | {plan / peak:.3f} |" if plan else "| – | – |")
        )
    return lines


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a shape for a CPU")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--variant", choices=VARIANTS, help="run one in this process (internal)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/gpu.json")
    options = parser.parse_args()
    size, device = TINY if options.tiny else Size(), torch.device(options.device)
    if options.variant:
        print(json.dumps(measure(options.variant, size, device, options.steps)))
        return
    own = ["--device", options.device, "--steps", str(options.steps)]
    own += ["--tiny"] if options.tiny else []
    records = []
    for run in range(options.runs):
        for variant in options.only:
            command = [sys.executable, __file__, "--variant", variant, *own]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:  # out of memory, say: the others still tell something
                print(f"{variant}: {done.stderr[-400:]}", file=sys.stderr)
                continue
            records.append(json.loads(done.stdout.splitlines()[-1]))
            print(run, variant, f"{records[-1]['seconds'][-1]:.3f} s", file=sys.stderr, flush=True)
    on_gpu = device.type == "cuda"
    where = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else cpu_name(),
        "size": str(size),
    }
    agreed = parity(device)
    text = "\n".join([str(where), "", *table(records, size), "", f"parity: {json.dumps(agreed)}"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    stored = {"machine": where, "records": records, "parity": agreed}
    options.out.write_text(json.dumps(stored, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
