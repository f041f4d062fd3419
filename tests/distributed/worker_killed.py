"""Started by torchrun: `weighted-mtp train` of which one process meets a signal.

    worker_killed.py SIGNAL RANK STEP DELAY ARGUMENT …

DELAY seconds after it began STEP, process RANK sends itself the signal, or torchrun if RANK is
"torchrun"; only in the first attempt, if torchrun starts it again. STEP 0 is the start, before
there is a trainer. Steps are slow, or the training would be over too soon.
"""

import os
import sys
import threading
import time

from weighted_mtp.cli.main import main
from weighted_mtp.pipelines.training.trainer import Trainer

SLOW_STEP = 0.1  # seconds


def meet(send: threading.Timer, step: int) -> None:
    train, create = Trainer.train_step, Trainer.__init__

    def train_step(self):
        if self.step + 1 == step:
            send.start()
        time.sleep(SLOW_STEP)
        return train(self)

    def init(self, *args, **more):
        if step == 0:
            send.start()
            send.join()
        create(self, *args, **more)

    Trainer.train_step, Trainer.__init__ = train_step, init


if __name__ == "__main__":
    number, whom, step, delay = sys.argv[1:5]
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    mine = os.environ["RANK"] == whom.replace("torchrun", "0")
    pid = os.getppid() if whom == "torchrun" else os.getpid()
    meet(
        threading.Timer(float(delay), os.kill, (pid, int(number) if mine and first else 0)),
        int(step),
    )
    sys.exit(main(sys.argv[5:]))
