"""Where a recipe runs: device, processes, number formats."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from weighted_mtp.core.config.section import PositiveInt, Section, Seed


class FSDPConfig(Section):
    """Sharding settings of `runtime.parallel` fsdp and hsdp; they change results only by rounding.

    Attributes:
        param_dtype: format in which block weights are gathered and used; each rank's own shard is
            float32. bfloat16 halves communication and requires `runtime.compute_dtype` bfloat16,
            which `auto` then is.
        reduce_dtype: format in which gradients are summed over ranks and, with `reduce_gradients`
            step, over micro-batches; use float32 where there are many.
        reshard_after_forward: free a block's gathered weights after its forward pass and gather
            them again for backward; false uses more memory and less communication.
        reduce_gradients: once per step, which keeps a full gradient on every rank, or after every
            micro-batch, which keeps only the rank's shard.
        cpu_offload: keep weights, gradients and optimizer state in host memory; acts on a single
            GPU too.
        shard_size: ranks that share one copy of the weights with hsdp; null for the ranks of a
            node.
    """

    param_dtype: Literal["float32", "bfloat16"] = "float32"
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    reshard_after_forward: bool = True
    reduce_gradients: Literal["step", "micro_batch"] = "step"
    cpu_offload: bool = False
    shard_size: PositiveInt | None = None


class RuntimeConfig(Section):
    """Device, processes and number formats.

    Attributes:
        device: `auto` (CUDA, else MPS, else CPU), `cpu`, `mps`, `cuda` or `cuda:N`.
        parallel: how several processes hold the model: ddp replicates it, fsdp shards it, hsdp
            shards it within groups of `runtime.fsdp.shard_size` ranks. Unused by a single process,
            but for `runtime.fsdp.cpu_offload`.
        timeout_minutes: minutes a process waits for the others before it stops.
        compute_dtype: number format of forward and backward passes. `auto` is bfloat16 where the
            device multiplies it in hardware, else float32, which such a CPU multiplies 50 to 100
            times faster; the run keeps what was chosen.
        seed: seed of initial weights, row order and controls.
        threads: CPU threads per process; null for the default of PyTorch.
        compile: compile transformer blocks with `torch.compile`.
        tf32: on CUDA, multiply float32 matrices in TF32 (10-bit mantissa), several times faster.
        deterministic: use only kernels that give the same bits every time, and fail where there
            are none. Slower on CUDA; CPU runs are repeatable anyway.
    """

    device: str = "auto"
    parallel: Literal["none", "ddp", "fsdp", "hsdp"] = "ddp"
    fsdp: FSDPConfig = FSDPConfig()
    timeout_minutes: PositiveFloat = 10.0
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: Seed = 0
    threads: Annotated[PositiveInt, Field(le=4096)] | None = None
    compile: bool = False
    tf32: bool = True
    deterministic: bool = False

    @property
    def offloads(self) -> bool:
        """Whether FSDP keeps what it can in the host's memory; for that it runs on one process
        too."""
        return self.parallel in ("fsdp", "hsdp") and self.fsdp.cpu_offload

    @model_validator(mode="after")
    def _one_format(self) -> RuntimeConfig:
        if self.fsdp.param_dtype == "bfloat16" and self.compute_dtype == "float32":
            raise ValueError(
                "runtime.fsdp.param_dtype bfloat16 needs runtime.compute_dtype bfloat16"
            )
        return self
