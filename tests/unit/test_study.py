"""Studies: their plan holds, greedy text decides accuracy, and the command says what was found and
what was published, whichever way it went."""

import json
from dataclasses import replace

import pytest
import torch

from weighted_mtp.analysis.experiment_table import percent
from weighted_mtp.analysis.study_table import claim_table, line_table, study_outcome
from weighted_mtp.cli.main import main
from weighted_mtp.core.errors import UserError
from weighted_mtp.decoding import Decoder
from weighted_mtp.evaluation.student_t import t_test
from weighted_mtp.micro_tasks.puzzles import draw_puzzle
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.experiments import study_seed
from weighted_mtp.pipelines.experiments.studies import STAR_GRAPH, STUDIES
from weighted_mtp.pipelines.experiments.study import STUDY_SIZES, StudyRequest
from weighted_mtp.pipelines.experiments.study_run import compare_arms, run_study
from weighted_mtp.pipelines.experiments.study_seed import (
    TOKENIZER,
    FreshPuzzles,
    Hits,
    accuracy,
    as_example,
    find_hits,
)

TINY = (
    "model.architecture.dim=16",
    "model.architecture.n_heads=2",
    "training.batch_size=4",
    "training.micro_batch_size=4",
)


def request_of(folder, study=STAR_GRAPH, **more) -> StudyRequest:
    asked = {"seeds": 2, "steps": 1, "n_test": 3, "settings": TINY, **more}
    return StudyRequest(folder, study, **asked)


def tiny_adapter(std: float = 0.3) -> MetaLlamaMTPAdapter:
    torch.manual_seed(0)
    args = ModelArgs(dim=16, n_layers=2, n_heads=2, multiple_of=16, vocab_size=259, max_seq_len=64)
    model = Transformer(args)
    model.init_weights(std)
    return MetaLlamaMTPAdapter(model)


def test_the_help_knows_every_study():
    assert {name: study.size for name, study in STUDIES.items()} == STUDY_SIZES


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_arms_differ_only_in_what_they_are_about(study, tmp_path):
    request = request_of(tmp_path, study, arms=tuple(study.arms), settings=())
    recipes = {arm: request.recipe(arm, 3) for arm in study.arms}
    first = next(iter(recipes.values()))
    for recipe in recipes.values():
        assert recipe.training == first.training
        assert recipe.training.schedule == "wsd"
        assert recipe.runtime.seed == 3
        assert recipe.data == first.data
        assert recipe.objective.name in ("uniform", "top")
    longest = max(
        len(as_example(draw_puzzle(study.task, 0, i, level), i).ids)
        for level in study.task.levels
        for i in range(20)
    )
    assert longest <= first.data.max_length
    for claim in (study.contrast, *study.comparisons):
        assert {claim.arm, claim.other} <= set(study.arms)
        assert (claim.measure or study.primary) in study.measures
        assert bool(claim.sign) == bool(claim.published)
    for line in study.lines.values():
        assert len(line) == len(study.points)
        assert all(arm in study.arms and measure in study.measures for arm, measure in line)


def test_all_arms_of_a_seed_read_the_same_puzzles_and_only_answers_are_targets():
    fresh = FreshPuzzles(STAR_GRAPH.task, 5)
    (one,), (other,) = fresh.take(7, 2)
    assert fresh.take(8, 1)[0][0] == other
    puzzle = draw_puzzle(STAR_GRAPH.task, 5, 7)
    assert one.ids == [TOKENIZER.bos_id, *puzzle.prompt, *puzzle.answer, TOKENIZER.eos_id]
    assert one.prompt_length == 1 + len(puzzle.prompt)
    assert one.has_targets


def test_hits_are_where_greedy_decoding_agrees():
    adapter = tiny_adapter()
    puzzles = [draw_puzzle(STAR_GRAPH.task, 0, i) for i in range(6)]
    for i, puzzle in enumerate(puzzles):  # half of them are what the model would write
        prompt = as_example(puzzle, 0).ids[: 1 + len(puzzle.prompt)]
        written = Decoder(adapter.transformer).generate([prompt], len(puzzle.answer), None)[0]
        if i % 2:
            puzzles[i] = puzzle._replace(answer=tuple(written))
        assert len(written) == len(puzzle.answer)
    hits = find_hits(adapter, puzzles)
    assert [bool(right.all()) for right in hits.right] == [False, True] * 3
    assert hits.loss > 0


def test_an_accuracy_counts_puzzles_or_places():
    puzzle = draw_puzzle(STAR_GRAPH.task, 0, 0)
    right = [torch.tensor([False, True, True, True]), torch.tensor([True, True, True, False])]
    found = {
        name: accuracy(measure, {"graph": [puzzle] * 2}, {"graph": Hits(right, 1.0)})
        for name, measure in STAR_GRAPH.measures.items()
    }
    assert found == pytest.approx({"exact path": 0.5, "first step": 1.0, "later steps": 3 / 4})


def test_a_run_goes_on_where_it_stopped_and_keeps_to_its_plan(tmp_path, monkeypatch):
    request, done = request_of(tmp_path / "run", arms=("ntp", "top")), []
    train = study_seed.bench.train

    def counted(recipe, *rest):
        assert (request.directory / "plan.json").exists()
        done.append(recipe.objective.name)
        if len(done) == 3:
            raise KeyboardInterrupt
        return train(recipe, *rest)

    monkeypatch.setattr(study_seed.bench, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        run_study(request)
    results = run_study(request)
    assert done == ["uniform", "top", "uniform", "uniform", "top"]
    assert json.loads((request.directory / "results.json").read_text()) == results
    assert run_study(request) == results
    assert results["contrast"]["sign_found"] == "undecided"
    assert results["arms"]["ntp"]["tokens"] == 4 * (STAR_GRAPH.task.length + 1)
    for changed in (replace(request, steps=2), replace(request, arms=("ntp", "top", "mtp_2"))):
        with pytest.raises(UserError, match="the plan says"):
            run_study(changed)


def test_wrong_requests_are_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="no arm magic"):
        run_study(request_of(tmp_path / "x", arms=("magic",)))
    with pytest.raises(UserError, match="add top"):
        run_study(request_of(tmp_path / "x", arms=("ntp",)))
    for words in (["--regime", "scarce"], ["--n-problems", "3"], ["--steps", "0"]):
        assert main(["experiment", "star-graph", *words, "--output-dir", str(tmp_path / "x")]) == 2
        assert words[0] in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("values", "sign", "word"),
    [
        ([0.2, 0.3, 0.25], "same", "the same sign as published"),
        ([-0.2, -0.3, -0.25], "opposite", "the opposite of the sign published"),
        ([0.2, -0.3, 0.1], "undecided", "No difference shown"),
        ([0.2], "undecided", "One seed tests nothing"),
    ],
)
def test_the_outcome_is_said_whichever_way_it_went(values, sign, word):
    import numpy as np

    zero = np.zeros(len(values))
    table = {"top": {"exact path": np.array(values)}, "ntp": {"exact path": zero}}
    found = compare_arms(table, STAR_GRAPH.contrast, "exact path")
    assert found["sign_found"] == sign
    plain = {k: None if x != x else x for k, x in found["difference"].items()}
    results = {"contrast": {**found, "difference": plain}, "comparisons": []}
    assert word in study_outcome(results)
    assert "Zuhri" in claim_table(results)


def test_lines_have_a_column_for_each_point():
    line = [t_test([0.5, 0.6])._asdict(), t_test([0.1, 0.1])._asdict()]
    results = {"lines": {"n = 1": line, "n = 2": line[:1]}, "points": ["1 M", "3 M"]}
    text = line_table(results)
    assert "| n = 1 | 55.0 % [" in text
    assert text.splitlines()[-1].endswith("| – |")
    assert line_table({"lines": {}, "points": []}) == ""


@pytest.mark.parametrize("name", ["polynomials", "induction"])
def test_lines_are_written_from_a_single_seed_too(name, tmp_path):
    page = tmp_path / "RESULTS.md"
    words = ["experiment", name, "--seeds", "1", "--steps", "1", "--n-test", "2"]
    words += [word for setting in TINY for word in ("--set", setting)]
    assert main([*words, "--output-dir", str(tmp_path / "run"), "--results", str(page)]) == 0
    text, study = page.read_text(), STUDIES[name]
    assert "One seed tests nothing" in text
    assert "Gloeckle et al. 2024" in text
    assert all(f"| {line} | " in text for line in study.lines)
    assert (tmp_path / "figures" / f"experiment-{name}.png").stat().st_size > 10_000


def test_the_command_writes_text_and_picture(tmp_path, capsys):
    page = tmp_path / "docs" / "RESULTS.md"
    words = ["experiment", "star-graph", "--seeds", "2", "--steps", "1", "--n-test", "3"]
    words += [word for setting in TINY for word in ("--set", setting)]
    words += ["--output-dir", str(tmp_path / "runs"), "--results", str(page)]
    assert main(words) == 0
    text = page.read_text()
    assert "<!-- experiment star-graph: begin -->" in text
    assert "Bachmann" in text
    assert "--steps 1 --n-test 3" in text
    assert "nan" not in text.lower()
    assert (page.parent / "figures" / "experiment-star-graph.png").stat().st_size > 10_000
    assert main([*words[:3], "3", *words[4:]]) == 2
    assert "the plan says" in capsys.readouterr().err


def test_a_run_that_ended_early_is_told_as_such(tmp_path, capsys):
    """Fewer seeds than planned are told as such; none is left out whose contrast is known."""
    page, runs = tmp_path / "RESULTS.md", tmp_path / "runs"
    words = ["experiment", "star-graph", "--seeds", "3", "--steps", "1", "--n-test", "3"]
    words += ["--arms", "ntp,top", *(word for setting in TINY for word in ("--set", setting))]
    words += ["--output-dir", str(runs), "--results", str(page)]
    assert main(words) == 0
    assert "were planned" not in page.read_text()
    (runs / "seed2" / "arms" / "top.json").unlink()
    assert main([*words[:3], "1", *words[4:]]) == 2
    assert "--seeds 2" in capsys.readouterr().err
    assert main([*words[:3], "2", *words[4:]]) == 0
    assert "over 2 seeds (3 were planned)" in page.read_text()
    assert not (runs / "seed2" / "arms" / "top.json").exists()
    assert main(words) == 0  # and may go on
    assert "were planned" not in page.read_text()


def test_the_interval_of_a_share_ends_at_0_and_100_percent():
    assert percent({"mean": 0.77, "low": 0.13, "high": 1.41}) == "77.0 % [13.0, 100.0]"
    assert percent({"mean": 0.02, "low": -0.01, "high": 0.05}) == "2.0 % [0.0, 5.0]"
    assert percent({"mean": 0.5, "low": None, "high": None}) == "50.0 %"
