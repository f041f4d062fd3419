"""Where a recipe runs: device, processes, number formats."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from weighted_mtp.core.config.section import PositiveInt, Section, Seed


class FSDPConfig(Section):
    """How `runtime.parallel` fsdp and hsdp shard the model. None of it changes what is learnt, but
    for rounding where a format is bfloat16.

    Attributes:
        param_dtype: of the blocks' weights as they are gathered and used; the part that each
            process keeps is float32. bfloat16 halves what is sent; compute_dtype must be it too.
        reduce_dtype: of gradients as they are summed over processes. With `reduce_gradients: step`
            the micro-batches of a step are added in it too, so use float32 where there are many.
        reshard_after_forward: let a block's weights go after its forward pass and gather them
            again for its backward pass; False takes more memory and sends less.
        reduce_gradients: once a step, for which every process keeps a whole gradient while it has
            several micro-batches; or after each of them, which keeps its part alone.
        cpu_offload: weights, gradients and optimizer in the host's memory.
        shard_size: under hsdp, how many processes share one copy of the weights; None: those of a
            node.
    """

    param_dtype: Literal["float32", "bfloat16"] = "float32"
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    reshard_after_forward: bool = True
    reduce_gradients: Literal["step", "micro_batch"] = "step"
    cpu_offload: bool = False
    shard_size: PositiveInt | None = None


class RuntimeConfig(Section):
    """Where it runs.

    Attributes:
        parallel: how several processes hold the model: ddp gives each a whole copy, fsdp a part,
            hsdp each node (or `fsdp.shard_size` processes) a copy in parts. One process has it all.
        timeout_minutes: how long a process waits for the others before it gives up.
        tf32: on CUDA, multiply float32 matrices with ten bits of mantissa, several times faster.
        deterministic: only kernels that give the same bits each time; what has none is an error.
            Slower on CUDA; on the CPU a run is repeatable anyway.
    """

    device: str = "auto"
    parallel: Literal["none", "ddp", "fsdp", "hsdp"] = "ddp"
    fsdp: FSDPConfig = FSDPConfig()
    timeout_minutes: PositiveFloat = 10.0
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    seed: Seed = 0
    threads: Annotated[PositiveInt, Field(le=4096)] | None = None
    compile: bool = False
    tf32: bool = True
    deterministic: bool = False

    @model_validator(mode="after")
    def _one_format(self) -> RuntimeConfig:
        if self.fsdp.param_dtype == "bfloat16" and self.compute_dtype != "bfloat16":
            raise ValueError(
                "runtime.fsdp.param_dtype bfloat16 needs runtime.compute_dtype bfloat16"
            )
        return self
