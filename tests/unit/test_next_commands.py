"""What `train` proposes when it is done goes with what was trained."""

import shlex
from pathlib import Path

import pytest

from weighted_mtp.cli.train import report
from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.pipelines.training.trainer import TrainResult

RUN = Path("runs/it's one")
ROWS = ["data.train=rows.jsonl", "model.path=model"]


def proposed(capsys, name: str, preset: str | None, *changes: str) -> list[list[str]]:
    """The words of every command that is printed."""
    report(TrainResult(1, True, RUN, {}), RUN, load_recipe(name, preset, list(changes)))
    line = capsys.readouterr().out.splitlines()[-1].removeprefix("next: ")
    return [shlex.split(command)[1:] for command in line.split("  ·  ")]


@pytest.mark.parametrize(
    ("name", "preset", "changes", "verbs"),
    [
        ("baseline", "micro", (), ["evaluate", "report"]),
        ("critic", "micro", (), ["report"]),  # it writes no programs
        ("baseline", None, ROWS, ["generate", "report"]),  # micro tasks are not its own
        ("heads", None, [*ROWS, "model.add_heads=3"], ["generate", "report"]),
        ("critic", None, ROWS, ["report", "train"]),
    ],
)
def test_what_comes_next(name, preset, changes, verbs, capsys):
    commands = proposed(capsys, name, preset, *changes)
    assert [words[0] for words in commands] == verbs
    assert all(str(RUN) in words for words in commands if words[0] != "train")


def test_the_second_stage_reads_the_rows_of_the_critic(capsys):
    rows = ["data.validation=held out.jsonl", "data.template=chat", "data.max_length=512"]
    words = proposed(capsys, "critic", None, *ROWS, *rows)[-1]
    assert words[:3] == ["train", "--recipe", "verifiable"]
    recipe = load_recipe("verifiable", None, words[4::2])
    assert recipe.model.path == RUN
    data = recipe.data
    assert (str(data.train), str(data.validation)) == ("rows.jsonl", "held out.jsonl")
    assert (data.template, data.max_length) == ("chat", 512)
