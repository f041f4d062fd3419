"""The model under FSDP2 by hand, without our trainer.

    python examples/fsdp_by_hand.py
    torchrun --nproc_per_node 2 examples/fsdp_by_hand.py

The wrapped module is called once a micro-batch and returns the loss; each unit of `grouping_plan()`
is sharded by itself; denominators are summed over the processes.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import weighted_mtp as wm

HEADS = 3


class WithLoss(nn.Module):
    """Trunk, heads, unembedding and loss in one forward, so that FSDP sees one of each."""

    def __init__(self, model: wm.Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        states = self.model.head_states(tokens, return_all_heads=True)
        return wm.mtp_loss(states, self.model.output.weight, targets, counts).loss


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args(arguments)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else "cpu"
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if cuda else "gloo", **alone)
    world = dist.get_world_size()
    mesh = init_device_mesh("cuda" if cuda else "cpu", (world,))

    shape = wm.ModelArgs(dim=32, n_layers=4, n_heads=2, vocab_size=64, n_future_tokens=HEADS)
    torch.manual_seed(0)
    model = wm.Transformer(shape)  # large ones: on the meta device, filled after sharding
    model.init_weights()
    wrapped = WithLoss(model.to(device))
    for name in model.grouping_plan():
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(wrapped, mesh=mesh)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)

    generator = torch.Generator().manual_seed(dist.get_rank())  # other rows on every process
    tokens = torch.randint(64, (4, 16), generator=generator).to(device)
    targets = wm.shift_labels(tokens, HEADS)
    counts = wm.count_targets(targets)
    dist.all_reduce(counts)
    losses = []
    for step in range(args.steps):
        loss = wrapped(tokens, targets, counts)
        (loss * world).backward()  # FSDP averages gradients; the loss is already a share of the sum
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(loss.detach())
        losses.append(loss.item())
        if dist.get_rank() == 0:
            print(f"step {step}: loss {losses[-1]:.3f}")
    dist.destroy_process_group()
    return losses


if __name__ == "__main__":
    main()
