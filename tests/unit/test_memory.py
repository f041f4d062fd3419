"""The arithmetic of a step's memory: what autograd keeps, to the byte; and the peak of a step,
within a tenth of what PyTorch's profiler sees allocated."""

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import ROOT, random_tokens, tiny_args
from torch.autograd.graph import saved_tensors_hooks

from weighted_mtp.core.config.recipe import Recipe, load_recipe
from weighted_mtp.data.batches import Batch, Example, Packing, pack_batch
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.args import Family, ModelArgs
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.planning.estimate import count, setting_of
from weighted_mtp.pipelines.planning.memory import (
    activation_bytes,
    cast_bytes,
    moments,
    peak_memory,
)
from weighted_mtp.pipelines.planning.memory_inputs import Counts, Documents, Setting
from weighted_mtp.pipelines.training.adapting import freeze, halve_frozen
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives import Objective, make_objective
from weighted_mtp.pipelines.training.optimization import make_optimizer
from weighted_mtp.runtime.blocks import checkpoint_activations

CASES = {
    "multi-head": {},
    "grouped heads": {"n_kv_heads": 2},
    "one head": {"n_future_tokens": 1},
    "all blocks are heads": {"n_layers": 3},
    "wide feed-forward": {"ffn_hidden_dim": 200},
    "wide heads": {"family": Family(head_dim=12)},
    "biases": {"family": Family(qkv_bias=True, output_bias=True, mlp_bias=True)},
    "norms of queries": {"family": Family(qk_norm=True, head_dim=12), "n_kv_heads": 2},
    "sliding window": {"family": Family(sliding_window=5)},
    "multipliers": {
        "family": Family(residual_multiplier=0.5, embedding_multiplier=3.0, logits_scaling=2.0)
    },
}
PACKED = {"runs": [16, 16], "rows": [16, 16], "mask": [24, 5, 3]}


def counted(args: ModelArgs, recipe: str = "baseline", *changes: str) -> tuple[Counts, Objective]:
    resolved = read(recipe, *changes)
    objective = make_objective(resolved.objective, args.n_future_tokens)
    return count(resolved, args, objective, {}), objective


def read(recipe: str, *changes: str) -> Recipe:
    return load_recipe(recipe, None, ["model.path=unread", "data.train=unread", *changes])


def saved_bytes(model: torch.nn.Module, run: Callable[[], object]) -> tuple[int, int]:
    """What autograd keeps in `run`: tensors, and bfloat16 copies of weights. Not the weights, what
    the rotary table shows, nor what every block is given whole (tokens)."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    known.add(model.freqs_cis.untyped_storage().data_ptr())
    shapes = {shape for p in model.parameters() for shape in (p.shape, p.shape[::-1])}
    tensors: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        tensors.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        kept_alive = run()
    sizes = {
        pointer: (t.untyped_storage().nbytes(), t.dtype == torch.bfloat16 and t.shape in shapes)
        for pointer, t in tensors.items()
        if pointer not in known
    }
    del kept_alive
    casts = sum(size for size, is_cast in sizes.values() if is_cast)
    return sum(size for size, _ in sizes.values()) - casts, casts


def token_bytes(tokens: torch.Tensor) -> int:
    """The embedding keeps the tokens."""
    return tokens.numel() * 8


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_what_autograd_keeps_is_counted_to_the_byte(case, half):
    args = tiny_args(**CASES[case])
    model = Transformer(args)
    tokens = random_tokens(args, 3, 13)  # no shape is a weight's
    counts, _ = counted(args)
    setting = Setting(3, 13, half=half)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        kept, casts = saved_bytes(model, lambda: model.head_states(tokens, return_all_heads=True))
    assert kept == activation_bytes(counts, setting) + token_bytes(tokens)
    assert casts == cast_bytes(counts, setting)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("targets", ["all-linear", "wq, w1", "w2"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_adapters_keep_is_counted_to_the_byte(targets, dropout, half):
    args = tiny_args()
    lora = (f"targets=[{targets}]", f"dropout={dropout}", "rank=3", "heads=lora")
    lora += ("embeddings=true",)  # so that the first block passes a gradient on
    changes = ("training.adapt=lora", *(f"training.lora.{change}" for change in lora))
    changes += (f"runtime.compute_dtype={'bfloat16' if half else 'float32'}",)
    counts, objective = counted(args, "baseline", *changes, "training.frozen_dtype=bfloat16")
    adapter = MetaLlamaMTPAdapter(Transformer(args))
    freeze(adapter, read("baseline", *changes), objective)
    halve_frozen(adapter, read("baseline", *changes, "training.frozen_dtype=bfloat16"), {})
    model, tokens = adapter.transformer, random_tokens(args, 3, 13)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        kept, casts = saved_bytes(model, lambda: model.head_states(tokens, return_all_heads=True))
    assert kept == activation_bytes(counts, Setting(3, 13, half=half)) + token_bytes(tokens)
    assert casts == cast_bytes(counts, Setting(3, 13, half=half))


def packed_batch(way: str) -> Batch:
    """Three packed rows of 32 tokens."""
    rows = [[Example(list(range(m + 1)), 0, False, row) for m in PACKED[way]] for row in range(3)]
    batch = pack_batch(rows, 0)
    assert isinstance(batch.packing, Packing)
    return batch


def kept_apart(way: str, packing: Packing) -> tuple[torch.Tensor | Packing, Documents]:
    """What attention is given to go this way, and what the plan is told."""
    if way == "runs":
        return packing, Documents(*packing.slots.shape, runs=True)
    assert packing.unpacks_cheaply == (way == "rows")
    if way == "mask":
        return packing.mask, Documents()
    return packing._replace(runs=()), Documents(*packing.slots.shape)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("way", PACKED)
@pytest.mark.parametrize("case", ["multi-head", "norms of queries", "sliding window"])
def test_packed_rows_are_counted_to_the_byte(way, case, half):
    args = tiny_args(**CASES[case])
    model = Transformer(args)
    batch = packed_batch(way)
    packing = batch.packing
    mask, documents = kept_apart(way, packing)
    setting = Setting(3, 32, documents, half=half)

    def run() -> object:
        return model.head_states(
            batch.tokens, return_all_heads=True, positions=packing.positions, mask=mask
        )

    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        kept, casts = saved_bytes(model, run)
    counts, _ = counted(args)
    assert kept == activation_bytes(counts, setting) + token_bytes(batch.tokens)
    assert casts == cast_bytes(counts, setting)


def allocations(run: Callable[[], object]) -> tuple[object, list[int]]:
    """What `run` gives, and the bytes it allocates (freed: less than 0) in order of time. No
    garbage is collected meanwhile: a model of another test, or what a former step left in a cycle
    of references, would go and count as less."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    gc.disable()
    try:
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            result = run()
    finally:
        gc.enable()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return result, [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]


def held_bytes(run: Callable[[], object]) -> int:
    """What is still allocated when `run` is done and its result alive."""
    _kept_alive, changes = allocations(run)
    return sum(changes)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("way", ["padded", "grouped heads", *PACKED])
@pytest.mark.parametrize("how", ["selective", "full"])
def test_what_checkpointing_keeps_is_counted_to_the_byte(how, way, half):
    """The blocks' part of it: what a model of two blocks more holds more."""
    held, counted_bytes = [], []
    for layers in (5, 7):
        args = tiny_args(n_layers=layers, n_kv_heads=2 if way == "grouped heads" else None)
        model = Transformer(args)
        checkpoint_activations(model, model.grouping_plan(), how)
        tokens, places, documents = random_tokens(args, 3, 32), {}, None
        if way in PACKED:
            batch = packed_batch(way)
            packing, tokens = batch.packing, batch.tokens
            mask, documents = kept_apart(way, packing)
            places = {"positions": packing.positions, "mask": mask}

        def run(model=model, tokens=tokens, places=places) -> object:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                return model.head_states(tokens, return_all_heads=True, **places)

        run()  # caches of the batch
        held.append(held_bytes(run))
        counts, _ = counted(args)
        setting = Setting(3, 32, documents, half=half, checkpointing=how)
        counted_bytes.append(activation_bytes(counts, setting))
    assert held[1] - held[0] == counted_bytes[1] - counted_bytes[0]


@pytest.mark.parametrize("trunk", ["frozen", "top", "all"])
def test_a_critic_keeps_what_it_trains(trunk):
    args = tiny_args(n_layers=7)
    counts, objective = counted(args, "critic", f"objective.value.trunk={trunk}")
    adapter = MetaLlamaMTPAdapter(Transformer(args))
    head = adapter.attach_value_head()
    objective.prepare(adapter)
    tokens = random_tokens(args, 3, 13)
    kept, _ = saved_bytes(
        adapter.transformer, lambda: head(adapter.transformer.head_states(tokens)[0])
    )
    weight = head.value.weight.numel() * 4 if trunk != "frozen" else 0  # for the state's gradient
    own = token_bytes(tokens) if trunk == "all" else 0
    assert counts.learning == {"frozen": 0, "top": 2, "all": 5}[trunk]
    assert kept == activation_bytes(counts, Setting(3, 13)) + own + weight


def allocated_peak(step: Callable[[], None]) -> int:
    """Largest sum of what a step allocates above its start."""
    _, changes = allocations(step)
    return max(accumulate(changes, initial=0))


B, S = 2, 64
STEPS = {
    "baseline": ("baseline", {}),
    "baseline bfloat16": ("baseline", {"half": True}),
    "baseline recomputed": ("baseline", {"checkpointing": "full"}),
    "baseline recomputed bfloat16": ("baseline", {"half": True, "checkpointing": "full"}),
    "baseline selective": ("baseline", {"checkpointing": "selective"}),
    "baseline selective bfloat16": ("baseline", {"half": True, "checkpointing": "selective"}),
    "baseline two micro-batches": ("baseline", {"accumulate": True}),
    "verifiable": ("verifiable", {}),
    "verifiable selective": ("verifiable", {"checkpointing": "selective"}),
    "verifiable two micro-batches": ("verifiable", {"accumulate": True, "checkpointing": "full"}),
    "rho1": ("rho1", {}),
    "critic frozen": ("critic", {}),
    "critic frozen bfloat16": ("critic", {"half": True}),
    "heads": ("baseline", {}),
    "heads bfloat16": ("baseline", {"half": True}),
    "heads two micro-batches": ("baseline", {"accumulate": True}),
    "heads recomputed": ("baseline", {"checkpointing": "full"}),
    "heads taught": ("heads", {"distils": True}),
    "heads taught bfloat16": ("heads", {"half": True, "distils": True}),
    "lora": ("baseline", {}),
    "lora bfloat16": ("baseline", {"half": True}),
    "lora two micro-batches": ("verifiable", {"accumulate": True}),
    "lora recomputed bfloat16": ("baseline", {"half": True, "checkpointing": "full"}),
}


@pytest.mark.parametrize("case", STEPS)
def test_the_peak_of_a_step_is_within_a_tenth(case):
    recipe, how = STEPS[case]
    setting = Setting(B, S, **how)
    args = tiny_args(dim=128, n_layers=6, vocab_size=700, multiple_of=32, max_seq_len=S)
    adapt = case.split()[0] if case.startswith(("heads", "lora")) else "full"
    kept = "bfloat16" if setting.half else "auto"
    changes = (f"training.adapt={adapt}", f"training.frozen_dtype={kept}")
    changes += (f"runtime.compute_dtype={'bfloat16' if setting.half else 'float32'}",)
    counts, objective = counted(args, recipe, *changes)
    adapter = MetaLlamaMTPAdapter(Transformer(args))
    if objective.needs_value_head:
        adapter.attach_value_head()
    dtype = torch.bfloat16 if setting.half else torch.float32
    module = TrainingModule(adapter, objective, dtype)
    freeze(adapter, read(recipe, *changes), objective)
    halve_frozen(adapter, read(recipe, *changes), {})
    if setting.checkpointing != "none":
        transformer = adapter.transformer
        checkpoint_activations(transformer, transformer.grouping_plan(), setting.checkpointing)
    optimizer = make_optimizer(module, read(recipe).training)
    ids = random_tokens(args, B, S + 1)
    no = torch.zeros(B, dtype=torch.bool)
    right = torch.tensor([True, False])
    losses = torch.rand(B, S + 1)
    batch = Batch(ids[:, :-1].contiguous(), ids.clone(), no, torch.arange(B), right, losses)

    def step() -> None:
        micro_batches = 2 if setting.accumulate else 1
        counts = torch.stack([objective.counts(batch)] * micro_batches)
        denominators = objective.denominators(counts)
        for _ in range(micro_batches):
            out = module(batch, "train", denominators)
            out.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    measured = allocated_peak(step)
    expected = peak_memory(counts, setting)
    resting = expected.weights + expected.optimizer
    assert resting == sum(
        tensor.numel() * tensor.element_size()
        for p in module.parameters()
        for tensor in (p, *(v for v in optimizer.state[p].values() if v.ndim))
    )
    assert expected.total == pytest.approx(resting + measured, rel=0.1)
    # What there is beside weights and optimizer is small here, so it is held to as much as that.
    assert expected.total - resting == pytest.approx(measured, rel=0.15)


MEASURED = json.loads((ROOT / "benchmarks/results/plan_check.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("record", MEASURED["records"], ids=lambda record: record["setting"])
def test_what_the_benchmark_measured_is_met(record):
    """DDP and FSDP among it, on two processes."""
    shape, how = record["counts"].pop("args"), record["how"]
    counts = Counts(args=ModelArgs(**shape), **record["counts"])
    documents = how.pop("documents")
    setting = Setting(documents=None if documents is None else Documents(*documents), **how)
    assert peak_memory(counts, setting).total == pytest.approx(record["allocated"], rel=0.1)


SEVEN = ModelArgs(vocab_size=32000, n_future_tokens=4)


def seven(**changes) -> int:
    return peak_memory(counted(SEVEN)[0], Setting(4, 2047, half=True, gpu=True, **changes)).total


def test_less_is_less():
    whole, sharded = seven(mode="ddp"), seven(mode="fsdp", shards=8)
    assert seven() <= whole
    assert sharded < whole
    assert seven(mode="fsdp", shards=16) < sharded
    assert seven(mode="fsdp", shards=8, gather_half=True) < sharded
    selective, full = (
        seven(mode="fsdp", shards=8, checkpointing=how) for how in ("selective", "full")
    )
    assert full < selective < sharded
    assert seven(mode="fsdp", shards=8, offload=True) < sharded
    assert seven(mode="fsdp", shards=8, reshard=False) > sharded
    assert seven(mode="hsdp", shards=8) == sharded
    waiting = seven(mode="fsdp", shards=8, accumulate=True)
    assert sharded < seven(mode="fsdp", shards=8, accumulate=True, reduce_each=True) < waiting


def test_sizes_of_the_seven_billion_model():
    counts, _ = counted(SEVEN)
    assert counts.parameters == 6_738_415_616  # as its checkpoint's headers say
    memory = peak_memory(counts, Setting(1, 2047, half=True, mode="ddp", shards=1))
    assert memory.weights == 4 * counts.parameters
    assert memory.optimizer == 8 * counts.parameters
    assert memory.gradients >= 4 * counts.parameters
    copies = cast_bytes(counts, Setting(1, 2047, half=True))
    assert memory.buffers - copies in (0, 2 * SEVEN.dim * SEVEN.ffn_dim)


@given(
    rows=st.integers(1, 8),
    length=st.integers(1, 300),
    half=st.booleans(),
    checkpointing=st.sampled_from(["none", "selective", "full"]),
    accumulate=st.booleans(),
    mode=st.sampled_from(["none", "ddp", "fsdp", "hsdp"]),
    reshard=st.booleans(),
    reduce_each=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_no_part_is_negative_and_more_rows_never_take_less(rows, length, mode, **how):
    counts, _ = counted(tiny_args())
    setting = Setting(rows, length, mode=mode, shards=2, **how)
    for memory in moments(counts, setting):
        assert min(memory.parts.values()) >= 0
        assert memory.total == sum(memory.parts.values())
    larger = peak_memory(counts, replace(setting, rows=rows + 1))
    assert larger.total >= peak_memory(counts, setting).total


def test_the_setting_follows_the_recipe():
    args = tiny_args(max_seq_len=512)
    changes = ["data.max_length=257", "data.pad_to_multiple=16", "runtime.parallel=hsdp"]
    recipe = read("baseline", *changes, "training.micro_batch_size=2", "data.packing=true")
    objective = make_objective(recipe.objective, 3)
    setting = setting_of(recipe, args, objective, gpus=16, gpus_per_node=8)
    assert (setting.rows, setting.length, setting.mode, setting.shards) == (2, 256, "hsdp", 8)
    assert setting.documents in (Documents(), Documents(4, 256))
    on_cpu = setting_of(recipe, args, objective, gpu=False)
    assert on_cpu.documents == Documents(2, 256, runs=True)
    assert not setting.accumulate  # 32 rows, two on each of 16
    one = setting_of(recipe, args, objective)
    assert (one.mode, one.shards, one.accumulate) == ("none", 1, True)
