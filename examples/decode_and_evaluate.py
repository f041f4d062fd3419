"""Decode and evaluate from Python: drafts, streaming, programs run in the sandbox, pass@1.

    python examples/decode_and_evaluate.py runs/demo --problems 100

Without a run it trains a tiny one for a few steps first, whose programs are nonsense.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import weighted_mtp as wm
from weighted_mtp.core import Program

TINY = [
    *("training.steps=2", "training.save_every=2", "training.validate_every=2"),
    *("training.batch_size=4", "training.micro_batch_size=4", "model.architecture.dim=32"),
    *("model.architecture.n_layers=5", "model.architecture.n_heads=2", "data.max_length=160"),
    *("data.micro.n_problems=8", "data.micro.n_validation=4", "runtime.device=cpu"),
]


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--problems", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    args = parser.parse_args(arguments)
    if args.run is None:
        args.run = args.out / "run"
        wm.train("baseline", "micro", TINY, output_dir=args.run)

    model = wm.load(args.run, device="cpu").transformer
    tokenizer = wm.load_tokenizer(args.run)
    prompts = [tokenizer.encode(text) for text in ("def add(a, b):\n", "def larger(a, b):\n")]
    stopping = wm.Stopping(args.max_new_tokens, tokenizer.stop_ids, decode=tokenizer.decode)
    texts, report = wm.complete(model, prompts, stopping, speculation=wm.Speculation())
    print([text.text for text in texts])
    print(
        f"{report.tokens_per_forward:.2f} tokens a pass; drafts kept by head: {report.acceptance}"
    )
    for pieces in wm.Stream(model, prompts[:1], stopping, wm.Sampling(temperature=0.8, seed=1)):
        print("".join(piece.text for piece in pieces), end="", flush=True)
    print()

    source = "def larger(a, b):\n    return max(a, b)\n"
    with wm.Sandbox(workers=1) as judge:
        right, wrong = judge(
            [
                Program(source, tests=("assert larger(2, 3) == 3",)),
                Program(source.replace("max", "min"), tests=("assert larger(2, 3) == 3",)),
            ]
        )
    print(right.status, wrong.status, wrong.detail)

    result = wm.evaluate(
        args.run,
        n_problems=args.problems,
        max_new_tokens=args.max_new_tokens,
        output=args.out / "programs.jsonl",
        overwrite=True,
    )
    print(f"pass@1 {result.pass_at_1:.1%} of {args.problems} problems")
    return result.pass_at_1


if __name__ == "__main__":
    main()
