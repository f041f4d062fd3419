"""Expert iteration on micro tasks: write programs for training problems, judge them, learn from the
right ones, repeat (Anthony et al. 2017, arXiv 1705.08439). Prints pass@1 on test problems by round.

    python examples/expert_iteration.py runs/demo --rounds 3
"""

from __future__ import annotations

import argparse
from pathlib import Path

import weighted_mtp as wm
from weighted_mtp.data.datasets import write_jsonl
from weighted_mtp.evaluation.attempt_rows import Selection, attempt_rows, results_directory


def one_round(model: Path, out: Path, number: int, args: argparse.Namespace) -> Path:
    """Return the run that was trained on the right ones among the model's own programs."""
    programs = out / "programs.jsonl"
    wm.evaluate(
        model,
        output=programs,
        split="train",
        seed=1000 + number,  # other problems each round
        n_problems=args.problems,
        n_samples=args.samples,
        sampling=wm.Sampling(temperature=args.temperature, seed=number),
    )
    rows = attempt_rows([results_directory(programs)], Selection(per_problem=2, seed=number)).rows
    right = [row for row in rows if row["is_correct"]]
    print(f"round {number}: {len(right)} right programs of {args.problems} problems")
    write_jsonl(out / "rows.jsonl", right)
    changes = {
        "model.architecture": "null",
        "model.path": model,
        "tokenizer.kind": "auto",
        "data.source": "jsonl",
        "data.train": out / "rows.jsonl",
        "training.steps": args.steps,
        "training.learning_rate": args.learning_rate,
        "training.final_learning_rate": args.learning_rate / 10,
        "training.validate_every": args.steps,
        "training.save_every": args.steps,
    }
    settings = [f"{key}={value}" for key, value in changes.items()]
    wm.train("baseline", "micro", settings, output_dir=out / "run")
    return out / "run"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="run or model to begin with")
    parser.add_argument("--out", type=Path, default=Path("runs/expert"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--test-problems", type=int, default=200)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    args = parser.parse_args()
    model, scores = args.model, []
    for number in range(args.rounds + 1):
        judged = args.out / f"test-{number}.jsonl"
        judged.parent.mkdir(parents=True, exist_ok=True)
        found = wm.evaluate(model, output=judged, n_problems=args.test_problems)
        scores.append(f"round {number}: pass@1 {found.pass_at_1:.1%}")
        print("\n".join(scores))
        if number < args.rounds:
            model = one_round(model, args.out / f"round-{number + 1}", number + 1, args)


if __name__ == "__main__":  # data processes run this file again
    main()
