"""The planner's collectives against those that FSDP2 calls, one by one and to the byte, on 16 ranks
of PyTorch's fake process group (one process; nothing is sent)."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from tests.helpers import tiny_args
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.data.batches import Batch
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.compose import prepare_blocks
from weighted_mtp.pipelines.planning.communication import collectives
from weighted_mtp.pipelines.planning.estimate import count, setting_of
from weighted_mtp.pipelines.training.adapting import freeze
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives import make_objective
from weighted_mtp.runtime.fsdp import Sharded
from weighted_mtp.runtime.modes import can_shard

GPUS, NODE, VOCAB = 16, 8, 64
ARGS = tiny_args(
    n_layers=3, n_future_tokens=2, ffn_hidden_dim=96, vocab_size=VOCAB
)  # 16 divides every first dimension
KINDS = {
    "_allgather_base_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "allreduce_": "all-reduce",
}
CASES = {  # micro-batches, changes
    "fsdp in bfloat16, recomputed": (
        "fsdp",
        2,
        [
            "runtime.compute_dtype=bfloat16",
            "runtime.fsdp.param_dtype=bfloat16",
            "runtime.fsdp.reduce_dtype=bfloat16",
            "training.activation_checkpointing=full",
        ],
    ),
    "hsdp": ("hsdp", 1, []),
    "hsdp, each reduced, not resharded": (
        "hsdp",
        2,
        [
            "runtime.fsdp.reduce_gradients=micro_batch",
            "runtime.fsdp.reshard_after_forward=false",
        ],
    ),
}


@pytest.fixture(scope="module", autouse=True)
def fake_ranks():
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    if not can_shard(torch.device("cpu")):
        pytest.skip("this PyTorch cannot shard on the CPU")
    dist.init_process_group("fake", store=fake.FakeStore(), rank=0, world_size=GPUS)
    yield
    dist.destroy_process_group()


class Spy(TorchDispatchMode):
    """Counts collectives by kind and by the size of the largest tensor they take."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kind = KINDS.get(func._schema.name.removeprefix("c10d::"))
        if kind is not None:
            tensors = [x for x in tree_leaves(args) if isinstance(x, torch.Tensor)]
            self.seen[kind, max(x.numel() * x.element_size() for x in tensors)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", CASES)
def test_the_engine_calls_what_the_plan_counts(case):
    mode, micro_batches, changes = CASES[case]
    own = ["model.path=unread", "data.train=unread", "data.max_length=13"]
    own += ["training.micro_batch_size=1", f"training.batch_size={GPUS * micro_batches}"]
    own += [f"runtime.parallel={mode}", "runtime.compute_dtype=float32"]
    recipe = load_recipe("baseline", None, [*own, *changes])
    objective = make_objective(recipe.objective, ARGS.n_future_tokens)
    counts = count(recipe, ARGS, objective)
    setting = setting_of(recipe, ARGS, objective, GPUS, NODE)

    step = engine_step(recipe, objective, micro_batches)
    step()  # the first one sets up
    with Spy() as spy:
        step()
    planned: Counter[tuple[str, int]] = Counter()
    for each in collectives(counts, setting, GPUS, NODE, micro_batches):
        planned[each.kind, int(each.size)] += each.calls
    assert spy.seen == planned


def engine_step(recipe, objective, micro_batches: int) -> Callable[[], None]:
    """A step of the real engine, all micro-batches alike, without the optimizer."""
    adapter = MetaLlamaMTPAdapter(Transformer(ARGS))
    freeze(adapter, recipe, objective)
    half = recipe.runtime.compute_dtype == "bfloat16"
    module = TrainingModule(adapter, objective, torch.bfloat16 if half else torch.float32)
    shape = {"fsdp": (GPUS,), "hsdp": (GPUS // NODE, NODE)}[recipe.runtime.parallel]
    prepare_blocks(recipe, adapter.transformer)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    plan, device = module.grouping_plan(), torch.device("cpu")
    engine = Sharded(module, plan, recipe.runtime.fsdp, mesh, device)
    ids = torch.randint(VOCAB, (1, 13))
    no = torch.zeros(1, dtype=torch.bool)
    batch = Batch(ids[:, :-1].contiguous(), ids, no, torch.arange(1), no, torch.rand(1, 13))
    counted = torch.stack([objective.counts(batch)] * micro_batches)
    denominators = objective.denominators(counted * GPUS)

    def step() -> None:
        for i in range(micro_batches):
            with engine.micro_batch(last=i == micro_batches - 1):
                engine.backward(engine.module(batch, "train", denominators).loss)
        for weight in engine.weights.values():
            weight.grad = None

    return step
