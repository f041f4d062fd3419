"""From what was written to a verdict: the right code is found in it, its indentation kept."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.test_evaluation_prompts import MBPP, needs_mbpp

from weighted_mtp.core.types import Program, Verdict
from weighted_mtp.data.tokenizers import (
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
    answer_of,
    begins_a_block,
    cut,
    programs_of,
    solution_of,
    written_text,
)
from weighted_mtp.evaluation.mutants import mutants, rewritten
from weighted_mtp.evaluation.prompts import Prompting
from weighted_mtp.evaluation.sandbox import Sandbox
from weighted_mtp.pipelines.model_writer import continuation_decoder

HEAD = 'from math import *\n\ndef twice(x):\n    """Twice."""\n'
BODY = "    y = x\n    return 2 * y\n"
PROBLEM = Problem("t/1", "completion", HEAD, tests=("assert twice(2) == 4",), entry_point="twice")
WHOLE = "def twice(x):\n    return floor(2 * x)\n"
RAW, TUNED = Prompting("completion"), Prompting("template")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(timeout=5.0) as judge:
        yield judge


# --- the answer in a text ------------------------------------------------------------------------


@given(st.text("ab\n", max_size=40), st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=4))
@settings(max_examples=200, deadline=None)
def test_cut_is_the_longest_beginning_without_a_stop(text, stops):
    kept = cut(text, stops)
    assert text.startswith(kept)
    assert not any(stop in kept for stop in stops)
    if kept != text:
        assert any(text[len(kept) :].startswith(stop) for stop in stops)


@given(st.text(" \t\nxy:=()", max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_space_is_ever_taken_from_an_answer(text):
    for prompting in (RAW, TUNED, Prompting("3-shot"), Prompting("0-shot"), Prompting("apps")):
        assert answer_of(PROBLEM, text, prompting) == text


def test_a_whole_stop_string_ends_an_answer_and_its_first_characters_do_not():
    text = BODY + "\n\n    # on\n\nprince = 1\n"
    assert answer_of(PROBLEM, text, RAW) == text
    for stop in ("\nclass A:", "\ndef f():", "\n# a", "\nif x:", "\nprint(1)"):
        assert answer_of(PROBLEM, BODY + stop, RAW) == BODY


@pytest.mark.parametrize("fence", ["```python", "```py", "```", "``` python"])
@pytest.mark.parametrize("code", [BODY, WHOLE])
def test_a_fenced_answer(fence, code):
    text = f"Sure:\n\n{fence}\n{code}```\nIt doubles.\n```\ntwice(2)\n```\n"
    assert answer_of(PROBLEM, text, TUNED) == code
    at_once = text.removeprefix("Sure:")
    assert answer_of(PROBLEM, at_once, RAW) == code
    assert answer_of(PROBLEM, f"{fence}\n{code}", TUNED) == code  # never closed


def test_of_several_blocks_the_one_with_the_function():
    text = f"```\ntwice(2)\n```\n```python\n{WHOLE}```\n"
    assert answer_of(PROBLEM, text, TUNED) == WHOLE


def test_a_fence_inside_a_raw_completion_is_text():
    text = BODY + "```\nprose\n```\n"
    assert answer_of(PROBLEM, text, RAW) == text


def test_a_whole_function_keeps_its_helpers():
    text = "def help(x):\n    return x\n\n" + WHOLE
    assert answer_of(PROBLEM, text, TUNED) == text
    going_on = text + "\n### Instruction:\nmore"
    assert answer_of(PROBLEM, going_on, TUNED) == text


@pytest.mark.parametrize("head", [HEAD, HEAD.rstrip("\n")])
def test_a_whole_function_after_the_prompt(head, sandbox):
    problem = Problem("t/1", "completion", head, tests=PROBLEM.tests, entry_point="twice")
    judge = CompletionJudge(sandbox, TUNED)
    assert judge(problem, f"```python\n{WHOLE}```").verdict.passed  # floor is of the prompt


def test_the_program_is_prompt_and_answer():
    assert solution_of(PROBLEM, BODY + "\ndef f(): pass\n", RAW) == HEAD + BODY
    asserts = Problem("t/2", "asserts", "Double.", tests=("a", "b"), setup="s", entry_point="twice")
    text = WHOLE + "[DONE]\nYou are"
    assert solution_of(asserts, text, Prompting("3-shot")) == WHOLE
    assert programs_of(asserts, WHOLE) == [Program(WHOLE, ("s", "a", "b"))]


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
        control = rewritten(problem)
        assert control is not None
        assert judge(problem, control).verdict.passed
        for text in mutants(problem, 1):
            assert text != control
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
        if prompting.style == "template" or not begins_a_block(whole):
            answer = answer_of(PROBLEM, whole, prompting)
            assert answer_of(PROBLEM, completion.text, prompting) == answer
        elif completion.finish == "stop":  # then it is written again
            assert begins_a_block(written_text(tokenizer, prompt, completion.tokens))


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
