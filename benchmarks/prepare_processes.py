"""What a second process is worth where data are prepared and tokenised.

    python benchmarks/prepare_processes.py [--problems 700] [--rows 24000] [--runs 3]
        [--out benchmarks/results/prepare_processes.json]

Measured with one and with two processes, each in a fresh process, in turn:

    start      a worker that does nothing but import what it unpickles: its processor seconds
    prepare    `weighted-mtp prepare codecontests FILE --workers N`: problems made up by this
               script, 60 solutions each, of which a third is in Python 3
    rows       `tokenise` of rows of MBPP's shape, Alpaca template, the embedded micro BPE, as a
               run does with `data.processes: N` (a second of it in one process at first)
    text       `token_streams` of the outputs of the same rows, documents of JSONL lines

Time is the whole command, imports included; processor seconds are those of it and its workers.
The results of one and two processes are checked to be the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from data_at_scale import STATEMENTS, WORDS, children_seconds, cpu_name

VARIANTS = ("prepare", "rows", "text")
WORKERS = {"prepare": "data.prepare.parts", "rows": "data.collators", "text": "data.tokens"}
"""What a worker of each imports to unpickle its work."""


def solution(g: random.Random, language: int) -> str:
    """A program of eight to sixteen statements; Python 2 has a print statement."""
    code = "n = int(input())\nlo, hi, ans, x = 0, n, 0, n\na = [0] * n\n"
    code += "".join(s.format(g.randrange(1000)) for s in g.choices(STATEMENTS, k=g.randint(8, 16)))
    return code if language == 3 else code + "print ans\n"


def contest(number: int, solutions: int = 60) -> dict[str, Any]:
    """A record of CodeContests' schema."""
    g = random.Random(number)
    test = {"input": [f"{i}\n" for i in range(10)], "output": [f"{i * i}\n" for i in range(10)]}

    def some(count: int) -> dict[str, list[Any]]:
        languages = [g.choice((2, 1, 3)) for _ in range(count)]
        return {"language": languages, "solution": [solution(g, x) for x in languages]}

    return {
        "name": f"{number}_A. {g.choice(WORDS)}",
        "description": " ".join(g.choices(WORDS, k=g.randrange(80, 200))),
        "difficulty": g.randrange(7, 14),
        "source": 2,
        "cf_rating": g.choice((0, 800, 1500, 2400)),
        "cf_tags": ["greedy"],
        "time_limit": {"seconds": 2, "nanos": 0},
        "memory_limit_bytes": 256_000_000,
        **{f"{kind}_tests": test for kind in ("public", "private", "generated")},
        "solutions": some(solutions // 2),
        "incorrect_solutions": some(solutions // 2),
    }


def generate(folder: Path, problems: int, rows: int) -> None:
    """`train.jsonl` of contests and `rows.jsonl` of rows."""
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for number in range(problems):
            file.write(json.dumps(contest(number)) + "\n")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            g = random.Random(-number - 1)
            row = {
                "instruction": " ".join(g.choices(WORDS, k=30)),
                "input": "",
                "output": solution(g, 3),
                "task_id": f"made/{number}",
                "is_correct": True,
                "metadata": {},
            }
            file.write(json.dumps(row) + "\n")


# --- what is measured, each in a process of its own ----------------------------------------------


def command(folder: Path, variant: str, processes: int) -> list[str]:
    """The command of a variant; it writes to `folder/made`."""
    if variant == "prepare":
        train, out = folder / "train.jsonl", folder / "made"
        return [
            *(sys.executable, "-m", "weighted_mtp", "prepare", "codecontests"),
            *("--source", str(train), "--out", str(out), "--workers", str(processes)),
        ]
    place = ["--dir", str(folder), "--variant", variant, "--processes", str(processes)]
    return [sys.executable, __file__, *place]


def tokenise_rows(folder: Path, processes: int) -> None:
    """All rows, as a run reads them."""
    import numpy as np

    from weighted_mtp.data.collators import AlpacaCollator
    from weighted_mtp.data.rows.store import open_rows
    from weighted_mtp.data.tokens.row_tokens import tokenise
    from weighted_mtp.data.tokens.tokenizers import make_tokenizer

    store = open_rows(folder / "rows.jsonl", folder / "cache")  # converted before
    collator = AlpacaCollator(make_tokenizer("micro"), "alpaca", 1024)
    tokenise(store, np.arange(len(store)), collator, folder / "made", processes)


def tokenise_text(folder: Path, processes: int) -> None:
    """All outputs, as documents."""
    from weighted_mtp.data.tokens.corpus import Corpus
    from weighted_mtp.data.tokens.text_tokens import token_streams
    from weighted_mtp.data.tokens.tokenizers import make_tokenizer

    corpus = Corpus(folder / "rows.jsonl", "output", (".jsonl",), None)
    token_streams(corpus, make_tokenizer("micro"), 0.01, folder / "made", processes)


def digest(folder: Path) -> str:
    """Of all files that the command left, by name; what says how long it took is none of them."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".lock", ".json"):
            total.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return total.hexdigest()[:16]


def measured(folder: Path, variant: str, processes: int) -> dict[str, Any]:
    """Seconds, processor seconds, and a digest of the result."""
    shutil.rmtree(folder / "made", ignore_errors=True)
    begin, spent = time.perf_counter(), children_seconds()
    done = subprocess.run(command(folder, variant, processes), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{variant}: {done.stderr}")
    return {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": children_seconds() - spent,
        "digest": digest(folder / "made"),
    }


def start_of_worker(module: str) -> float:
    """Processor seconds of a fresh interpreter that imports what a worker does."""
    spent = children_seconds()
    code = f"import multiprocessing.spawn, weighted_mtp.cli.main, weighted_mtp.{module}"
    subprocess.run([sys.executable, "-c", code], check=True)
    return children_seconds() - spent


def measure(folder: Path, runs: int) -> dict[str, Any]:
    """Every variant with one and two processes, in turn."""
    results: dict[str, Any] = {"start": {}}
    for variant, module in WORKERS.items():
        results["start"][variant] = [start_of_worker(module) for _ in range(runs + 1)][1:]
    for run in range(runs):
        for variant in VARIANTS:
            for processes in (1, 2):
                found = measured(folder, variant, processes)
                print(run, variant, processes, found, file=sys.stderr)
                results.setdefault(variant, {}).setdefault(str(processes), []).append(found)
    for variant in VARIANTS:
        if len({x["digest"] for runs in results[variant].values() for x in runs}) != 1:
            sys.exit(f"{variant}: one and two processes wrote different bytes")
    return results


def summary(results: dict[str, Any], head: dict[str, Any]) -> str:
    """A table of medians, for people."""
    lines = [
        "What a second process is worth (`python benchmarks/prepare_processes.py`). Medians; raw",
        "output: prepare_processes.json. One and two processes wrote the same bytes.",
        "",
        str(head),
        "",
        "| | one process, s | two, s | × as fast | processor s, one | two | start of a worker |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        wall, cpu = (
            [statistics.median(x[key] for x in results[variant][n]) for n in ("1", "2")]
            for key in ("seconds", "cpu_seconds")
        )
        begin = statistics.median(results["start"][variant])
        lines.append(
            f"| {variant} | {wall[0]:.2f} | {wall[1]:.2f} | **{wall[0] / wall[1]:.2f}** "
            f"| {cpu[0]:.2f} | {cpu[1]:.2f} | {begin:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Generate, measure, store, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=700)
    parser.add_argument("--rows", type=int, default=24_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dir", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/prepare_processes.json"
    )
    args = parser.parse_args()
    if args.variant:
        {"rows": tokenise_rows, "text": tokenise_text}[args.variant](args.dir, args.processes)
        return
    with tempfile.TemporaryDirectory(prefix="prepare-processes-") as name:
        folder = Path(name)
        generate(folder, args.problems, args.rows)
        sizes = {f"{p.stem}_MB": round(p.stat().st_size / 1e6) for p in folder.glob("*.jsonl")}
        tokenise_rows(folder, 1)  # converts the rows
        results = measure(folder, args.runs)
    head = {"cores": os.cpu_count(), "cpu": cpu_name(), "rows": args.rows, **sizes}
    args.out.write_text(json.dumps({"machine": head, "results": results}, indent=1) + "\n")
    text = summary(results, head)
    args.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
