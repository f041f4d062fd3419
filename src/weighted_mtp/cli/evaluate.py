"""`weighted-mtp evaluate`: programs written by a checkpoint, judged by running them."""

from __future__ import annotations

import argparse
from pathlib import Path

from weighted_mtp.core.errors import UserError
from weighted_mtp.decoding import Sampling
from weighted_mtp.pipelines.run_evaluation import (
    Attempt,
    EvaluationRequest,
    EvaluationResult,
    run_evaluation,
    save_result,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `evaluate`."""
    parser.add_argument("path", type=Path, help="a run, a checkpoint or a model directory")
    parser.add_argument("--dataset", choices=["micro"], default="micro")
    parser.add_argument(
        "--split",
        choices=["test", "compositions"],
        default="test",
        help="problems like those of training, or compositions that no training row holds",
    )
    parser.add_argument("--n-problems", type=int, default=200)
    parser.add_argument(
        "--max-difficulty", type=int, help="hardest problems, 1 to 11 (default: as in training)"
    )
    parser.add_argument("--n-samples", type=int, default=1, help="programs for each problem")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--show", type=int, default=2, help="print this many programs of each kind")
    parser.add_argument(
        "--output", type=Path, help="result file (default PATH/evaluation/micro-SPLIT.jsonl)"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate, print a table, keep every program."""
    for name in ("n_problems", "n_samples", "max_new_tokens", "max_difficulty"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    try:
        sampling = Sampling(args.temperature, args.top_p, args.seed)
    except ValueError as error:
        raise UserError(str(error)) from error
    result = run_evaluation(
        EvaluationRequest(
            path=args.path,
            n_problems=args.n_problems,
            n_samples=args.n_samples,
            sampling=sampling,
            max_new_tokens=args.max_new_tokens,
            device=args.device,
            seed=args.seed,
            max_difficulty=args.max_difficulty,
            split=args.split,
        )
    )
    name = f"{args.dataset}-{args.split}.jsonl"
    output = args.output or args.path / "evaluation" / name
    save_result(result, output)
    show(result, args.show)
    print(f"every program and verdict: {output}")
    return 0


def show(result: EvaluationResult, examples: int) -> None:
    """Some programs, then the table."""
    for passed in (True, False):
        chosen = [a for a in result.attempts if a.verdict.passed == passed][:examples]
        for attempt in chosen:
            print(_program(attempt))
    print(f"{'family':<16}{'pass@1':>8}{'problems':>10}")
    for family, (score, count) in result.by_family.items():
        print(f"{family:<16}{score:>8.1%}{count:>10}")
    total = sum(count for _, count in result.by_family.values())
    print(f"{'all':<16}{result.pass_at_1:>8.1%}{total:>10}")


def _program(attempt: Attempt) -> str:
    verdict = attempt.verdict
    word = "passes its tests" if verdict.passed else f"{verdict.status}: {verdict.detail}"
    return f"# {attempt.row['instruction']}\n{attempt.completion.rstrip()}\n# → {word}\n"
