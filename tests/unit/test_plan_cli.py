"""`weighted-mtp plan`: what it says, that its advice is a recipe, and one line for a mistake."""

import json
import re
import shlex

import pytest
from tests.helpers import tiny_args, tiny_model

from weighted_mtp.cli.main import main
from weighted_mtp.core.choices import PLANNED_SHAPES
from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.models.meta_mtp import checkpoints
from weighted_mtp.models.meta_mtp.checkpoints import save_native
from weighted_mtp.pipelines.planning.estimate import count, setting_of
from weighted_mtp.pipelines.planning.memory import peak_memory
from weighted_mtp.pipelines.planning.plan import SHARE, PlanRequest, plan
from weighted_mtp.pipelines.planning.shapes import MODELS
from weighted_mtp.pipelines.training.objectives import make_objective

SEVEN = ["plan", "--model", "7b", "--gpus", "8", "--recipe", "verifiable"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small"
    save_native(tiny_model(tiny_args(max_seq_len=64)), path)
    return path


def planned(capsys, *words: str) -> dict:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_table_says_what_fits(capsys):
    assert main(SEVEN) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "6.74 billion parameters, all trained; n = 4, verifiable, bfloat16"
    rows = [re.split("  +", line) for line in lines if line.startswith(("ddp", "fsdp"))]
    ways, hows = ["ddp", "fsdp", "fsdp lean"], ["none", "selective", "full"]
    assert [row[:2] for row in rows[:9]] == [[way, how] for way in ways for how in hows]
    assert [row[0] for row in rows[9:12]] == [row[0] for row in rows[12:]] == ways
    assert rows[9][1:] == ["–/–/–"] * 3  # DDP fits nowhere
    best = advice(lines)
    assert [*best] == ["24", "40", "80"]
    assert "runtime.parallel=fsdp" in best["80"]
    assert all(len(line) <= 120 for line in lines if " GiB: " not in line)


def advice(lines: list[str]) -> dict[str, list[str]]:
    """Size of a GPU → what to pass to `--set`, as it was printed."""
    found = {}
    for line in lines:
        match = re.fullmatch(r"(\S+) GiB: (--set .*|the recipe as it is) \(\S+ GiB\)", line)
        if match:
            words = shlex.split(match[2]) if match[2].startswith("--set") else []
            assert words[::2] == ["--set"] * (len(words) // 2)
            found[match[1]] = words[1::2]
    return found


def test_train_takes_the_advice_as_it_is_printed(capsys):
    """On one GPU with room for less and less, and on eight."""
    plans = {
        "0.4,0.25,0.047": ["--gpus", "1"],
        "0.05,0.03": ["--gpus", "8", "--set", "training.optimizer=adamw"],
    }
    seen = set()
    for sizes, more in plans.items():
        words = ["--recipe", "baseline", "--preset", "micro"]
        assert main(["plan", *words, *more, "--memory", sizes]) == 0
        found = advice(capsys.readouterr().out.splitlines())
        assert len(found) == len(sizes.split(","))
        for size, changes in found.items():
            sets = [word for change in changes for word in ("--set", change)]
            gpu = ["--set", "runtime.compute_dtype=bfloat16"]  # as there, whatever this CPU has
            assert main(["train", *words, *sets, *gpu, "--dry-run"]) == 0
            resolved = capsys.readouterr().out
            for change in changes:
                key, value = change.split("=")
                assert f"{key.split('.')[-1]}: {value}\n" in resolved
            seen |= {*changes}
            memory = re.search(r"about ([\d.]+) GiB", resolved)
            assert memory is not None
            if more[1] == "1":  # what a dry run says is for one process
                assert float(memory[1]) <= SHARE * float(size)
    assert {"training.activation_checkpointing=selective", "runtime.parallel=fsdp"} < seen


def test_every_choice_is_in_the_json(capsys):
    found = planned(capsys, *SEVEN, "--memory", "16,80")
    assert found["parameters"] == found["trained"] == 6_738_419_713  # with the value head
    choices = found["choices"]
    assert len(choices) == 3 * 3 * 3  # ways, kinds of checkpointing, 1, 2 and 4 rows
    for choice in choices:
        parts = ("weights", "gradients", "optimizer", "activations", "loss", "buffers", "reference")
        assert choice["total"] == sum(choice[part] for part in parts)
        room = [size for size in (16, 80) if choice["total"] <= found["share"] * size * 2**30]
        assert choice["fits"] == room
    assert found["best"]["16"] is None
    assert found["hardware"]["network"] == 50e9
    assert choices[0]["step"]["all_reduced"] == 2 * 7 / 8 * 4 * found["trained"]
    assert found["best"]["80"]


def test_advice_is_a_recipe_that_costs_what_was_said(capsys):
    for choice in planned(capsys, *SEVEN)["choices"]:
        changes = ["model.path=unread", "data.train=unread", *choice["set"]]
        recipe = load_recipe("verifiable", None, changes)
        objective = make_objective(recipe.objective, 4)
        setting = setting_of(recipe, MODELS["7b"], objective, gpus=8)
        assert peak_memory(count(recipe, MODELS["7b"], objective), setting).total == choice["total"]


def test_hsdp_needs_nodes():
    def modes(gpus: int, **more) -> set[str]:
        request = PlanRequest("baseline", model="7b", gpus=gpus, **more)
        return {choice.mode for choice in plan(request).choices}

    assert modes(1) == {"none"}
    assert modes(8) == {"ddp", "fsdp"}
    assert modes(16) == {"ddp", "fsdp", "hsdp"}
    assert modes(12) == {"ddp", "fsdp"}
    assert modes(12, gpus_per_node=4) == {"ddp", "fsdp", "hsdp"}
    assert modes(8, overrides=["training.optimizer=muon"]) == {"ddp"}


def test_help_names_every_model():
    assert ("micro", *MODELS) == PLANNED_SHAPES


@pytest.mark.parametrize("name", MODELS)
def test_known_models(name):
    found = plan(PlanRequest("baseline", model=name, gpus=8))
    billions = {"7b": 6.74, "13b": 13.0, "8b": 8.03, "70b": 70.6}[name]
    assert found.counts.parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_recipes_own_model_and_a_checkpoint(checkpoint, capsys):
    own = planned(capsys, "plan", "--recipe", "baseline", "--preset", "micro")
    named = planned(capsys, "plan", "--recipe", "baseline", "--preset", "micro", "--model", "micro")
    assert own == named
    stored = planned(
        capsys, "plan", "--recipe", "ntp", "--model", str(checkpoint), "--set", "data.max_length=64"
    )
    assert stored["trained"] < stored["parameters"]  # two of three heads are not
    text = planned(capsys, "plan", "--recipe", "pretrain")
    assert text["choices"][0]["total"] > 0


def test_the_recipes_reference_model_is_opened_once_for_all_choices(checkpoint, monkeypatch):
    opened = []
    for layout, reader in dict(checkpoints._READERS).items():
        reading = lambda path, reader=reader: opened.append(path) or reader(path)  # noqa: E731
        monkeypatch.setitem(checkpoints._READERS, layout, reading)
    named = [f"objective.rho1.reference_model={checkpoint}", "data.max_length=64"]
    found = plan(PlanRequest("rho1", overrides=named, model=str(checkpoint), gpus=8))
    assert len(found.choices) > 20
    assert {choice.memory.reference for choice in found.choices} == {4 * found.counts.parameters}
    assert len(opened) <= 3  # the model, the check of its reference, the reference's size


def test_a_reference_model_takes_room(capsys):
    without = planned(capsys, "plan", "--recipe", "rho1", "--model", "7b")
    beside = planned(capsys, "plan", "--recipe", "rho1", "--model", "7b", "--reference-model", "7b")
    both = (without["choices"], beside["choices"])
    more = [b["total"] - a["total"] for a, b in zip(*both, strict=True)]
    assert {*more} == {4 * without["parameters"]}


def test_a_frozen_critic_costs_little_more_than_its_weights(capsys):
    found = planned(capsys, "plan", "--recipe", "critic", "--model", "7b")
    assert found["trained"] == 4097
    assert found["choices"][0]["total"] < 4.5 * found["parameters"]


MISTAKES = {
    "no gpus": (["--gpus", "0"], ["--gpus 0", "1 or more"]),
    "no node": (["--gpus-per-node", "-1"], ["--gpus-per-node -1"]),
    "memory that is none": (["--memory", "24,big"], ["--memory '24,big'"]),
    "negative memory": (["--memory", "-1"], ["--memory '-1'"]),
    "infinite memory": (["--memory", "inf"], ["--memory 'inf'"]),
    "empty memory": (["--memory", ""], ["--memory ''"]),
    "unknown model": (["--model", "9b"], ["--model '9b'", "7b"]),
    "a folder without a model": (["--model", "docs"], ["docs"]),
    "unknown recipe": (["--recipe", "nonsense"], ["no recipe 'nonsense'"]),
    "unknown preset": (["--preset", "nonsense"], ["no preset 'nonsense'"]),
    "unknown key": (["--set", "training.stepps=3"], ["unknown key training.stepps"]),
    "too many gpus": (["--gpus", "64"], ["training.batch_size 32", "64 GPUs", "=64"]),
    "rows too long": (["--set", "data.max_length=9000"], ["9000", "data.max_length=4096"]),
    "too many heads": (["--set", "objective.heads=5"], ["objective.heads is 5"]),
    "reference of no use": (["--reference-model", "7b"], ["--reference-model", "rho1"]),
    "unknown reference": (
        ["--recipe", "rho1", "--reference-model", "9b"],
        ["--reference-model '9b'"],
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case, capsys):
    words, expected = MISTAKES[case]
    assert main([*SEVEN, *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for word in expected:
        assert word in lines[0]


def test_a_recipe_without_a_model_asks_for_one(capsys):
    assert main(["plan", "--recipe", "baseline"]) == 2
    assert "--model NAME (micro, 7b, 8b, 13b, 70b) or DIRECTORY" in capsys.readouterr().err
