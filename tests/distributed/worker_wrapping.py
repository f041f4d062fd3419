"""Started by torchrun: a wrapped Transformer against the bare one on the whole batch.

    worker_wrapping.py {ddp,fsdp,fsdp_from_meta}[:FAMILY]…

Each rank reads its rows of one global batch. In each of two optimizer steps the loss and all
gradients, and in the end all weights, equal those of one process that reads every row.
"""

import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tests.helpers import end_worker, random_tokens, tiny_args, tiny_model
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from weighted_mtp.models.meta_mtp.args import Family, ModelArgs
from weighted_mtp.models.meta_mtp.transformer import Transformer

FAMILIES = {
    "llama": Family(),
    "biases": Family(qkv_bias=True, output_bias=True, mlp_bias=True, head_dim=12),
    "qwen2": Family(qkv_bias=True, sliding_window=5),
    "qwen3": Family(qk_norm=True, head_dim=12),
    "granite": Family(
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
        logits_scaling=2.0,
    ),
    "smollm3": Family(no_rope_layers=(1,)),
    "phi3": Family(rotary_dim=4),
}
TOLERANCE = 1e-6
BATCH, LENGTH, STEPS = 4, 9, 2


def shard(model: Transformer) -> Transformer:
    for name in model.grouping_plan():  # each block a unit, the root last
        fully_shard(model.get_submodule(name))
    fully_shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def shard_from_meta(args: ModelArgs) -> Transformer:
    with torch.device("meta"):
        model = Transformer(args)
    shard(model).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.init_weights()
    return model


WRAPPERS = {
    "ddp": lambda args: DistributedDataParallel(tiny_model(args)),
    "fsdp": lambda args: shard(tiny_model(args)),
    "fsdp_from_meta": shard_from_meta,
}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def loss_of(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows, positions and heads: every rank has as many, so means may be averaged."""
    logits = model(tokens, return_all_heads=True)
    return F.cross_entropy(logits.flatten(0, 2), targets.flatten())


def compare(case: str) -> None:
    how, _, family = case.partition(":")
    args = tiny_args(n_kv_heads=2, family=FAMILIES[family or "llama"])
    wrapper = WRAPPERS[how]
    rank, world = dist.get_rank(), dist.get_world_size()
    wrapped, reference = wrapper(args), tiny_model(args, seed=7)
    inner = wrapped.module if how == "ddp" else wrapped
    reference.load_state_dict({name: whole(w).clone() for name, w in inner.state_dict().items()})
    pairs = [
        (name, one, other)
        for (name, one), (same, other) in zip(
            reference.named_parameters(), inner.named_parameters(), strict=True
        )
        if name == same
    ]
    assert len(pairs) == len(list(reference.parameters()))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (reference, wrapped)]
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    worst = {"loss": 0.0, "gradient": 0.0, "weight": 0.0}
    for step in range(STEPS):
        tokens = random_tokens(args, BATCH, LENGTH, seed=step)
        shape = (BATCH, LENGTH * args.n_future_tokens)
        targets = random_tokens(args, *shape, seed=100 + step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        expected = loss_of(reference, tokens, targets)
        expected.backward()
        loss = loss_of(wrapped, tokens[mine], targets[mine])
        loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        worst["loss"] = max(worst["loss"], abs(float(mean / world - expected.detach())))
        for name, one, other in pairs:
            assert other.grad is not None, name
            assert one.grad.any(), name
            error = float((whole(other.grad) - one.grad).abs().max())
            worst["gradient"] = max(worst["gradient"], error)
        for optimizer in optimizers:
            optimizer.step()
    for _, one, other in pairs:
        error = float((whole(other) - one).detach().abs().max())
        worst["weight"] = max(worst["weight"], error)
    assert all(error < TOLERANCE for error in worst.values()), worst  # a NaN fails too
    errors = torch.tensor(list(worst.values()))
    dist.all_reduce(errors, dist.ReduceOp.MAX)
    if rank == 0:
        found = " ".join(f"{name}={error:.1e}" for name, error in zip(worst, errors, strict=True))
        print(f"{case} agrees on {world} ranks: {found}", flush=True)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for name in sys.argv[1:]:
        compare(name)
    end_worker()
