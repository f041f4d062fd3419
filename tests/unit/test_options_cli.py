"""`weighted-mtp options` lists all recipe options; the command line suggests what was meant."""

import json
from pathlib import Path

import pytest
import yaml
from tests.unit.test_recipe_options import leaves

from weighted_mtp.cli.main import main
from weighted_mtp.core.config.options import recipe_options, section_titles
from weighted_mtp.core.config.recipe import RECIPES, load_recipe
from weighted_mtp.core.config.suggestions import ALIASES

PAGE = Path(__file__).parents[2] / "docs" / "options.md"


def printed(capsys, *words: str) -> str:
    assert main(["options", *words]) == 0
    return capsys.readouterr().out


def refused(capsys, *words: str) -> str:
    """The one line with which a command ends."""
    try:
        status = main(list(words))
    except SystemExit as end:
        status = end.code
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_every_option_has_a_meaning_and_none_is_missing():
    options = recipe_options()
    assert [o.key for o in options] == [key for key, *_ in leaves()]
    assert not [o.key for o in options if len(o.meaning) < 8 or not o.meaning.endswith(".")]
    assert not [key for key, about in section_titles().items() if not about.endswith(".")]


def test_no_docstring_describes_an_option_that_is_gone():
    for _, section, _ in leaves():
        text = section.__doc__ or ""
        entries = [line.strip() for line in text.partition("Attributes:")[2].splitlines()]
        named = {
            e.partition(":")[0] for e in entries if e.partition(":")[0].isidentifier() and ":" in e
        }
        assert named <= set(section.model_fields), section


def test_types_defaults_and_choices_are_those_of_the_models():
    by_key = {option.key: option for option in recipe_options()}
    assert by_key["training.learning_rate"].type == "number > 0"
    assert by_key["training.learning_rate"].default == 1e-5
    assert by_key["training.schedule"].choices == ("cosine", "linear", "constant", "wsd")
    assert by_key["training.betas"].type == "list of 2 numbers \u2265 0 and < 1"
    assert by_key["data.train"].type == "path or null"
    assert by_key["model.architecture.dim"].required
    assert by_key["model.architecture.dim"].optional_section == "model.architecture"
    defaults = load_recipe("pretrain", None, ["data.text.path=python-stdlib"]).model_dump(
        mode="json"
    )
    given = yaml.safe_load((RECIPES / "pretrain.yaml").read_text(encoding="utf-8"))
    for key, option in by_key.items():
        section, _, name = key.partition(".")
        if section in ("training", "runtime") and "." not in name and name not in given[section]:
            assert option.default == defaults[section][name], key


def test_a_section_an_option_and_words_filter(capsys):
    assert "training.steps" in printed(capsys, "training")
    assert "runtime." not in printed(capsys, "training").replace("`runtime.", "")
    one = printed(capsys, "training.warmup_fraction")
    assert "number \u2265 0 and < 1; default 0.03" in one
    assert "Set by" in one
    assert "pretrain" in one
    assert "training.steps" not in one
    assert "critic_stage.learning_rate" in printed(capsys, "learning_rate")
    assert "training.clip_norm" in printed(capsys, "norm of the gradient")
    assert "no option or section 'lr' (did you mean training.learning_rate?)" in refused(
        capsys, "options", "lr"
    )


def test_json_has_them_all_with_what_sets_them(capsys):
    records = json.loads(printed(capsys, "--json"))
    assert len(records) == len(recipe_options())
    rate = next(r for r in records if r["key"] == "training.learning_rate")
    assert rate["set_by"] == {
        **dict.fromkeys(["baseline", "critic", "ntp", "rho1", "verifiable"], 1e-5),
        "heads": 1e-3,
        "pretrain": 2e-3,
        "micro": 3e-3,
    }
    trunk = next(r for r in records if r["key"] == "objective.value.trunk")
    assert trunk["set_by"]["micro (critic)"] == "all"


def test_the_page_is_current(capsys):
    assert PAGE.read_text(encoding="utf-8") == printed(capsys, "--markdown"), "run make options"


def test_aliases_stand_for_options_and_for_no_option_themselves():
    keys = {option.key for option in recipe_options()} | section_titles().keys()
    assert set(ALIASES.values()) <= keys
    assert len(ALIASES) > 60


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("trian",), "train"),
        (("evalaute", "runs/x"), "evaluate"),
        (("train", "--outputdir", "x"), "--output-dir"),
        (("train", "--output_dir=x"), "--output-dir"),
        (("plan", "--recpie", "x"), "--recipe"),
        (("prepare", "mirco"), "micro"),
        (("prepare", "micro", "--max-dificulty", "3"), "--max-difficulty"),
        (("generate", "x", "--template", "alpacca"), "alpaca"),
        (("train", "--resume=allways"), "always"),
        (("--log-level", "DEBGU", "train"), "DEBUG"),
        (("train", "--lr", "0.1"), "--set training.learning_rate=VALUE"),
        (("train", "--batch-size=8"), "--set training.batch_size=8"),
        (("train", "--recipe", "verifable"), "verifiable"),
        (("train", "--recipe", "verifable.yaml"), "verifiable"),
        (("train", "--recipe", "ntp", "--preset", "mirco"), "micro"),
    ],
)
def test_the_nearest_is_named(words, meant, capsys):
    assert f"(did you mean {meant}?" in refused(capsys, *words)


@pytest.mark.parametrize("words", [("xyzzy",), ("train", "--xyzzy"), ("report",), ()])
def test_what_is_near_nothing_is_one_line_too(words, capsys):
    assert "did you mean" not in refused(capsys, *words)


def test_values_that_look_like_options_are_left_alone(tmp_path, capsys):
    words = ("generate", str(tmp_path / "none"), "--prompt=--outputdir")
    assert "unknown option" not in refused(capsys, *words)
    assert "unknown option" not in refused(capsys, "inspect", "--", "--none")
