"""Heads for a model that has none: each loss on the model's own text and on the originals.

    python benchmarks/heads_table.py MODEL --work FOLDER [--steps 100] [--losses kl+hard kl …]

MODEL is SmolLM2-135M-Instruct, or any Llama with the next-token head only. Every stage is one of
the library's own commands, and what is in FOLDER already is not made again:

    prepare self      openings of functions and classes of the standard library (2,400; the first
                      1,600 train), continued greedily by 128 tokens; 96 of held-out files
    originals         the same openings with the text that follows them in the library
    prepare states    what trunk and head 1 make of both
    train             --recipe heads, three heads, fitted start, one epoch of 16 rows a step,
                      objective.distil.vocabulary 8192, one loss each

The last validation of each run, on the held-out own text, gives how often heads 2, 3, 4 are right
(`head_acceptance`) and the tokens that a pass of greedy decoding with a chain would decide; the
same for sampled text at temperature 1. Written to results/heads_table.json and .md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from weighted_mtp.data.tokens.corpus import STDLIB, Corpus
from weighted_mtp.data.tokens.tokenizers import Tokenizer, load_tokenizer

LOSSES = ("ce", "hard", "kl", "tv", "kl+hard")
ROWS, NEW = 1600, 128


def call(*arguments: object) -> None:
    """Run `weighted-mtp`."""
    command = [sys.executable, "-m", "weighted_mtp", *map(str, arguments)]
    subprocess.run(command, check=True)


def write_texts(model: Path, work: Path) -> None:
    """Own text to train on and to test with, and the originals."""
    texts = ["prepare", "self", "--model", model, "--dtype", "bfloat16", "--template", "raw"]
    texts += ["--max-new-tokens", NEW, "--batch-size", 96]
    for name, extra in (("own-all", ["--n", 2400]), ("test", ["--n", 96, "--held-out"])):
        if not (work / f"{name}.jsonl").exists():
            call(*texts, *extra, "--out", work / f"{name}.jsonl")
    rows = [json.loads(x) for x in (work / "own-all.jsonl").read_text().splitlines()][:ROWS]
    if not (work / "data.jsonl").exists():
        _write(work / "own.jsonl", rows)
        _write(work / "data.jsonl", originals(load_tokenizer(model), rows))


def originals(tokenizer: Tokenizer, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with what follows their openings in the library, but for those not found there."""
    documents, found = list(Corpus(STDLIB).documents()), []
    for row in rows:
        opening = row["instruction"]
        text = next((x for x in documents if opening in x), None)
        if text is None:
            continue
        place = text.index(opening)
        ids = tokenizer.encode(text[place : place + len(opening) + 8 * NEW])
        begin = len(tokenizer.encode(opening))
        following = tokenizer.decode(ids[begin : begin + NEW])
        if following:
            found.append({**row, "output": following, "metadata": {"finish": "length"}})
    return found


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train(model: Path, work: Path, data: str, loss: str, steps: int) -> dict[str, Any]:
    """Train one cell of the table, if it is not there, and read its last validation."""
    run, states = work / f"run-{loss}-{data}", work / f"states-{data}"
    rows = work / f"{data}.jsonl"
    cut = ["--template", "raw", "--max-length", 512]
    if not run.exists():
        call("prepare", "states", "--model", model, "--data", rows, *cut, "--out", states)
        settings = {
            "model.path": model,
            "model.add_heads": 3,
            "data.train": rows,
            "data.validation": work / "test.jsonl",
            "data.template": "raw",
            "data.max_length": 512,
            "data.states": states,
            "objective.distil.vocabulary": 8192,
            **{f"objective.distil.{x}": float(x in loss.split("+")) for x in LOSSES[:4]},
            "training.steps": steps,
            "training.batch_size": 16,
            "training.micro_batch_size": 16,
            "training.save_every": steps,
            "training.validate_every": steps,
        }
        pairs = [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]
        call("train", "--recipe", "heads", *pairs, "--output-dir", run)
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "validation"][-1]
    return {**last, "loss": loss, "data": data}


def table(cells: list[dict[str, Any]]) -> str:
    """Acceptance by head and tokens a pass, a line for each cell."""
    lines = ["| loss | data | head 2 | head 3 | head 4 | tokens/pass, greedy | at temperature 1 |"]
    lines.append("|---|---|" + "--:|" * 5)
    for cell in cells:
        right = " | ".join(f"{100 * x:.1f} %" for x in cell["head_acceptance"][1:])
        lines.append(
            f"| {cell['loss']} | {cell['data']} | {right} | {cell['tokens_per_forward']:.3f} "
            f"| {cell['tokens_per_forward_sampled']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing; write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=ROWS // 16)
    parser.add_argument("--losses", nargs="*", default=LOSSES)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    write_texts(args.model, args.work)
    cells = [
        train(args.model, args.work, data, loss, args.steps)
        for data in ("own", "data")
        for loss in args.losses
    ]
    out = Path(__file__).parent / "results/heads_table"
    out.with_suffix(".json").write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(table(cells) + "\n", encoding="utf-8")
    print(table(cells))


if __name__ == "__main__":
    main()
