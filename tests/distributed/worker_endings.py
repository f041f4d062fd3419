"""Started by torchrun: two processes form a group, train a step, and leave it, again and again.

worker_endings.py TIMES
"""

import os
import sys

import torch
from torch import nn

from weighted_mtp.runtime import distributed
from weighted_mtp.runtime.ddp import Replicated
from weighted_mtp.runtime.environment import environment


def train_and_leave() -> None:
    with environment("cpu", timeout_minutes=1) as env:
        parallel = Replicated(nn.Linear(4, 4), env.device)
        parallel.backward(parallel.module(torch.ones(2, 4)).sum())
        for _ in range(3):
            distributed.all_reduce_sum(torch.ones(3))


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        train_and_leave()
    print("left", flush=True)
    os._exit(0)  # see `end_worker`
