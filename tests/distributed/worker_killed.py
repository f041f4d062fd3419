"""Started by torchrun: `weighted-mtp train` of which one process meets a signal.

    worker_killed.py SIGNAL RANK STEP DELAY ARGUMENT …

DELAY seconds after it began STEP, process RANK sends itself the signal; only in the first attempt,
if torchrun starts it again. Steps are slow, or the training would be over too soon.
"""

import os
import sys
import threading
import time

from weighted_mtp.cli.main import main
from weighted_mtp.pipelines.trainer import Trainer

SLOW_STEP = 0.1  # seconds


def meet(number: int, step: int, delay: float) -> None:
    original = Trainer.train_step

    def train_step(self):
        if self.step + 1 == step:
            threading.Timer(delay, os.kill, (os.getpid(), number)).start()
        time.sleep(SLOW_STEP)
        return original(self)

    Trainer.train_step = train_step


if __name__ == "__main__":
    number, rank, step = map(int, sys.argv[1:4])
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    meet(number if rank == int(os.environ["RANK"]) and first else 0, step, float(sys.argv[4]))
    sys.exit(main(sys.argv[5:]))
