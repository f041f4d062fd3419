"""Recipes: every shipped one is valid, layers merge in order, and mistakes are named."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from weighted_mtp.core.config.recipe import (
    RECIPES,
    Recipe,
    available,
    load_recipe,
    load_recipe_file,
)
from weighted_mtp.core.config.sections import TrainingConfig
from weighted_mtp.core.errors import UserError

PRESETS = available(RECIPES / "presets")
FINE_TUNING = [name for name in available() if name != "pretrain"]
FULL_SIZE = ("model.path=some/model", "data.train=rows.jsonl")


def micro(*overrides: str) -> Recipe:
    return load_recipe("baseline", "micro", overrides)


def refuse(*overrides: str) -> str:
    """The message of an override that must not be accepted."""
    with pytest.raises(UserError) as caught:
        micro(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is shipped -----------------------------------------------------------------------------


def test_the_recipes_of_the_readme_are_shipped():
    assert {"baseline", "ntp"} <= set(available())
    assert "micro" in PRESETS


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("name", FINE_TUNING)
def test_every_shipped_recipe_is_valid_and_survives_a_round_trip(name, preset, tmp_path):
    overrides = () if preset == "micro" else FULL_SIZE
    recipe = load_recipe(name, preset, overrides)
    saved = tmp_path / "recipe.yaml"
    saved.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe_file(saved) == recipe
    assert load_recipe(str(saved)) == recipe
    assert load_recipe_file(saved).to_yaml() == recipe.to_yaml()
    if name == "heads":
        assert (recipe.pipeline, recipe.objective.name) == ("baseline", "distil")
    else:
        assert recipe.pipeline == recipe.objective.name == name


@pytest.mark.parametrize("name", FINE_TUNING)
def test_a_full_size_recipe_asks_for_its_model_and_data(name):
    with pytest.raises(UserError, match=r"model\.path=DIR.*data\.train=FILE\.jsonl"):
        load_recipe(name)
    with pytest.raises(UserError, match=r"give one of model\.path"):
        load_recipe(name, "micro", ["model.path=some/model"])


# --- merging -------------------------------------------------------------------------------------


def test_recipe_then_preset_then_set():
    recipe = load_recipe("baseline", overrides=FULL_SIZE)
    assert (recipe.training.learning_rate, recipe.training.clip_norm) == (1e-5, 1.0)
    assert (micro().training.learning_rate, micro().training.clip_norm) == (3e-3, 1.0)
    changed = micro("training.learning_rate=0.5", "training.clip_norm=2")
    assert (changed.training.learning_rate, changed.training.clip_norm) == (0.5, 2.0)
    assert changed.training.batch_size == micro().training.batch_size


def test_the_last_of_two_settings_counts():
    assert micro("training.steps=5", "training.steps=6").training.steps == 6


def test_overrides_reach_a_saved_recipe(tmp_path):
    saved = tmp_path / "recipe.yaml"
    saved.write_text(micro().to_yaml(), encoding="utf-8")
    assert load_recipe_file(saved, ["training.steps=9"]).training.steps == 9


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / "mine.yml"
    text = (RECIPES / "ntp.yaml").read_text(encoding="utf-8")
    path.write_text(text.replace("learning_rate: 1.0e-5", "learning_rate: 2e-5"), encoding="utf-8")
    assert load_recipe(str(path), overrides=FULL_SIZE).training.learning_rate == 2e-5


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E-3", 1e-3), ("1.5e-3", 1.5e-3), ("1", 1.0), (".5", 0.5), ("3.0e+2", 300)],
)
def test_numbers_are_read_as_a_person_means_them(text, value):
    rate = micro(f"training.learning_rate={text}").training.learning_rate
    assert isinstance(rate, float)
    assert rate == value


def test_values_of_every_kind():
    recipe = micro(
        "objective.head_weights=[1, 0.5, 1e-1, 2]",
        "objective.heads=null",
        "training.betas=[0.8, 0.99]",
        "model.architecture.tie_embeddings=true",
        "data.validation=a=b/c d.jsonl",
        "training.steps=1e3",
        "model.architecture.n_kv_heads=2",
    )
    assert recipe.objective.head_weights == (1.0, 0.5, 0.1, 2.0)
    assert recipe.objective.heads is None
    assert recipe.training.betas == (0.8, 0.99)
    assert recipe.model.architecture.tie_embeddings is True
    assert str(recipe.data.validation) == "a=b/c d.jsonl"
    assert recipe.training.steps == 1000
    assert recipe.model.architecture.n_kv_heads == 2


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    rate=st.floats(1e-12, 10),
    steps=st.integers(1, 10**9),
    seed=st.integers(0, 2**32 - 1),
    path=st.text(st.characters(categories=["L", "N"], include_characters="/._- :#"), min_size=1),
)
def test_any_values_survive_a_round_trip(rate, steps, seed, path, tmp_path_factory):
    content = yaml.safe_load(micro().to_yaml())
    content["training"].update(learning_rate=rate, steps=steps)
    content["runtime"]["seed"] = seed
    content["data"]["validation"] = path
    recipe = Recipe.model_validate(content)
    saved = tmp_path_factory.mktemp("recipes") / "recipe.yaml"
    saved.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe_file(saved) == recipe


def test_nothing_changes_after_it_was_read():
    recipe = micro()
    for section, key in [
        (recipe, "pipeline"),
        (recipe.training, "steps"),
        (recipe.data.micro, "seed"),
        (recipe.model.architecture, "dim"),
    ]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, getattr(section, key))


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "meant"),
    [
        ("training.learnin_rate=1", "training.learnin_rate", "training.learning_rate"),
        ("trainng=1", "trainng", "training"),
        ("trainng.steps=1", "trainng.steps", "training.steps"),
        (
            "model.architecture.n_layer=1",
            "model.architecture.n_layer",
            "model.architecture.n_layers",
        ),
        ("data.micro.n_problem=1", "data.micro.n_problem", "data.micro.n_problems"),
        ("objective.head_weight=[1]", "objective.head_weight", "objective.head_weights"),
        *(
            (f"{key}=1", key, meant)
            for key, meant in {
                "training.lr": "training.learning_rate",
                "training.learningrate": "training.learning_rate",
                "training.learningRate": "training.learning_rate",
                "training.learning-rate": "training.learning_rate",
                "learning_rate": "training.learning_rate",
                "lr": "training.learning_rate",
                "optimizer.lr": "training.learning_rate",
                "objective.value.lr": "objective.value.learning_rate",
                "value.lr": "objective.value.learning_rate",
                "train.steps": "training.steps",
                "critic_stage.step": "critic_stage.steps",
                "steps": "training.steps",
                "bs": "training.batch_size",
                "batch": "training.batch_size",
                "training.wd": "training.weight_decay",
                "seq_len": "data.max_length",
                "training.seed": "runtime.seed",
                "objective.lamda": "objective.td.lam",
                "objective.td.lambda": "objective.td.lam",
                "rho1.k_percent": "objective.rho1.k_percent",
                "model.dim": "model.architecture.dim",
                "early_stopping.patience": "training.early_stopping.patience",
                "compute_dtype": "runtime.compute_dtype",
            }.items()
        ),
    ],
)
def test_an_unknown_key_names_the_near_one(override, key, meant):
    assert f"unknown key {key} (did you mean {meant}?)" in refuse(override)


def test_epochs_are_counted_in_steps():
    message = refuse("training.epochs=3")
    assert "did you mean training.steps?" in message
    assert "optimizer steps" in message


def test_a_misspelled_section_names_the_key_of_each_setting(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("train: {steps: 5, lr: 0.1}\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_recipe("baseline", str(path))
    assert "train.steps (did you mean training.steps?)" in str(caught.value)
    assert "train.lr (did you mean training.learning_rate?)" in str(caught.value)


def test_python_gets_the_same_suggestions_beside_other_mistakes():
    with pytest.raises(ValidationError) as caught:
        TrainingConfig.model_validate(
            {"lr": 1, "steps": 0, "schedule": "cosin", "betas": [True, 1]}
        )
    messages = {problem["loc"][0]: problem["msg"] for problem in caught.value.errors()}
    assert "did you mean training.learning_rate?" in messages["lr"]
    assert "did you mean cosine?" in messages["schedule"]
    assert messages["steps"] == "Input should be greater than 0"
    assert messages["betas"] == "Input should be a number"
    with pytest.raises(ValidationError, match=r"data\.lr\n .*training\.learning_rate"):
        Recipe.model_validate({"data": {"lr": 1}})


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("training.schedule=cosin", "cosine"),
        ("training.trackers=[wanb]", "wandb"),
        ("runtime.compute_dtype=bf16", "bfloat16"),
        ("pipeline=base_line", "baseline"),
    ],
)
def test_a_misspelled_choice_names_the_near_one(override, meant):
    assert f"(did you mean {meant}?)" in refuse(override)


@pytest.mark.parametrize("override", ["zzz=1", "training.zzz=1", "a..b=1", ".=1", "1=2"])
def test_an_unknown_key_like_no_other_is_refused(override):
    message = refuse(override)
    assert "unknown key" in message
    assert "did you mean" not in message


@pytest.mark.parametrize(
    "override",
    [
        "training.steps=0",
        "training.steps=1.5",
        "training.steps=many",
        "training.steps=",
        "training.steps.x=1",
        "training.learning_rate=-1e-3",
        "training.learning_rate=nan",
        "training.learning_rate=inf",
        "training.warmup_fraction=1",
        "training.betas=0.9",
        "training.betas=[0.9]",
        "training.betas=[0.9, 1.5]",
        "training.schedule=cosin",
        "objective.head_weights=[1, nan, 1, 1]",
        "model.architecture.dim=0",
        "data.max_length=1",
        "data.source=csv",
        "runtime.compute_dtype=float16",
        "runtime.seed=-1",
        "tokenizer.kind=words",
        "training=5",
    ],
)
def test_a_bad_value_is_named(override):
    key = override.partition("=")[0]
    assert key.removesuffix(".x") in refuse(override)


def test_batches_cut_evenly():
    message = refuse("training.batch_size=10", "training.micro_batch_size=4")
    assert "training.batch_size (10)" in message
    assert "training.micro_batch_size (4)" in message


def test_jsonl_needs_a_file():
    assert "data.train" in refuse("data.source=jsonl")


def test_all_mistakes_are_told_at_once():
    message = refuse("training.steps=0", "runtime.sed=1")
    assert "training.steps" in message
    assert "did you mean runtime.seed?" in message
    assert "recipe baseline with preset micro" in message


@pytest.mark.parametrize("override", ["training.steps", "=3", "", "training.steps 3", "x: 1"])
def test_bad_set_syntax(override):
    message = refuse(override)
    assert f"--set {override!r}" in message
    assert "section.key=value" in message


@pytest.mark.parametrize("value", ["[1", "{", "'", "a: b: c", "!!python/object:os.x {}"])
def test_bad_yaml_in_a_setting(value):
    assert "--set " + repr(f"training.steps={value}") in refuse(f"training.steps={value}")


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"- 1", b"text", b"a: [1", b"\ta: 1", b"a: \x00", b"\xff\xfe\x00", b"[" * 5000),
        b"a: !!python/object/apply:os.getcwd []",
    ],
)
def test_bad_yaml_in_a_file(content, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    for load in (load_recipe_file, lambda p: load_recipe(str(p))):
        with pytest.raises(UserError) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_missing_files_and_names(tmp_path):
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(UserError, match="cannot be read") as caught:
            load_recipe_file(path)
        assert str(path) in str(caught.value)
    with pytest.raises(
        UserError,
        match=r"no recipe 'basline' \(did you mean baseline\?\); shipped ones: .*baseline",
    ):
        load_recipe("basline")
    with pytest.raises(
        UserError, match=r"no preset 'mikro' \(did you mean micro\?\); shipped ones: .*micro"
    ):
        load_recipe("baseline", "mikro")
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe("missing.yaml")


def test_a_missing_section_is_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("pipeline: ntp\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"missing key objective; missing key model"):
        load_recipe_file(path)


# --- data -----------------------------------------------------------------------------------------


def test_pretraining_needs_nothing_but_its_recipe(tmp_path):
    recipe = load_recipe("pretrain")
    saved = tmp_path / "recipe.yaml"
    saved.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe_file(saved) == recipe
    assert (recipe.data.source, recipe.data.packing) == ("text", True)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.packing=false", "set data.packing=true"),
        ("pipeline=rho1", "does not go with"),
        (
            "data.text.sufixes=[.py]",
            "unknown key data.text.sufixes (did you mean data.text.suffixes?)",
        ),
        ("data.sampling.bins.low.label=[A]", "label (did you mean data.sampling.bins.low.labels?)"),
        ("data.sampling.weights={low: 1}", "data.sampling.weights has no effect"),
    ],
)
def test_data_settings_that_do_not_fit(override, words):
    more = ("objective.name=rho1",) if override.startswith("pipeline") else ()
    with pytest.raises(UserError) as caught:
        load_recipe("pretrain", None, (override, *more))
    assert words in str(caught.value)


def test_packed_rows_need_no_whole_number_of_micro_batches():
    sizes = ("training.batch_size=6", "training.micro_batch_size=4")
    with pytest.raises(UserError, match="multiple of training"):
        load_recipe("baseline", "micro", sizes)
    load_recipe("baseline", "micro", (*sizes, "data.packing=true"))


def test_a_run_of_an_earlier_version_goes_on_as_it_began(tmp_path):
    """Its config.yaml has no `reference_heads`: it compared with the next-token loss."""
    recipe = load_recipe("rho1", None, ["model.path=m", "data.train=t"])
    assert recipe.objective.rho1.reference_heads == "same"
    saved = tmp_path / "config.yaml"
    saved.write_text(recipe.to_yaml())
    assert load_recipe_file(saved) == recipe
    saved.write_text(recipe.to_yaml().replace("    reference_heads: same\n", ""))
    assert load_recipe_file(saved).objective.rho1.reference_heads == "next"
    assert load_recipe(str(saved)).objective.rho1.reference_heads == "same"


@pytest.mark.parametrize("key", ["reference", "reference_model"])
def test_a_named_reference_takes_the_place_of_the_stage(key):
    assert load_recipe("rho1", "micro").reference_stage is not None
    recipe = load_recipe("rho1", "micro", [f"objective.rho1.{key}=there"])
    assert recipe.reference_stage is None
