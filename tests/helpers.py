"""What several test files need: tiny models, tokens for them, and torchrun as a subprocess."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.runtime import distributed

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "weighted_mtp"


def error(value: Tensor, exact: Tensor) -> float:
    """Of all numbers together, relative."""
    return float((value.detach().double() - exact.detach()).norm() / exact.detach().norm())


def tiny_args(**changes) -> ModelArgs:
    """Two trunk blocks and three heads, small enough for hundreds of forward passes a second."""
    shape = {
        "dim": 32,
        "n_layers": 5,
        "n_heads": 4,
        "vocab_size": 37,
        "multiple_of": 8,
        "n_future_tokens": 3,
        "max_batch_size": 4,
        "max_seq_len": 16,
    }
    return ModelArgs(**{**shape, **changes})


def tiny_model(
    args: ModelArgs | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Transformer:
    """A random model whose every weight matters: attention is far from uniform, norms are not 1."""
    model = Transformer(args or tiny_args()).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.uniform_(0.5, 1.5, generator=generator)
            else:
                weight.normal_(std=0.15, generator=generator)
    return model


def random_tokens(args: ModelArgs, batch: int, length: int, seed: int = 1) -> Tensor:
    """`[batch, length]` token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(args.vocab_size, (batch, length), generator=generator)


def torchrun(script: Path | str, *args: str, nproc: int = 2, timeout: float = 120) -> str:
    """Run `script` on `nproc` processes, one thread each, no GPU; return all they printed.

    A failure or a timeout is an AssertionError that carries their output.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(nproc), str(script), *args]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as agent:
        try:
            output, _ = agent.communicate(timeout=timeout)
            ended = f"exit status {agent.returncode}"
        except subprocess.TimeoutExpired:
            agent.send_signal(signal.SIGTERM)  # the agent then ends its workers; SIGKILL would not
            output, _ = agent.communicate()
            ended = f"no end within {timeout} s"
    assert agent.returncode == 0, f"{' '.join(command)}: {ended}\n{output}"
    return output


def end_worker() -> NoReturn:
    """Last call of a script that `torchrun` starts: leave the group, and the process at once.

    gloo's threads may still hold the last collective's tensors, and abort (SIGABRT, now and then)
    when they let go of them in an interpreter that is shutting down (pytorch/pytorch#179291).
    """
    dist.barrier()
    distributed.stop()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
