"""Prompt styles of each data set, and the stop strings that end an answer.

| style | of | |
|---|---|---|
| `completion` | HumanEval | the published function head with its docstring, nothing else (Chen et al. 2021, arXiv:2107.03374, §2) |
| `stripped` | HumanEval | the same without the newline at its end, which many tokenizers merge with the indentation after it (the BigCode Evaluation Harness's `humaneval`) |
| `3-shot` | MBPP | the published prompt, after tasks 2, 3 and 4 with their solutions (Austin et al. 2021, arXiv:2108.07732, §3; as in the Language Model Evaluation Harness) |
| `0-shot` | MBPP | a docstring with the text and the first test, which names the function (Fried et al. 2022, arXiv:2204.05999; as in the BigCode Evaluation Harness) |
| `apps` | CodeContests | APPS's prompt (Hendrycks et al. 2021, arXiv:2105.09938): none was published for CodeContests and a decoder |
| `template` | any | the template a model was trained with; the only one of micro tasks |

A stop string is searched for in the text, across token boundaries; the name of a control token also
stands for that token.
"""  # noqa: E501  (a table)

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weighted_mtp.core.choices import MICRO
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import Message
from weighted_mtp.data.templates import CHAT, RAW, TEMPLATE_NAMES, TEMPLATES
from weighted_mtp.data.tokens.chat import user_turn
from weighted_mtp.evaluation.benchmarks import Problem

TEMPLATE = "template"
PUBLISHED: dict[str, tuple[str, ...]] = {
    MICRO: (),
    "humaneval": ("completion", "stripped"),
    "mbpp": ("3-shot", "0-shot"),
    "codecontests": ("apps",),
}
"""Published styles of each data set, the default first."""

HUMANEVAL_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
BIGCODE_STOPS = (*HUMANEVAL_STOPS, "\n@", "\n```", "<file_sep>")
INCODER_STOPS = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```")
TEMPLATE_STOPS = {
    "alpaca": ("\n### Instruction:", "\n### Input:", "\n### Response:"),
    "short": ("\n>>>\n",),
    RAW: (),
    CHAT: (),  # a control token ends a turn
}

# MBPP's tasks 2, 3 and 4 (Google Research, CC BY 4.0), which its authors set aside for prompts.
_SHOTS = (
    (
        "Write a function to find the similar elements from the given two tuple lists.",
        (
            "assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)",
            "assert similar_elements((1, 2, 3, 4),(5, 4, 3, 7)) == (3, 4)",
            "assert similar_elements((11, 12, 14, 13),(17, 15, 14, 13)) == (13, 14)",
        ),
        "def similar_elements(test_tup1, test_tup2):\n"
        "  res = tuple(set(test_tup1) & set(test_tup2))\n"
        "  return (res) ",
    ),
    (
        "Write a python function to identify non-prime numbers.",
        (
            "assert is_not_prime(2) == False",
            "assert is_not_prime(10) == True",
            "assert is_not_prime(35) == True",
        ),
        "import math\n"
        "def is_not_prime(n):\n"
        "    result = False\n"
        "    for i in range(2,int(math.sqrt(n)) + 1):\n"
        "        if n % i == 0:\n"
        "            result = True\n"
        "    return result",
    ),
    (
        "Write a function to find the largest integers from a given list of numbers using heap "
        "queue algorithm.",
        (
            "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],3)==[85, 75, 65] ",
            "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],2)==[85, 75] ",
            "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],5)=="
            "[85, 75, 65, 58, 35]",
        ),
        "import heapq as hq\n"
        "def heap_queue_largest(nums,n):\n"
        "  largest_nums = hq.nlargest(n, nums)\n"
        "  return largest_nums",
    ),
)


@dataclass(frozen=True)
class Prompting:
    """Renders problems as prompts.

    Attributes:
        style: see the table above.
        template: a name in `TEMPLATE_NAMES`, for the style `template`.
    """

    style: str
    template: str = "alpaca"

    def render(self, problem: Problem) -> str | Sequence[Message]:
        """The prompt, without BOS; messages for the chat template."""
        if self.style == TEMPLATE and self.template == CHAT:
            return [user_turn(problem.instruction, problem.input)]
        if self.style == TEMPLATE:
            return TEMPLATES[self.template].render(problem.instruction, problem.input)
        return _RENDERERS[self.style](problem)

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end the answer."""
        return TEMPLATE_STOPS[self.template] if self.style == TEMPLATE else _STOPS[self.style]


def choose_prompting(
    dataset: str, style: str | None, template: str | None, trained_template: str | None
) -> Prompting:
    """Return the style that was asked for, else the template of a trained model, else the published
    style.

    Args:
        trained_template: what the model was trained with; None for a bare model directory.

    Raises:
        UserError: the data set has no such style, or there is no such template.
    """
    styles = (*PUBLISHED[dataset], TEMPLATE, CHAT)
    if style == CHAT and template in (None, CHAT):
        style, template = TEMPLATE, CHAT
    if style is None:
        tuned = template is not None or trained_template is not None
        style = TEMPLATE if tuned else styles[0]
    if style not in styles:
        raise UserError(f"--prompt {style!r}: for {dataset} choose one of {', '.join(styles)}")
    if template is not None and style != TEMPLATE:
        raise UserError(f"--template goes with --prompt {TEMPLATE}, not with {style}")
    template = template or trained_template or "alpaca"
    if template not in TEMPLATE_NAMES:
        raise UserError(f"--template {template!r}: choose one of {', '.join(TEMPLATE_NAMES)}")
    return Prompting(style, template)


def mbpp_text(problem: Problem) -> str:
    """Return the published text of an MBPP problem, without the function's name and the test that
    `prepare mbpp` adds for training."""
    added = (
        f"\nName the function `{problem.entry_point}`. This test, for one, must pass:\n"
        f"{problem.tests[0]}"
    )
    return problem.instruction.removesuffix(added)


def _three_shot(problem: Problem) -> str:
    shots = [_mbpp_task(text, tests) + f"{code}\n[DONE]\n\n" for text, tests, code in _SHOTS]
    return "".join(shots) + _mbpp_task(mbpp_text(problem), problem.tests)


def _mbpp_task(text: str, tests: tuple[str, ...]) -> str:
    return (
        f"You are an expert Python programmer, and here is your task: {text} Your code should pass "
        "these tests:\n\n" + "\n".join(tests) + "\n[BEGIN]\n"
    )


def _zero_shot(problem: Problem) -> str:
    return f'"""\n{mbpp_text(problem)}\n{problem.tests[0]}\n"""\n'


def _apps(problem: Problem) -> str:
    question = "\n\n".join(part for part in (problem.instruction, problem.input) if part)
    return f"\nQUESTION:\n{question}\nUse Standard Input format\nANSWER:\n"


_RENDERERS: dict[str, Callable[[Problem], str]] = {
    "completion": lambda problem: problem.instruction,
    "stripped": lambda problem: problem.instruction.strip(),
    "3-shot": _three_shot,
    "0-shot": _zero_shot,
    "apps": _apps,
}
_STOPS = {
    "completion": HUMANEVAL_STOPS,
    "stripped": BIGCODE_STOPS,
    "3-shot": ("[DONE]",),
    "0-shot": INCODER_STOPS,
    "apps": ("\nQUESTION:",),
}
