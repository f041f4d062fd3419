"""Import paths of version 0.1.0 that have moved: they work, and warn with the new path."""

import importlib
import pickle
import subprocess
import sys
import warnings

import pytest

from weighted_mtp._moved import MOVED


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """No old path has been imported yet; new modules stay."""
    old = tuple(f"weighted_mtp.{name}" for name in MOVED)
    for name in list(sys.modules):
        if name in old or name.startswith(tuple(f"{o}." for o in old)):
            monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_new_module(old):
    new = importlib.import_module(f"weighted_mtp.{MOVED[old]}")
    words = rf"weighted_mtp\.{old} has moved to weighted_mtp\.{MOVED[old]}"
    with pytest.warns(DeprecationWarning, match=words) as warned:
        module = importlib.import_module(f"weighted_mtp.{old}")
    assert len(warned) == 1
    names = getattr(new, "__all__", None) or [name for name in vars(new) if name[0] != "_"]
    assert names
    for name in names:
        assert getattr(module, name) is getattr(new, name)


def test_the_warning_points_at_the_import():
    with pytest.warns(DeprecationWarning, match="tokenizers has moved") as warned:
        from weighted_mtp.data.tokenizers import ByteTokenizer
    assert warned[0].filename == __file__
    assert ByteTokenizer().eos_id == 258


def test_every_way_to_import():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import weighted_mtp.data.tokenizers
        import weighted_mtp.data.tokenizers as aliased

        from weighted_mtp.data import tokenizers

    assert weighted_mtp.data.tokenizers is aliased is tokenizers
    assert tokenizers is sys.modules["weighted_mtp.data.tokens.tokenizers"]


def test_a_moved_package_and_what_is_in_it():
    """`generate` is a function of the package and a module in it: neither hides the other."""
    from weighted_mtp.micro_tasks import generate

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from weighted_mtp.data.micro_tasks import FAMILIES
        from weighted_mtp.data.micro_tasks.families.lists import FAMILIES as LISTS
        from weighted_mtp.data.micro_tasks.generate import generate as old
        from weighted_mtp.pipelines.objectives.critic import Critic
    import weighted_mtp.micro_tasks

    assert weighted_mtp.micro_tasks.generate is generate is old
    assert all(family in FAMILIES for family in LISTS)
    assert Critic.__module__ == "weighted_mtp.pipelines.training.objectives.critic"


def test_a_pickle_of_the_previous_version():
    with pytest.warns(DeprecationWarning, match="tokenizers has moved"):
        found = pickle.loads(b"cweighted_mtp.data.tokenizers\nByteTokenizer\n.")  # noqa: S301
    from weighted_mtp.data.tokens.tokenizers import ByteTokenizer

    assert found is ByteTokenizer
    assert pickle.loads(pickle.dumps(found)) is ByteTokenizer  # noqa: S301


def test_modules_that_became_packages():
    """In a new interpreter: nothing else may have imported the submodules."""
    code = (
        "import warnings; warnings.simplefilter('error');"
        "from weighted_mtp.evaluation.sandbox import Isolation, Sandbox, Worker, WorkerDiedError;"
        "from weighted_mtp.core.config import RECIPES, Recipe, Section, available;"
        "from weighted_mtp.core.config import DataConfig, load_recipe, load_recipe_file, setting;"
        "from weighted_mtp.models.meta_mtp.transformer import ModelArgs;"
        "print(ModelArgs.__module__, load_recipe('baseline', 'micro').pipeline)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["weighted_mtp.models.meta_mtp.args", "baseline"], done.stderr


@pytest.mark.parametrize("name", ["weighted_mtp.data.tokenizer", "weighted_mtp.pipelines.nothing"])
def test_what_never_existed(name):
    with pytest.raises(ModuleNotFoundError, match=name):
        importlib.import_module(name)
