"""`weighted-mtp evaluate`: programs judged by running them, written by a checkpoint or given."""

from __future__ import annotations

import argparse

from weighted_mtp.cli.decoding_options import (
    DecodingOptions,
    add_decoding_arguments,
    check_heads,
    decoding_options,
)
from weighted_mtp.cli.evaluate_benchmark import add_benchmark_arguments, run_foreign
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import check_output_file, given_path
from weighted_mtp.core.model_folder import find_model, results_folder
from weighted_mtp.data.collators import TEMPLATE_NAMES
from weighted_mtp.evaluation.benchmarks import BENCHMARKS
from weighted_mtp.evaluation.scores import parse_ks
from weighted_mtp.micro_tasks import Split
from weighted_mtp.pipelines.evaluating import decoding_figures
from weighted_mtp.pipelines.evaluating.micro import (
    Attempt,
    EvaluationRequest,
    EvaluationResult,
    run_evaluation,
    save_result,
)
from weighted_mtp.pipelines.evaluating.writer import check_chat

MICRO_SPLITS: tuple[Split, ...] = ("test", "compositions")
_MICRO_ALONE = ("max_difficulty",)
_BENCHMARK_ALONE = (
    *("completions", "problems", "source", "prompt", "timeout", "workers"),
    *("overwrite", "partial"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `evaluate`."""
    parser.add_argument(
        "path", type=given_path, nargs="?", help="a run, a checkpoint, a model or ORG/NAME"
    )
    parser.add_argument(
        "--dataset", default="micro", metavar="NAME", help=f"micro, {', '.join(BENCHMARKS)}"
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="micro: test, or compositions that no training row holds; with --source: train, "
        "validation, test or all (default test)",
    )
    parser.add_argument("--n-problems", type=int, help="default: micro 200, else all there are")
    parser.add_argument(
        "--max-difficulty", type=int, help="hardest micro tasks, 1 to 11 (default: as in training)"
    )
    parser.add_argument("--n-samples", type=int, default=1, help="programs for each problem")
    parser.add_argument("--k", metavar="K,…", help="of pass@k, such as 1,10,100")
    parser.add_argument("--batch-size", type=int, help="prompts at a time (micro 64, else 16)")
    parser.add_argument("--template", help="prompt template (default: the one of the run)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: as stored)")
    parser.add_argument("--show", type=int, default=2, help="print this many programs of each kind")
    parser.add_argument(
        "--output",
        type=given_path,
        help="micro: result file (default PATH/evaluation/micro-SPLIT.jsonl); else result folder "
        "(default PATH/evaluation/NAME)",
    )
    add_decoding_arguments(parser, None, "default: micro 256, else 512")
    add_benchmark_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print a table, keep every program."""
    for name in ("n_problems", "n_samples", "max_difficulty", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    options = decoding_options(args)
    if args.dataset in BENCHMARKS:
        _refuse(args, _MICRO_ALONE)
        return run_foreign(args, options)
    if args.dataset != "micro":
        known = ", ".join(("micro", *BENCHMARKS))
        raise UserError(f"unknown data set {args.dataset!r}: choose one of {known}")
    _refuse(args, _BENCHMARK_ALONE)
    return _run_micro(args, options)


def _refuse(args: argparse.Namespace, names: tuple[str, ...]) -> None:
    """An option that would do nothing is a mistake."""
    for name in names:
        if getattr(args, name) not in (None, False):
            option = name.replace("_", "-")
            raise UserError(f"--{option} has no meaning for --dataset {args.dataset}")


def _run_micro(args: argparse.Namespace, options: DecodingOptions) -> int:
    split = next((name for name in MICRO_SPLITS if name == (args.split or "test")), None)
    if args.path is None:
        raise UserError("give a checkpoint: a run, a checkpoint or a model folder")
    if split is None:
        raise UserError(f"--split {args.split!r}: micro tasks have {' and '.join(MICRO_SPLITS)}")
    if args.template not in (None, *TEMPLATE_NAMES):
        raise UserError(f"--template {args.template!r}: choose one of {', '.join(TEMPLATE_NAMES)}")
    model = find_model(args.path)
    check_heads(args, model)
    check_chat(model, args.template)
    folder = results_folder(args.path) / "evaluation"
    output = args.output or folder / f"{args.dataset}-{split}.jsonl"
    check_output_file(output, "--output")
    check_output_file(output.with_suffix(".summary.json"), "--output")
    result = run_evaluation(
        EvaluationRequest(
            path=args.path,
            n_problems=args.n_problems or 200,
            n_samples=args.n_samples,
            ks=parse_ks(args.k, args.n_samples) if args.k is not None else (),
            sampling=options.sampling,
            max_new_tokens=options.max_new_tokens or 256,
            stops=options.stops,
            speculation=options.speculation,
            batch_size=args.batch_size or 64,
            device=args.device,
            dtype=args.dtype,
            seed=args.seed,
            template=args.template,
            max_difficulty=args.max_difficulty,
            split=split,
        )
    )
    show(result, args.show)
    save_result(result, output)
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
    overall = "–" if result.pass_at_1 is None else f"{result.pass_at_1:.1%}"
    print(f"{'all':<16}{overall:>8}{total:>10}")
    for k, found in result.pass_at.items():
        print(f"pass@{k}: {found}")
    if result.decoding is not None:
        print(decoding_figures.line(result.decoding))


def _program(attempt: Attempt) -> str:
    verdict = attempt.verdict
    word = "passes its tests" if verdict.passed else f"{verdict.status}: {verdict.detail}"
    return f"# {attempt.row['instruction']}\n{attempt.completion.rstrip()}\n# → {word}\n"
