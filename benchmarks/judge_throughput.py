"""How many HumanEval completions a second are judged, and whether the verdicts are right.

    python benchmarks/judge_throughput.py [--samples 200] [--workers 2] [--out FILE.json]

The completions are canned: of every problem half are the reference (each with another comment
behind it, so that no two are equal), half are mutants of it, or a body that returns nothing where
there are too few mutants. They take the path of a model's completions, journal and result files
included: `weighted-mtp evaluate --completions FILE`. Every reference must pass and every empty body
must fail; of the mutants it is said how many survive.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from weighted_mtp.evaluation.benchmarks import Problem, load_benchmark
from weighted_mtp.evaluation.mutants import mutants
from weighted_mtp.pipelines.evaluating import EvaluationRequest, evaluate

EMPTY = "    return None\n"


def canned(problem: Problem, samples: int) -> Iterator[tuple[str, str]]:
    """(kind, completion) of every sample."""
    wrong = mutants(problem, samples // 2)
    for number in range(samples - samples // 2):
        yield "reference", f"{problem.canonical}    # {number}\n"
    for number in range(samples // 2):
        if number < len(wrong):
            yield "mutant", wrong[number]
        else:
            yield "empty", f"    # {number}\n{EMPTY}"


def main() -> None:
    """Write the completions, judge them, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--workers", type=int, help="default: all cores")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    benchmark = load_benchmark("humaneval")
    kinds: dict[tuple[str, int], str] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "completions.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for problem in benchmark.problems:
                for sample, (kind, text) in enumerate(canned(problem, args.samples)):
                    kinds[problem.task_id, sample] = kind
                    record = {"task_id": problem.task_id, "completion": text}
                    file.write(json.dumps(record) + "\n")
        start = time.perf_counter()
        result = evaluate(
            EvaluationRequest(
                "humaneval",
                output=Path(folder) / "results",
                completions=str(path),
                workers=args.workers,
            )
        )
        seconds = time.perf_counter() - start
    found: dict[str, Counter[str]] = {}
    for attempt in result.attempts:
        kind = kinds[attempt.task_id, attempt.sample]
        found.setdefault(kind, Counter())[attempt.status] += 1
    figures = {
        "programs": len(result.attempts),
        "seconds": round(seconds, 1),
        "programs_per_second": round(len(result.attempts) / seconds, 1),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "verdicts": {kind: dict(statuses) for kind, statuses in found.items()},
        "pass@k": {k: interval.mean for k, interval in result.scores.pass_at.items()},
    }
    print(json.dumps(figures, indent=2))
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
