"""The oracle's rows: mutated tokens are no targets, all others are."""

import itertools

import numpy as np
import pytest

from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.datasets import write_jsonl
from weighted_mtp.data.rows.store import open_rows
from weighted_mtp.data.tokens.row_tokens import tokenise
from weighted_mtp.data.tokens.tokenizers import make_tokenizer
from weighted_mtp.micro_tasks import mutations
from weighted_mtp.micro_tasks.originals import pose_problem, posed_problems
from weighted_mtp.pipelines.training import data
from weighted_mtp.pipelines.training.mutated import WithoutMutations, changed_span, mutated_spans
from weighted_mtp.pipelines.training.objectives import make_objective

SEED = 3


@pytest.mark.parametrize(
    ("right", "wrong", "span"),
    [
        ("abcdef", "abXdef", (2, 3)),
        ("abcdef", "abXYZdef", (2, 5)),
        ("abcdef", "abef", (2, 3)),  # removed: the token that comes too early
        ("abcdef", "abcddef", (4, 5)),
        ("abcdef", "abc", (3, 4)),
        ("abc", "abcdef", (3, 6)),
        ("abc", "xyz", (0, 3)),
    ],
)
def test_the_span_that_differs(right, wrong, span):
    assert changed_span(right, wrong) == span


@pytest.fixture(scope="module")
def problems():
    return posed_problems(12, SEED)


@pytest.fixture(scope="module")
def store(problems, tmp_path_factory):
    """Right programs and mutants that nobody judged: every operator that fits, some of each."""
    rows = []
    for task_id, problem in problems.items():
        task = pose_problem(problem, SEED)
        style = sorted(task.solutions)[0]
        sources = [task.solutions[style]]
        sources += [m.source() for m in itertools.islice(mutations(style, sources[0]), 0, None, 4)]
        for source in dict.fromkeys(sources):
            row = {"instruction": task.instruction, "input": "", "output": source}
            row |= {"task_id": task_id, "is_correct": source == sources[0]}
            rows.append(row | {"metadata": {"source": "micro", "style": style}})
    path = tmp_path_factory.mktemp("mutants") / "rows.jsonl"
    write_jsonl(path, rows)
    return open_rows(path, path.parent / "cache")


@pytest.mark.parametrize(("kind", "joint"), [("bytes", False), ("micro", False), ("micro", True)])
def test_what_is_masked_is_what_differs(kind, joint, store, problems, tmp_path):
    collator = AlpacaCollator(make_tokenizer(kind), "short", 400, joint=joint)
    plain = tokenise(store, np.arange(len(store)), collator, tmp_path)
    spans = mutated_spans(store, plain.rows, collator, problems, SEED)
    examples, right = WithoutMutations(plain, spans), []
    assert len(spans) > 20
    for number in range(len(store)):
        example = examples[number]
        labels = collator([example]).labels[0, example.prompt_length :].tolist()
        response = list(example.ids[example.prompt_length :])
        labels = labels[: len(response)]
        if example.is_correct:
            right = response
            assert labels == response
            continue
        masked = [i for i, label in enumerate(labels) if label == IGNORE_INDEX]
        assert masked == list(range(masked[0], masked[-1] + 1))
        before, after = response[: masked[0]], response[masked[-1] + 1 :]
        assert right[: len(before)] == before
        assert right[len(right) - len(after) :] == after or len(masked) == 1
        assert right[masked[0] : masked[0] + 1] != response[masked[0] : masked[0] + 1]


def test_a_mistake_past_the_end_of_a_cut_row_masks_nothing(store, problems, tmp_path):
    collator = AlpacaCollator(make_tokenizer("bytes"), "short", 130)
    plain = tokenise(store, np.arange(len(store)), collator, tmp_path)
    spans = mutated_spans(store, plain.rows, collator, problems, SEED)
    examples = WithoutMutations(plain, spans)
    late = [row for row, (first, _) in spans.items() if first >= len(plain[row].ids)]
    assert late
    assert all(examples[row] == plain[row] for row in late)
    cut = [row for row, (a, b) in spans.items() if a < len(plain[row].ids) <= b]
    assert all(examples[row].holes[-1][1] == len(plain[row].ids) for row in cut)


def test_rows_of_another_seed_are_refused(store, problems):
    collator = AlpacaCollator(make_tokenizer("bytes"), "short", 400)
    with pytest.raises(UserError, match=r"row \d+ was not generated with these settings"):
        mutated_spans(store, np.arange(len(store)), collator, problems, SEED + 1)


def test_training_reads_rows_without_their_mistakes(store, tmp_path, monkeypatch):
    """All rows, packed or not; held-out rows stay whole."""
    monkeypatch.setattr(data, "rows_file", lambda recipe, split, folder: store.path)
    settings = ["objective.name=oracle"]
    settings += ["data.micro={n_problems: 12, seed: 3}", f"data.cache_dir={tmp_path}"]
    settings += ["data.source=micro", "tokenizer.kind=bytes", "model.path=nowhere"]
    recipe = load_recipe("baseline", None, settings)
    objective = make_objective(recipe.objective, 2)
    collator = AlpacaCollator(make_tokenizer("bytes"), "short", 400)
    rows = data.training_data(recipe, collator, objective, tmp_path)
    read = [group[0] for group in rows.train.take(0, len(store))]
    assert sorted(example.row for example in read) == list(range(len(store)))
    assert [bool(e.holes) for e in read] == [not e.is_correct for e in read]
    assert not any(group[0].holes for group in rows.validation)
    whole = sum(len(e.ids) - e.prompt_length for e in read)
    masked = sum(end - first for e in read for first, end in e.holes)
    counts = objective.counts(collator(read))
    assert counts[0] == whole - masked
