"""LoRA: what is trained, saved, resumed, merged, and opened by peft."""

import json
import shutil

import pytest
import torch
from tests.helpers import random_tokens, tiny_args, tiny_model
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    last_checkpoint,
    records,
    resume,
    train,
    tree,
)

from weighted_mtp.cli.main import main
from weighted_mtp.core.config.recipe import load_recipe, with_overrides
from weighted_mtp.core.errors import UserError
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.args import Family
from weighted_mtp.models.meta_mtp.checkpoints import (
    load_meta_mtp_model,
    open_checkpoint,
    save_adapted,
    save_huggingface,
    save_native,
)
from weighted_mtp.models.meta_mtp.layouts.peft_files import Base, Trained, sampled_places
from weighted_mtp.models.meta_mtp.lora import (
    LoRA,
    adapted_modules,
    find_targets,
    merge_adapters,
    plain_name,
)
from weighted_mtp.pipelines.run_verifiable import critic_recipe
from weighted_mtp.pipelines.training.adapting import freeze
from weighted_mtp.pipelines.training.objectives import make_objective
from weighted_mtp.runtime.blocks import checkpoint_activations

peft = pytest.importorskip("peft")
rows_file = helpers_training.rows_file
ALL = ["attention.wq", "attention.wk", "attention.wv", "attention.wo"]
ALL += ["feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
TRAINED = {"training__adapt": "lora", "training__lora__rank": 4, "training__learning_rate": 0.02}


def adapted(args=None, *changes, recipe="baseline"):
    """A tiny model with fresh adapters, as a run has it."""
    overrides = ["model.path=unread", "data.train=unread", "training.adapt=lora", *changes]
    found = load_recipe(recipe, None, overrides)
    adapter = MetaLlamaMTPAdapter(tiny_model(args))
    objective = make_objective(found.objective, adapter.args.n_future_tokens)
    objective.prepare(adapter)
    freeze(adapter, found, objective)
    return adapter.transformer


def trained(model):
    return {plain_name(name) for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def moved(model, seed=0):
    """Other values for all that is trained, B among them."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def adapters_of(layers, names):
    return {f"{layer}.{name}.lora_{x}.weight" for layer in layers for name in names for x in "AB"}


TRUNK = [f"layers.{i}" for i in range(2)]


@pytest.mark.parametrize(
    ("changes", "extra"),
    [
        ([], "heads"),
        (["training.lora.heads=lora"], "adapters"),
        (["training.lora.targets=[q_proj, v_proj]"], "heads"),
        (["training.lora.norms=true", "training.lora.embeddings=true"], "heads"),
    ],
)
def test_what_is_trained(changes, extra):
    model = adapted(None, *changes)
    found, plain = trained(model), dict(tiny_model().named_parameters())
    layers = [f"layers.{i}" for i in range(len(model.layers))]
    names = ["attention.wq", "attention.wv"] if "q_proj" in str(changes) else ALL
    expected = adapters_of(layers, names)
    heads = [f"extra_heads.{i}" for i in range(len(model.extra_heads))]
    if extra == "adapters":
        expected |= adapters_of(heads, names)
    else:
        expected |= {name for name in plain if name.startswith("extra_heads.")}
    if "norms" in str(changes):
        expected |= {name for name in plain if name.endswith("norm.weight")}
        expected |= {"tok_embeddings.weight", "output.weight"}
    assert found == expected


@pytest.mark.parametrize(
    ("changes", "rank", "scale", "dropout"),
    [
        ([], 16, 2.0, 0.0),
        (["rank=4", "alpha=6"], 4, 1.5, 0.0),
        (["rank=4", "rslora=true", "dropout=0.25"], 4, 16.0, 0.25),
    ],
)
def test_size_and_scale(changes, rank, scale, dropout):
    model = adapted(None, *(f"training.lora.{change}" for change in changes))
    modules = [module for _, module in adapted_modules(model)]
    assert {module.lora_A["default"].weight.shape[0] for module in modules} == {rank}
    assert {module.scaling["default"] for module in modules} == {scale}
    assert {getattr(m.lora_dropout["default"], "p", 0.0) for m in modules} == {dropout}


def test_a_fresh_adapter_changes_nothing_and_merging_changes_nothing_more():
    tokens = random_tokens(tiny_args(), 2, 9)
    model = adapted(None, "training.lora.heads=lora", "training.lora.rslora=true").double()
    with torch.no_grad():
        start = tiny_model().double()(tokens, return_all_heads=True)
        torch.testing.assert_close(model(tokens, return_all_heads=True), start, rtol=0, atol=0)
        expected = moved(model)(tokens, return_all_heads=True)
        assert (expected - start).abs().max() > 0.01
        merge_adapters(model)
        assert {name for name, _ in model.named_parameters()} == {
            name for name, _ in tiny_model().named_parameters()
        }
        found = model(tokens, return_all_heads=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["wq"], ["layers.0.attention.wq", "layers.1.attention.wq"]),
        (["model.layers.1.self_attn.q_proj"], ["layers.1.attention.wq"]),
        (["attention.wq", "layers.0.mlp.up_proj"], None),
        (["all-linear"], None),
    ],
)
def test_targets(targets, expected):
    candidates = [f"layers.{i}.{name}" for i in range(2) for name in ALL]
    found = find_targets(targets, candidates)
    if targets == ["all-linear"]:
        expected = candidates
    elif expected is None:
        expected = ["layers.0.attention.wq", "layers.0.feed_forward.w3", "layers.1.attention.wq"]
    assert found == expected


@pytest.mark.parametrize(
    ("recipe", "changes", "words"),
    [
        ("baseline", ["training.lora.targets=[q_prj]"], ["'q_prj'", "did you mean q_proj?"]),
        ("baseline", ["training.lora.targets=[c_attn]"], ["'c_attn'", "wq, wk, wv", "all-linear"]),
        ("baseline", ["training.lora.targets=[output]"], ["'output' matches no"]),
        ("critic", ["objective.value.trunk=frozen"], ["objective.value.trunk", "adapt=full"]),
    ],
)
def test_what_cannot_be_adapted_is_one_line(recipe, changes, words):
    with pytest.raises(UserError) as caught:
        adapted(None, *changes, recipe=recipe)
    assert all(word in str(caught.value) for word in words)


def saved(model, start, folder, lora=None):
    base = Base.of(open_checkpoint(start), lora or LoRA(16, 32))
    save_adapted(Trained.of(model, model.args, base), folder)
    return folder


def test_the_draft_vocabulary_is_the_bases(tmp_path):
    start = tiny_model()
    start.draft_ids = torch.tensor([1, 5])
    save_huggingface(start, tmp_path / "base")
    folder = saved(adapted(), tmp_path / "base", tmp_path / "adapted")
    assert load_meta_mtp_model(folder, "cpu").draft_ids.tolist() == [1, 5]


CASES = {
    "llama": {},
    "llama tied, all trained": {"tie_embeddings": True},
    "wide heads": {"n_kv_heads": 2, "family": Family(name="qwen3", qk_norm=True, head_dim=24)},
    "fused": {"family": Family(name="phi3")},
}


@pytest.mark.parametrize("name", CASES)
def test_peft_opens_what_we_save(name, tmp_path):
    from transformers import AutoModelForCausalLM

    args = tiny_args(**CASES[name])
    save_huggingface(tiny_model(args), tmp_path / "base")
    changes = []
    if "all" in name:
        changes = ["training.lora.norms=true", "training.lora.embeddings=true"]
    if name == "fused":
        changes = ["training.lora.targets=[wk, wv, wo, w3]", "training.lora.rslora=true"]
    model = moved(adapted(args, *changes))
    lora = LoRA(16, 32, rslora=name == "fused")
    folder = saved(model, tmp_path / "base", tmp_path / "lora", lora)
    tokens = random_tokens(args, 2, 9)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", trust_remote_code=False)
    opened = peft.PeftModel.from_pretrained(base, folder).eval()
    ours = load_meta_mtp_model(folder, "cpu")
    with torch.no_grad():
        expected = model(tokens, return_all_heads=True)
        torch.testing.assert_close(ours(tokens, return_all_heads=True), expected, atol=2e-5, rtol=0)
        theirs = opened(input_ids=tokens).logits
    torch.testing.assert_close(theirs, expected[:, :, 0], atol=2e-5, rtol=0)
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 16


@pytest.mark.parametrize("numbers", [1, 7, 64, 28_311_552, 2**31 + 5])
def test_places_of_a_fingerprint(numbers):
    places = sampled_places(numbers)
    assert (places[0], places[-1]) == (0, numbers - 1)


def test_any_layout_may_be_the_base_and_an_adapted_model_too(tmp_path):
    save_native(tiny_model(), tmp_path / "base")
    first = saved(moved(adapted()), tmp_path / "base", tmp_path / "first")
    model = load_meta_mtp_model(first, "cpu")
    with torch.no_grad():
        again = adapted()
        values = {plain_name(name): p for name, p in again.named_parameters()}
        for name, weight in model.named_parameters():
            values[name].copy_(weight)
        moved(again, seed=1)
        second = saved(again, first, tmp_path / "second")
        tokens = random_tokens(model.args, 2, 9)
        expected = again(tokens, return_all_heads=True)
        found = load_meta_mtp_model(second, "cpu")(tokens, return_all_heads=True)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_a_base_that_is_gone_moved_or_another(tmp_path, capsys):
    save_native(tiny_model(), tmp_path / "base")
    folder = saved(moved(adapted()), tmp_path / "base", tmp_path / "runs/lora")
    both = tmp_path / "elsewhere"
    shutil.copytree(tmp_path, both)  # moved together: found by the relative path
    shutil.rmtree(tmp_path / "base")
    load_meta_mtp_model(both / "runs/lora", "cpu")
    with pytest.raises(UserError, match="is not there; put it back"):
        load_meta_mtp_model(folder, "cpu")
    description = folder / "mtp/base.json"
    fields = json.loads(description.read_text())
    description.write_text(json.dumps({**fields, "path": str(both / "base")}))
    load_meta_mtp_model(folder, "cpu", verify=True)
    assert main(["inspect", str(folder), "--verify"]) == 0
    output = capsys.readouterr().out
    assert "SHA-256 of 3 files; without a sum: mtp/base.json; base: SHA-256 of" in output
    save_native(moved(tiny_model()), tmp_path / "other")
    description.write_text(json.dumps({**fields, "path": str(tmp_path / "other")}))
    assert main(["inspect", str(folder)]) == 2
    assert "its weights are others" in capsys.readouterr().err
    description.write_text(json.dumps({**fields, "path": str(both / "base"), "alpha": 64}))
    with pytest.raises(UserError, match="is damaged"):
        load_meta_mtp_model(folder, "cpu")
    description.write_text(json.dumps({**fields, "path": str(both / "base")}))
    data = bytearray((folder / "mtp/trained.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "mtp/trained.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"trained\.safetensors"):
        load_meta_mtp_model(folder, "cpu")


def test_sums_are_verified_where_the_base_has_none(tmp_path, capsys):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 37}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(tmp_path / "base")
    model = moved(adapted(open_checkpoint(tmp_path / "base").model.args))
    folder = saved(model, tmp_path / "base", tmp_path / "lora")
    assert main(["inspect", str(folder), "--verify"]) == 0
    output = capsys.readouterr().out
    assert "SHA-256 of 3 files" in output
    assert "base: no SHA-256 sums are stored with it" in output
    (folder / "mtp/sums.json").unlink()
    assert main(["inspect", str(folder), "--verify"]) == 2


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "start"
    args = tiny_args(vocab_size=259, max_seq_len=64)
    save_native(tiny_model(args).to(torch.bfloat16), folder)
    return folder


def run_of(start, **changes):
    return {
        **TRAINED,
        "model__path": start,
        "model__architecture": "null",
        "training__steps": 6,
        "training__save_every": 3,
        **changes,
    }


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_a_run_learns_resumes_bit_for_bit_and_is_merged(dtype, start, tmp_path, rows_file, capsys):
    changes = run_of(start, runtime__compute_dtype=dtype, training__lora__dropout=0.1)
    run_dir = tmp_path / "run"
    assert train(run_dir, rows_file, **changes) == 0
    losses = [r["head_loss"] for r in records(run_dir) if r["kind"] == "train"]
    assert losses[-1][0] < losses[0][0]
    folder = last_checkpoint(run_dir) / "model"
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "mtp", "tokenizer"
    }  # fmt: skip
    again = tmp_path / "again"
    assert train(again, rows_file, **changes) == 0
    shutil.rmtree(last_checkpoint(again))
    assert resume(again, "--set", "training.lora.rank=8") == 2
    assert "training.lora.rank" in capsys.readouterr().err
    assert resume(again) == 0
    assert tree(run_dir).keys() == tree(again).keys()
    last = [last_checkpoint(run) / "model/mtp/trained.safetensors" for run in (run_dir, again)]
    assert last[0].read_bytes() == last[1].read_bytes()
    assert main(["convert", str(run_dir), str(tmp_path / "hf"), "--to", "hf"]) == 0
    whole = load_meta_mtp_model(tmp_path / "hf", "cpu", "float32").state_dict()
    merged = load_meta_mtp_model(run_dir, "cpu", keep_formats=True).float().state_dict()
    before = load_meta_mtp_model(start, "cpu", "float32").state_dict()
    for name, weight in before.items():
        assert torch.equal(whole[name], merged[name]), name
        frozen = name.endswith("norm.weight") or name.startswith(("tok_", "output"))
        frozen = frozen and not name.startswith("extra_heads.")
        assert torch.equal(weight, merged[name]) == frozen, name


def test_what_is_dropped_is_dropped_again_when_a_block_is_recomputed():
    model = adapted(None, "training.lora.dropout=0.3")
    tokens, gradients = random_tokens(model.args, 2, 9), []
    for recomputed in (False, True):
        if recomputed:
            checkpoint_activations(model, model.grouping_plan(), "full", drops=True)
        torch.manual_seed(3)
        model.zero_grad()
        model(tokens, return_all_heads=True).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_every_pipeline_adapts(start, tmp_path, rows_file):
    """Critic and verifiable in one command: the adapted critic is the base of the second stage."""
    changes = run_of(start, training__steps=2, critic_stage__steps=2, objective__value__trunk="top")
    assert train(tmp_path / "run", rows_file, "verifiable", **changes) == 0
    model = last_checkpoint(tmp_path / "run") / "model"
    assert (model / "mtp/value_head.safetensors").is_file()
    fields = json.loads((model / "mtp/base.json").read_text())
    assert "critic" in fields["path"]
    assert main(["inspect", str(tmp_path / "run"), "--verify"]) == 0


def test_a_frozen_critic_of_the_first_stage_has_nothing_to_adapt(start):
    changes = ["model.path=" + str(start), "data.train=unread", "critic_stage.steps=2"]
    recipe = load_recipe("verifiable", None, [*changes, "training.adapt=lora"])
    assert recipe.objective.value.trunk == "frozen"
    assert critic_recipe(recipe).training.adapt == "full"
    trunk = with_overrides(recipe, ["objective.value.trunk=top"], "")
    assert critic_recipe(trunk).training.adapt == "lora"


def test_lora_from_scratch_is_refused(tmp_path, rows_file, capsys):
    assert train(tmp_path / "run", rows_file, training__adapt="lora") == 2
    assert "set model.path" in capsys.readouterr().err
