"""From what a model wrote to a verdict: the one path of models, given completions and references.

Nothing here strips, dedents or re-indents: the first line of an answer may well be the indented
body of a function.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import Judge, Program, Verdict
from weighted_mtp.data.tokenizers import Tokenizer
from weighted_mtp.evaluation.benchmarks import Problem
from weighted_mtp.evaluation.prompts import HUMANEVAL_STOPS, TEMPLATE, Prompting

_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_BLOCK_FIRST = re.compile(r"\s*```")


@dataclass(frozen=True)
class Judged:
    """What became of a completion.

    Attributes:
        solution: the program that was run, without the tests.
    """

    solution: str
    verdict: Verdict


class CompletionJudge:
    """Judges completions, and whole programs, of problems.

    Args:
        judge: runs programs, such as a `Sandbox`. Safe to call from several threads if it is.
        prompting: what the completions answer.
    """

    def __init__(self, judge: Judge, prompting: Prompting) -> None:
        self._judge, self._prompting = judge, prompting

    def __call__(self, problem: Problem, completion: str) -> Judged:
        """Judge the text that follows the prompt."""
        return self.whole(problem, solution_of(problem, completion, self._prompting))

    def whole(self, problem: Problem, solution: str) -> Judged:
        """Judge a program that stands for itself."""
        return Judged(solution, _run(self._judge, problem, solution))


def written_text(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text of `ids` where they follow `prompt`.

    Decoded alone they may lose a space: SentencePiece drops the one a text begins with, which here
    is the indentation.
    """
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *ids])
    if not whole.startswith(before):
        raise UserError("the tokenizer changes the prompt's text when tokens follow it")
    return whole[len(before) :]


def cut(text: str, stops: Sequence[str]) -> str:
    """All that stands before the first of `stops`."""
    return text[: min((at for at in map(text.find, stops) if at >= 0), default=len(text))]


def begins_a_block(text: str) -> bool:
    """Whether the first thing written is a fence: stop strings do not end what is inside."""
    return _BLOCK_FIRST.match(text) is not None


def answer_of(problem: Problem, text: str, prompting: Prompting) -> str:
    """The code in what was written, whether or not writing ended at the stop strings.

    A fenced block is taken out of its fence: anywhere in an answer to a template, and at the very
    beginning of other completions, where nothing else can be meant. Of several blocks it is the
    first that defines the problem's function, else the first. Other text ends at the first stop
    string. An answer to a template that is the body of a function ends as such a body does.
    """
    chatty = prompting.style == TEMPLATE
    if chatty:
        text = cut(text, prompting.stops)
    blocks: list[str] = _BLOCK.findall(text) if chatty or begins_a_block(text) else []
    if blocks:
        return next((block for block in blocks if _defines(block, problem)), blocks[0])
    if not chatty:
        return cut(text, prompting.stops)
    body = problem.style == "completion" and not _defines(text, problem)
    return cut(text, HUMANEVAL_STOPS) if body else text


def solution_of(problem: Problem, text: str, prompting: Prompting) -> str:
    """The program that an answer makes: the answer, after the instruction where it completes it.

    A whole function may follow the instruction too: it is defined anew, with the imports there.
    """
    answer = answer_of(problem, text, prompting)
    if problem.style != "completion":
        return answer
    gap = _defines(answer, problem) and not problem.instruction.endswith("\n")
    return problem.instruction + ("\n" if gap else "") + answer


def programs_of(problem: Problem, solution: str) -> list[Program]:
    """All that must pass: one run, or one for every pair of input and output."""
    if problem.style == "stdio":
        return [Program(solution, stdin=read, expected_stdout=out) for read, out in problem.cases]
    setup = (problem.setup,) if problem.setup else ()
    return [Program(solution, (*setup, *problem.tests))]


def _run(judge: Judge, problem: Problem, solution: str) -> Verdict:
    """Up to the first run that fails."""
    programs = programs_of(problem, solution)
    seconds = 0.0
    for number, program in enumerate(programs, 1):
        (verdict,) = judge([program])
        seconds += verdict.seconds
        if not verdict.passed:
            where = f"test {number} of {len(programs)}: " if len(programs) > 1 else ""
            return Verdict(False, verdict.status, where + verdict.detail, seconds)
    return Verdict(True, "passed", "", seconds)


def _defines(text: str, problem: Problem) -> bool:
    """Whether a text holds the problem's function from its first column."""
    name = re.escape(problem.entry_point)
    return bool(name) and re.search(rf"^(async )?def {name}\b", text, re.MULTILINE) is not None
