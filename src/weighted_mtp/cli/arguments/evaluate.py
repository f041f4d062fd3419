"""Options of `weighted-mtp evaluate`."""

from __future__ import annotations

import argparse

from weighted_mtp.cli.arguments.decoding import DTYPE_HELP, add_decoding_arguments
from weighted_mtp.core.choices import BENCHMARKS, MICRO
from weighted_mtp.core.files import given_name, given_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `evaluate`."""
    parser.add_argument(
        "path",
        type=given_path,
        nargs="?",
        help="a run, a checkpoint, a model directory, or ORG/NAME on the Hugging Face hub",
    )
    parser.add_argument(
        "--dataset",
        default=MICRO,
        metavar="NAME",
        help=f"{MICRO} (default), {', '.join(BENCHMARKS)}",
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="micro: test, compositions that no training row combines, or train (to learn from "
        "one's own programs); with --source: train, validation, test or all (default test)",
    )
    parser.add_argument(
        "--n-problems", type=int, help="problems to evaluate (default: micro 200, others all)"
    )
    parser.add_argument(
        "--max-difficulty",
        type=int,
        help="hardest micro tasks, from 1 to 11 (default: as in training)",
    )
    parser.add_argument("--n-samples", type=int, default=1, help="programs for each problem")
    parser.add_argument("--k", metavar="K,…", help="k of pass@k, such as 1,10,100")
    parser.add_argument(
        "--batch-size",
        type=int,
        help="prompts at a time (default: micro 64, else 16; 1 with --tree)",
    )
    parser.add_argument("--template", help="prompt template (default: the one of the run)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--dtype", help=DTYPE_HELP)
    parser.add_argument(
        "--show",
        type=int,
        help="print this many programs that pass and that fail (default: micro 2, else 0)",
    )
    parser.add_argument(
        "--output",
        type=given_path,
        help="micro: file with all programs and verdicts (PATH/evaluation/micro-SPLIT.jsonl); "
        "otherwise the results directory (default PATH/evaluation/NAME)",
    )
    parser.add_argument(
        "--timeout", type=float, default=5.0, help="seconds a program may run (default: 5)"
    )
    parser.add_argument("--workers", type=int, help="programs run at a time (default: all cores)")
    parser.add_argument(
        "--logprobs",
        action="store_true",
        help="keep the log-probability of each program, for prepare attempts",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start over; without it, an interrupted evaluation resumes",
    )
    add_decoding_arguments(parser, None, "default: micro 256, else 512")
    group = parser.add_argument_group(", ".join(BENCHMARKS))
    group.add_argument(
        "--allow-code-execution", action="store_true", help="run programs on this machine"
    )
    group.add_argument("--problems", type=given_path, help="problems.SPLIT.jsonl from `prepare`")
    group.add_argument(
        "--source", type=given_name, metavar="PATH", help="the published files, as for `prepare`"
    )
    group.add_argument(
        "--prompt",
        metavar="STYLE",
        help="humaneval: completion, stripped; mbpp: 3-shot, 0-shot; codecontests: apps; any: "
        "template (default: template for a run trained with one, else the published style)",
    )
    group.add_argument(
        "--completions",
        type=given_name,
        metavar="FILE",
        help="judge these (task_id and completion or solution) instead of a checkpoint's; or "
        "`canonical`, `mutants`: the reference solutions, unchanged or with one mistake each",
    )
    group.add_argument("--partial", action="store_true", help="FILE may lack problems")
