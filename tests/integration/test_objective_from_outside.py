"""An objective that is not part of the package: from a file or module, and by an entry point."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.helpers import ROOT
from tests.integration import helpers_training
from tests.integration.helpers_training import settings, train, train_arguments

from weighted_mtp.cli.main import main
from weighted_mtp.core.config.recipe import load_recipe, load_recipe_file
from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.checkpointing.resume_rules import Resume
from weighted_mtp.pipelines.checkpointing.resuming import changes, is_same_run
from weighted_mtp.pipelines.metrics_utils import read_metrics
from weighted_mtp.pipelines.request import RunRequest
from weighted_mtp.pipelines.run_baseline import run_baseline
from weighted_mtp.pipelines.run_verifiable import critic_recipe
from weighted_mtp.pipelines.training.objectives import (
    Objective,
    Verifiable,
    find_objective,
    make_objective,
    register_objective,
    registry,
    resolve_objective,
)

rows_file = helpers_training.rows_file
EXAMPLE = "examples/objective_from_outside"
SHORT = {
    "training__steps": 2,
    "model__architecture__dim": 16,
    "model__architecture__n_layers": 3,
    "model__architecture__n_future_tokens": 2,
}


def weighted_mtp(*words: object, paths: tuple[Path, ...] = (), cwd: Path = ROOT) -> str:
    """Run the command in a process of its own; what it printed."""
    path = os.pathsep.join(map(str, (ROOT / "src", *paths)))
    done = subprocess.run(
        [sys.executable, "-m", "weighted_mtp", *map(str, words)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the example as a module and its recipe, which names the module."""
    folder = tmp_path_factory.mktemp("outside")
    shutil.copy(ROOT / EXAMPLE / "objective.py", folder / "focal_module.py")
    recipe = (ROOT / EXAMPLE / "recipe.yaml").read_text()
    recipe = recipe.replace(f"{EXAMPLE}/objective.py:Focal", "focal_module:Focal")
    (folder / "focal.yaml").write_text(recipe)
    return folder


def test_an_objective_from_a_module_trains_and_resumes(place, rows_file, tmp_path, monkeypatch):
    """By the command line alone; who evaluates or inspects the run does not import the module."""
    run_dir, data = tmp_path / "run", tmp_path / "rows.jsonl"
    shutil.copy(rows_file, data)
    arguments = train_arguments(run_dir, data, str(place / "focal.yaml"), **SHORT)
    printed = weighted_mtp("train", *arguments, paths=(place,))
    assert f"imported the objective Focal from {place / 'focal_module.py'}" in printed
    saved = load_recipe_file(run_dir / "config.yaml")
    assert saved.objective.name == "focal_module:Focal"
    assert saved.objective.options == {"gamma": 1.5}
    with monkeypatch.context() as patch:  # without another process, which takes 8 seconds to start
        patch.syspath_prepend(place)
        arguments = ["train", "--resume", "--output-dir", str(run_dir), "--set", "training.steps=4"]
        assert main(arguments) == 0
    del sys.modules["focal_module"]
    registry._load.cache_clear()

    records = [r for r in read_metrics(run_dir / "metrics.jsonl") if r["kind"] == "train"]
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    assert all(0.5 < r["focal"]["mean_weight"] < 1 for r in records)

    before = set(sys.modules)
    (tmp_path / "focal_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    model = run_dir / "checkpoints" / "step-00000004" / "model"
    assert main(["inspect", str(model)]) == 0
    assert main(["report", str(run_dir)]) == 0
    assert main(["evaluate", str(run_dir), "--n-problems", "1", "--max-new-tokens", "2"]) == 0
    assert not any("focal_module" in name for name in set(sys.modules) - before)
    assert main(["train", "--resume", "--output-dir", str(run_dir)]) == 2  # which alone imports


def test_an_objective_from_a_file(rows_file, tmp_path, monkeypatch):
    """The example as it stands; its option changes what is learnt, and its default is recorded."""
    monkeypatch.chdir(ROOT)
    recipe = str(ROOT / EXAMPLE / "recipe.yaml")
    losses = []
    for name, options in {
        "one": {},
        "same": {"objective__options__gamma": 1.5},
        "none": {"objective__options__gamma": 0},
    }.items():
        assert train(tmp_path / name, rows_file, recipe, **SHORT, **options) == 0
        losses.append(losses_of(tmp_path / name))
    assert train(tmp_path / "plain", rows_file, "baseline", **SHORT) == 0
    plain = losses_of(tmp_path / "plain")
    assert losses[0] == losses[1] != losses[2] == plain  # with gamma 0 every weight is 1
    bare = tmp_path / "bare.yaml"
    without = yaml.safe_load(Path(recipe).read_text())
    del without["objective"]["options"]
    bare.write_text(yaml.safe_dump(without))
    resolved = resolve_objective(load_recipe(str(bare), None, settings(rows_file)))
    assert resolved.objective.options == {"gamma": 2.0}


def losses_of(run_dir: Path) -> list[float]:
    return [r["loss"] for r in read_metrics(run_dir / "metrics.jsonl") if r["kind"] == "train"]


def install(site: Path, name: str, line: str, code: str = "") -> None:
    """Make a folder look as if pip had installed a package with an entry point there."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[weighted_mtp.objectives]\n{line}\n")
    (site / f"{name}.py").write_text(code or (ROOT / EXAMPLE / "objective.py").read_text())


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    return folder


def test_an_installed_package_offers_an_objective_by_name(site, rows_file, tmp_path, capsys):
    install(site, "focal_package", "focal = focal_package:Focal")
    install(site, "greedy", "baseline = greedy:Nothing", "raise SystemExit\n")
    option = {"objective__options__gamma": 3}
    changes = {**SHORT, "objective__name": "focal", **option}
    assert train(tmp_path / "run", rows_file, **changes) == 0
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    record = next(record for record in records if record["kind"] == "train")
    assert 0 < record["focal"]["mean_weight"] < 1
    assert main(["train", "--resume", "--output-dir", str(tmp_path / "run")]) == 0
    # A package cannot replace an objective of the project.
    assert find_objective("baseline").__module__.startswith("weighted_mtp.")
    assert "greedy" not in sys.modules
    capsys.readouterr()
    assert train(tmp_path / "x", rows_file, **{**changes, "objective__name": "focol"}) == 2
    error = capsys.readouterr().err
    assert "objective.name focol: no such objective (did you mean focal?)" in error
    assert (
        "baseline, critic, dft, distil, focal, label_weighted, ntp, oracle, random_matched, rho1,"
        in error
    )
    install(site, "focal_again", "focal = focal_again:Focal")
    importlib.invalidate_caches()
    with pytest.raises(UserError, match=r"several installed packages define it.*focal_again:Focal"):
        find_objective("focal")


MISTAKES = {
    "a misspelt name": ("verifable", ["(did you mean verifiable?)", "FILE.py:CLASS"]),
    "no file": ("nowhere.py:Focal", ["no file", "nowhere.py"]),
    "no module": ("no_such_module:Focal", ["ModuleNotFoundError", "no_such_module"]),
    "no class": (f"{EXAMPLE}/objective.py:Vocal", ["AttributeError", "Vocal"]),
    "a function": ("json:dumps", ["not a subclass of", "objectives.Objective"]),
    "no module named": (":Focal", ["cannot be imported", "Empty module name"]),
    "a fault": ("FAULT.py:X", ["FAULT.py, line 2: NameError: name 'y' is not defined"]),
    "not Python": ("SYNTAX.py:X", ["SyntaxError", "SYNTAX.py, line 1"]),
    "an end": ("EXIT.py:X", ["EXIT.py, line 1: it exits when imported"]),
    "loose options": ("LOOSE.py:X", ["Options are not a subclass of", "Section"]),
}
FILES = {
    "FAULT.py": "x = 1\nx = y\n",
    "SYNTAX.py": "class X(:\n",
    "EXIT.py": "raise SystemExit(0)\n",
    "LOOSE.py": "from pydantic import BaseModel\n"
    "from weighted_mtp.pipelines.training.objectives import Objective\n"
    "class X(Objective):\n    class Options(BaseModel):\n        a: int = 1\n",
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_name_that_cannot_be_used_is_one_line(case, rows_file, tmp_path, monkeypatch, capsys):
    name, words = MISTAKES[case]
    monkeypatch.chdir(ROOT)
    file, _, class_ = name.partition(":")
    if file in FILES:
        (tmp_path / file).write_text(FILES[file])
        name = f"{tmp_path / file}:{class_}"
    arguments = train_arguments(tmp_path / "run", rows_file, objective__name=name)
    for more in ((), ("--dry-run",)):
        assert main(["train", *arguments, *more]) == 2
        error = capsys.readouterr().err.splitlines()
        assert len([line for line in error if line.startswith("error: ")]) == 1
        assert error[-1].startswith(f"error: objective.name {name}")
        assert all(word in error[-1] for word in words), error[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options.gama": 1}, "unknown key objective.options.gama (did you mean gamma?)"),
        ({"options.gamma": -1}, "objective.options.gamma: Input should be greater than or equal"),
        ({"options.gamma": "yes"}, "objective.options.gamma: Input should be a number, got True"),
        ({"options": 5}, "objective.options: Input should be a valid dictionary, got 5"),
    ],
)
def test_options_are_checked_like_any_key(changes, words, rows_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    named = {f"objective__{key.replace('.', '__')}": value for key, value in changes.items()}
    recipe = str(ROOT / EXAMPLE / "recipe.yaml")
    assert train(tmp_path / "run", rows_file, recipe, **named) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert train(tmp_path / "run", rows_file, "baseline", objective__options__gamma=1) == 2
    assert "objective baseline: unknown key objective.options.gamma" in capsys.readouterr().err


def test_an_objective_says_where_it_runs(rows_file):
    """Without a declaration as its base class does: no list of the project is edited."""

    @register_objective("test_td")
    class MyTD(Verifiable):
        pass

    register_objective("test_td")(MyTD)  # its module was imported again
    with pytest.raises(ValueError, match="taken"):
        register_objective("test_td")(Objective)
    with pytest.raises(ValueError, match="colon"):
        register_objective("a:b")(MyTD)
    overrides = settings(rows_file, objective__name="test_td", critic_stage__steps=2)
    recipe = resolve_objective(load_recipe("verifiable", None, overrides))
    assert isinstance(make_objective(recipe.objective, 2), MyTD)
    assert critic_recipe(recipe).objective.name == "critic"
    other = load_recipe("baseline", None, settings(rows_file, objective__name="test_td"))
    with pytest.raises(UserError, match=r"not run in the baseline .* runs with pipeline: verif"):
        resolve_objective(other)


def test_weights_of_another_shape_are_refused(rows_file, tmp_path, capsys):
    code = """
from weighted_mtp.pipelines.training.objectives import Objective, Weighed
class X(Objective):
    signal = "cross_entropy"
    def weigh(self, pool):
        return Weighed(pool.signal[:, :, 0])
class Y(X):
    def weigh(self, pool):
        return Weighed(pool.signal, {"total": pool.signal.sum()})
class Z(X):
    def weigh(self, pool):
        return pool.signal
"""
    (tmp_path / "shapes.py").write_text(code)
    cases = {
        "X": "weights [rows, positions, heads] [",
        "Y": "figures with an entry for each of 4 rows; total has the shape []",
        "Z": "weigh must return Weighed(weights, figures), not Tensor",
    }
    for name, words in cases.items():
        changes = {**SHORT, "objective__name": f"{tmp_path}/shapes.py:{name}"}
        assert train(tmp_path / name, rows_file, **changes) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]


def test_what_a_resumed_run_may_change(rows_file, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)

    def recipe(name: str, **options: float):
        loaded = load_recipe("baseline", None, settings(rows_file))
        update = {"name": name, "options": options}
        return loaded.model_copy(update={"objective": loaded.objective.model_copy(update=update)})

    saved = recipe("a.py:Focal", gamma=1.0)
    moved, newer = recipe("b/c.py:Focal", gamma=1.0), recipe("a.py:Focal", gamma=1.0, cap=3.0)
    for asked, words in ((moved, "its code is read from there"), (newer, "only since")):
        assert is_same_run(saved, asked)
        (change,) = changes(Resume(saved, asked, 3))
        assert words in str(change.verdict)
    for asked in (recipe("a.py:Vocal", gamma=1.0), recipe("focal", gamma=1.0)):
        assert not is_same_run(saved, asked)
    for options in ({"gamma": 2.0}, {}, {"gamma": 2.0, "cap": 3.0}):
        assert not is_same_run(saved, recipe("a.py:Focal", **options))
    with pytest.raises(UserError, match="no such objective"):  # also without the command line
        run_baseline(RunRequest(recipe("nothing"), tmp_path / "run"))
    assert not (tmp_path / "run").exists()
