"""Decoding side by side: plain, self-speculative, adaptive, `transformers` on the same weights.

    python benchmarks/decode.py [--micro DIR] [--byte DIR] [--smollm2 DIR] [--runs 3] [--new 64]
                                [--cases 1x16 4x512 ...] [--out benchmarks/results/decode.json]

DIR is a run, a checkpoint or a model: the demo's (`make demo`), what `byte_model.py` makes and what
`heads_table.py` makes. Greedy, all rows `--new` tokens whatever they are, on prompts of 16 and of
512 tokens that the model was not trained on (`decode_prompts.py`). bfloat16 at batch 1, 4 and 16;
float32 at batch 1. Near-ties are not looked for (`ties="fast"`): the rereads they cost are a matter
of exactness, not of speed, and `transformers` does none.

Method: a process for each model and number format. In it the variants take turns (A B C … A B C …),
one warm-up each; the figure is the median of `--runs`. Timed is what follows the first token: the
prompt's own pass, and copying weights into a better layout, are left out ("prepare" gives them).
`transformers` runs the next-token model that the library exports, with its default settings.

    bar        0.95 × tokens per forward × blocks of a plain step ÷ blocks of a speculative step
    speed-up   speculative tokens/s ÷ plain tokens/s
    GEMV       bytes a second that `F.linear` of one row reads: "own" over the model's own matrices
               one after the other, "one" over a single matrix of all their bytes (at most 512 MB).
               A plain step reads all weights of trunk, first head and unembedding once, so its
               share is their bytes × steps a second ÷ that.
    parts      milliseconds of a step's parts, taken alone: reading one token, reading k, guessing,
               unembedding one and k; `rest` is what remains of a whole speculative step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from decode_prompts import prompts
from train_step import cpu_name, store
from weighted_mtp.core.model_folder import find_model
from weighted_mtp.decoding import Report, Sampling, Speculation, Stopping, Stream
from weighted_mtp.decoding import measure_token_cost as token_cost
from weighted_mtp.decoding.fast_model import FastModel
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, save_huggingface
from weighted_mtp.models.meta_mtp.kv_cache import KVCache
from weighted_mtp.models.meta_mtp.transformer import Transformer

KINDS = ("micro", "byte", "smollm2")
CASES = {
    "bfloat16": [(b, p) for p in (16, 512) for b in (1, 4, 16)],
    "float32": [(1, 16), (1, 512)],
}


def ours(
    model: Transformer, texts: Sequence[Sequence[int]], new: int, speculation: Speculation | None
) -> tuple[float, float, Report]:
    """Seconds to the first token, seconds after it, and counts."""
    start = time.perf_counter()
    stream = Stream(model, texts, Stopping(new), Sampling(ties="fast"), speculation)
    next(stream)
    first = time.perf_counter()
    for _ in stream:
        pass
    return first - start, time.perf_counter() - first, stream.report


class Peer:
    """`transformers` with the next-token model of ours."""

    def __init__(self, model: Transformer, dtype: torch.dtype) -> None:
        from transformers import AutoModelForCausalLM

        with tempfile.TemporaryDirectory() as folder:
            save_huggingface(model, Path(folder) / "model")
            self.model = AutoModelForCausalLM.from_pretrained(
                Path(folder) / "model", dtype=dtype, trust_remote_code=False
            )

    def seconds(self, texts: Sequence[Sequence[int]], new: int) -> tuple[float, float]:
        """To the first token, and after it."""
        start, marks = time.perf_counter(), []

        def mark(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            marks.append(time.perf_counter())
            return scores

        ids = torch.tensor(texts)
        kwargs = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), logits_processor=[mark], **kwargs
        )
        assert out.shape[1] == ids.shape[1] + new, "transformers stopped early"
        return marks[0] - start, time.perf_counter() - marks[0]


def matrices(model: Transformer) -> list[torch.Tensor]:
    """What a plain step multiplies by."""
    blocks = [m.weight for m in model.layers.modules() if isinstance(m, nn.Linear)]
    return [*blocks, model.output.weight]


@torch.inference_mode()
def gemv(model: Transformer) -> dict[str, float]:
    """Bytes a second that products with one row read, as described above."""
    own = matrices(model)
    size = sum(w.nbytes for w in own)
    rows = min(size, 512 << 20) // (own[0].element_size() * 1024)
    one = torch.randn(rows, 1024).to(own[0].dtype)
    inputs = {w.shape[1]: torch.randn(1, w.shape[1]).to(w.dtype) for w in [*own, one]}

    def rate(weights: Sequence[torch.Tensor]) -> float:
        def product() -> None:
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)

        return sum(w.nbytes for w in weights) / alone(product)

    return {"bytes": size, "own": rate(own), "one": rate([one])}


def alone(function: Callable[[], object], times: int = 9) -> float:
    """Median seconds of a call."""
    taken = []
    for _ in range(times + 2):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


@torch.inference_mode()
def parts(model: Transformer, batch: int, prompt: int) -> dict[str, float]:
    """Milliseconds of the parts of a step, rows in step."""
    k, fast = model.args.n_future_tokens, FastModel(model, 1000)
    cache = KVCache(model.args, batch, prompt + k, dtype=fast.dtype)
    fast.read(torch.zeros(batch, prompt, dtype=torch.long), 0, cache)
    tokens = torch.zeros(batch, k, dtype=torch.long)
    states, window = fast.read(tokens, prompt, cache)
    calls: dict[str, Callable[[], object]] = {
        "read 1": lambda: fast.read(tokens[:, :1], prompt, cache),
        "read k": lambda: fast.read(tokens, prompt, cache),
        "guess": lambda: fast.guess(window, [k - 1] * batch, k - 1),
        "unembed 1": lambda: fast.output(states[:, :1]),
        "unembed k": lambda: fast.output(states),
    }
    if k == 1:
        del calls["guess"]
    return {name: 1000 * alone(call) for name, call in calls.items()}


def measure(
    kind: str, path: Path, dtype_name: str, runs: int, new: int, cases: Sequence[str]
) -> list[dict[str, Any]]:
    """All cases of one model in one number format, in this process."""
    dtype, folder = getattr(torch, dtype_name), find_model(path)
    model = load_meta_mtp_model(folder, device="cpu", dtype=dtype).eval().requires_grad_(False)
    peer, n, records = Peer(model, dtype), model.args.n_future_tokens, []
    reading = gemv(model)
    for batch, prompt in CASES[dtype_name]:
        if cases and f"{batch}x{prompt}" not in cases:
            continue
        texts = prompts(kind, folder, batch, prompt)
        cost = token_cost(model, batch_size=batch)
        kinds: dict[str, Speculation | None] = {"plain": None}
        if n > 1:
            kinds |= {"speculative": Speculation(), "adaptive": Speculation(None, True, cost)}
        times: dict[str, list[float]] = {name: [] for name in (*kinds, "transformers")}
        firsts: dict[str, list[float]] = {name: [] for name in times}
        reports: dict[str, Report] = {}
        for turn in range(-1, runs):  # the first is the warm-up, and short
            length = new if turn >= 0 else 4
            for name, speculation in kinds.items():
                first, after, reports[name] = ours(model, texts, length, speculation)
                times[name].append(after)
                firsts[name].append(first)
            first, after = peer.seconds(texts, length)
            times["transformers"].append(after)
            firsts["transformers"].append(first)
        record: dict[str, Any] = {
            "model": kind, "dtype": dtype_name, "batch": batch, "prompt": prompt, "n": n,
            "layers": model.args.n_layers, "new": new, "token_cost": cost, "gemv": reading,
            "seconds": {name: taken[1:] for name, taken in times.items()},
            "prepare": {name: statistics.median(taken[1:]) for name, taken in firsts.items()},
            "parts": parts(model, batch, prompt),
        }  # fmt: skip
        record["reports"] = {
            name: {
                "tokens_per_forward": report.tokens_per_forward,
                "realised": report.realised_fraction,
                "acceptance": report.acceptance,
                "forwards": report.forwards,
            }
            for name, report in reports.items()
        }
        records.append(record)
        print("\n".join(summary([record])[2:3]), file=sys.stderr)
    return records


def rate(record: dict[str, Any], name: str) -> float:
    """Tokens a second after the first ones; nan for a variant that did not run."""
    seconds = record["seconds"].get(name)
    tokens = record["batch"] * (record["new"] - 1)
    return tokens / statistics.median(seconds) if seconds else float("nan")


def bar(record: dict[str, Any]) -> float:
    """The speed-up that is aimed at."""
    per_forward = record["reports"]["speculative"]["tokens_per_forward"]
    return 0.95 * per_forward * (record["layers"] - record["n"] + 1) / record["layers"]


def summary(records: Sequence[dict[str, Any]]) -> list[str]:
    """The tables."""
    lines = [
        "| model | format | batch | prompt | transformers tok/s | plain tok/s | × transformers "
        "| GEMV share (own, one) | speculative tok/s | adaptive tok/s | speed-up | bar | of bar "
        "| tokens/forward | realised | acceptance of heads 2 … n |",
        "|" + "---|" * 16,
    ]
    for r in records:
        plain, peer, drafted = (rate(r, name) for name in ("plain", "transformers", "speculative"))
        steps = plain / r["batch"]
        shares = [r["gemv"]["bytes"] * steps / r["gemv"][name] for name in ("own", "one")]
        cells = [r["model"], r["dtype"], r["batch"], r["prompt"], f"{peer:.1f}", f"{plain:.1f}"]
        cells += [f"{plain / peer:.2f}", f"{shares[0]:.0%}, {shares[1]:.0%}"]
        if r["n"] > 1:
            report, aim = r["reports"]["speculative"], bar(r)
            cells += [f"{drafted:.1f}", f"{rate(r, 'adaptive'):.1f}", f"{drafted / plain:.2f}"]
            cells += [f"{aim:.2f}", f"{drafted / plain / aim:.2f}"]
            cells += [f"{report['tokens_per_forward']:.2f}", f"{report['realised']:.0%}"]
            cells += [" ".join(f"{share:.0%}" for share in report["acceptance"])]
        else:
            cells += ["–"] * 8
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", *_parts_table([r for r in records if r["n"] > 1])]
    return lines


def _parts_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Where a step goes, in milliseconds."""
    names = ("read 1", "unembed 1", "read k", "unembed k", "guess")
    lines = [
        "| model | format | batch | prompt | plain step | speculative step | "
        + " | ".join(names)
        + " | rest | token cost |",
        "|" + "---|" * 13,
    ]
    for r in records:
        plain, drafted = (
            1000 * statistics.median(r["seconds"][name]) / (r["reports"][name]["forwards"] - 1)
            for name in ("plain", "speculative")
        )
        part = r["parts"]
        known = part["read k"] + part["unembed k"] * (2 * r["n"] - 1) / r["n"] + part["guess"]
        cells = [r["model"], r["dtype"], r["batch"], r["prompt"], f"{plain:.2f}", f"{drafted:.2f}"]
        cells += [f"{part[name]:.2f}" for name in names] + [f"{drafted - known:.2f}"]
        lines.append("| " + " | ".join(map(str, [*cells, f"{r['token_cost']:.2f}"])) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=Path, help="a run, a checkpoint or a model")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--new", type=int, default=64, help="tokens for each row")
    parser.add_argument("--cases", nargs="*", default=[], help="these only: BATCHxPROMPT")
    parser.add_argument("--dtype", choices=CASES, help="one number format only")
    parser.add_argument("--one", choices=KINDS, help="one model, in this process (internal)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/decode.json")
    args = parser.parse_args()
    paths = {kind: getattr(args, kind) for kind in KINDS if getattr(args, kind) is not None}
    if args.one:
        path = paths[args.one]
        records = measure(args.one, path, args.dtype, args.runs, args.new, args.cases)
        print(json.dumps(records))
        return
    records = []
    for kind, path in paths.items():
        for dtype in [args.dtype] if args.dtype else CASES:
            command = [sys.executable, __file__, "--one", kind, f"--{kind}", str(path)]
            command += ["--dtype", dtype, "--runs", str(args.runs), "--new", str(args.new)]
            command += ["--cases", *args.cases]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            records += json.loads(out.splitlines()[-1])
    head = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": cpu_name()}
    head |= {"python": platform.python_version()}
    store(args.out, head, records, summary(records))


if __name__ == "__main__":
    main()
