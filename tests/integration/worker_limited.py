"""Started by a test: `weighted-mtp train` with so many bytes for its steps, and no more.

worker_limited.py BYTES ARGUMENT …
"""

import importlib
import resource
import sys

import psutil

from weighted_mtp.cli.main import main
from weighted_mtp.pipelines.training.trainer import Trainer


def limit(more: int) -> None:
    """Once the model and its optimizer are there."""
    importlib.import_module("torch._dynamo")  # an optimizer's first step would
    fit = Trainer.fit

    def limited(self):
        taken = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (taken + more, resource.RLIM_INFINITY))
        return fit(self)

    Trainer.fit = limited


if __name__ == "__main__":
    limit(int(sys.argv[1]))
    sys.exit(main(["train", *sys.argv[2:]]))
