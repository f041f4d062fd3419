"""What drafting costs and gains, side by side: plain, the default, fixed k; with and without a
draft vocabulary.

    python benchmarks/draft_cost.py MODEL [--kind smollm2|micro|byte] [--cases 1x16 16x512 ...]
                                    [--k 2 4] [--vocabulary 8192] [--runs 3] [--new 64]
                                    [--dtype bfloat16] [--out benchmarks/results/draft_cost.json]

MODEL is a run, a checkpoint or a model with heads, `--kind` where its prompts come from
(`decode_prompts.py`; smollm2: held-out modules, for any model with a tokenizer). The draft
vocabulary is the model's own; one without gets `--vocabulary` tokens, the most frequent of Python's
standard library. Greedy, near-ties not looked for, every row `--new` tokens whatever they are.

Method: the variants take turns (A B C … A B C …) in this process, one warm-up each; figures are
medians of `--runs`. Timed is what follows the first token. "default" forgets before every run what
steps cost, as a command that has just started; "default, warm" keeps it, as a server does. The bar:
default ≥ 0.98 × plain in every case.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from decode_prompts import prompts
from train_step import cpu_name, store
from weighted_mtp.core.model_folder import find_model
from weighted_mtp.decoding import (
    Decoder,
    Report,
    Sampling,
    Speculation,
    Stopping,
    step_clock,
)
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.exporting.draft_vocabulary import DraftChoice

CASES = [f"{batch}x{prompt}" for prompt in (16, 512) for batch in (1, 4, 16)]
BAR = 0.98


def variants(ks: Sequence[int], vocabulary: bool, trees: bool) -> dict[str, Speculation | None]:
    """How to decode, by name; trees are for one row."""
    found: dict[str, Speculation | None] = {"plain": None}
    for ending, use in ((", all V", False), (", V'", True))[: 1 + vocabulary]:
        found[f"default{ending}"] = Speculation(tree="auto", draft_vocabulary=use)
        found[f"default, warm{ending}"] = Speculation(tree="auto", draft_vocabulary=use)
        for k in ks:
            found[f"k={k}{ending}"] = Speculation(k, draft_vocabulary=use)
    if trees:
        found["chain, adaptive"] = Speculation(adaptive=True)
        found |= {f"tree {N}": Speculation(tree=N) for N in (4, 8, 16)}
    return found


def decode(
    decoder: Decoder,
    batches: Sequence[Sequence[Sequence[int]]],
    new: int,
    how: Speculation | None,
) -> tuple[float, list[Report]]:
    """Seconds after the first tokens of each batch, and what was counted."""
    seconds, reports = 0.0, []
    for texts in batches:
        stream = decoder.stream(texts, Stopping(new), Sampling(ties="fast"), how)
        next(stream)
        start = time.perf_counter()
        for _ in stream:
            pass
        seconds += time.perf_counter() - start
        reports.append(stream.report)
    return seconds, reports


def counted(reports: Sequence[Report]) -> dict[str, Any]:
    """Figures of all batches together."""
    steps = sum(report.steps for report in reports)
    pairs = (
        zip(*(r.accepted for r in reports), strict=True),
        zip(*(r.tested for r in reports), strict=True),
    )
    return {
        "tokens_per_forward": sum(r.tokens_per_forward * r.steps for r in reports) / steps,
        "acceptance": [sum(a) / max(1, sum(t)) for a, t in zip(*pairs, strict=True)],
        "forwards": sum(report.forwards for report in reports),
        "nodes_per_pass": sum(report.nodes for report in reports) / steps,
    }


def measure(
    model: Transformer,
    batches: Sequence[Sequence[Sequence[int]]],
    hows: dict[str, Speculation | None],
    runs: int,
    new: int,
) -> dict[str, dict[str, Any]]:
    """Seconds of every run and what the last one did, by variant."""
    seconds: dict[str, list[float]] = {name: [] for name in hows}
    reports: dict[str, list[Report]] = {}
    decoder = Decoder(model)  # copies the weights once for a variant and turn, not for a batch
    warm = {name: type(step_clock._CLOCKS)() for name in hows}  # each its own memory of steps
    for turn in range(-1, runs):
        for name, how in hows.items():
            clocks = warm[name] if "warm" in name else type(step_clock._CLOCKS)()
            step_clock._CLOCKS = clocks
            taken, reports[name] = decode(decoder, batches, new if turn >= 0 else 8, how)
            if turn >= 0:
                seconds[name].append(taken)
    return {name: {"seconds": seconds[name], **counted(reports[name])} for name in hows}


def table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Tokens a second of plain decoding, and the others as multiples of it, a column a case."""
    lines = ["| batch × prompt | " + " | ".join(f"{r['batch']} × {r['prompt']}" for r in records)]
    lines = [lines[0] + " |", "|---|" + "--:|" * len(records)]
    for name in dict.fromkeys(name for r in records for name in r["variants"]):
        cells = []
        for record in records:
            found = record["variants"]
            plain = statistics.median(found["plain"]["seconds"])
            if name not in found:
                cells.append("–")
            elif name == "plain":
                cells.append(f"{record['rows'] * (record['new'] - 1) / plain:.1f} tok/s")
            else:
                ratio = plain / statistics.median(found[name]["seconds"])
                below = " **<**" if name.startswith("default") and ratio < BAR else ""
                cells.append(f"{ratio:.2f}{below} ({found[name]['tokens_per_forward']:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"In parentheses: tokens per forward. **<**: below {BAR} × plain."]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a run, a checkpoint or a model with heads")
    parser.add_argument("--kind", choices=["smollm2", "micro", "byte"], default="smollm2")
    parser.add_argument("--cases", nargs="*", default=CASES, help="BATCHxPROMPT")
    parser.add_argument("--k", nargs="*", type=int, help="fixed k (default: 2 and all heads)")
    parser.add_argument("--vocabulary", type=int, default=8192, help="if the model has none")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8, help="in all, batch by batch (at least one)")
    parser.add_argument("--new", type=int, default=64, help="tokens for each row")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/draft_cost.json"
    )
    args = parser.parse_args()
    folder = find_model(args.model)
    model = load_meta_mtp_model(folder, device="cpu", dtype=args.dtype).eval()
    model.requires_grad_(False)
    n, V = model.args.n_future_tokens, model.args.vocab_size
    if n == 1:
        raise SystemExit(f"{folder}: the model has no heads to draft with")
    if model.draft_ids is None and args.vocabulary < V and args.kind != "byte":
        model.draft_ids, said = DraftChoice(args.vocabulary).choose(folder, V)
        print(said, file=sys.stderr)
    ks = args.k or sorted({2, n})
    records = []
    for case in args.cases:
        batch, prompt = map(int, case.split("x"))
        count = max(1, args.rows // batch)
        texts = prompts(args.kind, folder, batch * count, prompt)
        batches = [texts[i * batch : (i + 1) * batch] for i in range(count)]
        hows = variants(ks, model.draft_ids is not None, trees=batch == 1)
        found = measure(model, batches, hows, args.runs, args.new)
        record = {"batch": batch, "prompt": prompt, "new": args.new, "rows": batch * count}
        records.append({**record, "variants": found})
        print("\n".join(table(records[-1:])), file=sys.stderr)
    head = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": cpu_name()}
    head |= {"python": platform.python_version(), "model": args.model.name, "dtype": args.dtype}
    head |= {"draft_tokens": None if model.draft_ids is None else len(model.draft_ids), "V": V}
    store(args.out, head, records, table(records))


if __name__ == "__main__":
    main()
