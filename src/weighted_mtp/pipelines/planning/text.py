"""A plan as text for a person, and as a record for a program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from weighted_mtp.core.files import command_line, set_options
from weighted_mtp.pipelines.planning.communication import Kind, Step
from weighted_mtp.pipelines.planning.memory_inputs import Checkpointing
from weighted_mtp.pipelines.planning.plan import CHECKPOINTING, SHARE, Choice, Plan


def plan_lines(found: Plan, sizes: Sequence[float]) -> list[str]:
    """Describe what the recipe's own micro-batch takes, the largest that fits, and what to set.

    Args:
        sizes: of GPUs, in GiB.
    """
    recipe, counts = found.recipe, found.counts
    trained = "all" if counts.trained == counts.parameters else _number(counts.trained)
    rows = _plural(recipe.training.batch_size, "row")
    lines = [
        f"{_number(counts.parameters)} parameters, {trained} trained; "
        f"n = {counts.args.n_future_tokens}, {recipe.objective.name}, "
        f"{recipe.runtime.compute_dtype}",
        f"{_plural(found.gpus, 'GPU')}; a step of {rows} of at most {recipe.data.max_length} "
        "tokens",
        "",
        f"GiB on each GPU at peak, in micro-batches of {_plural(found.own, 'row')}:",
        *_parts_table(found),
        "",
        f"Rows in the largest micro-batch that fits ({'/'.join(CHECKPOINTING)} checkpointing):",
        *_fit_table(found, sizes),
        "",
        *_traffic_lines(found),
        "To try first:",
        *(_advice(found, size) for size in sizes),
        "",
        f"What fits leaves {1 - SHARE:.0%} free for CUDA, NCCL and fragments.",
    ]
    lean = next((choice.changes for choice in found.choices if choice.lean), ())
    if lean:
        lines.append(f"lean is {_set(change for change in lean if '.fsdp.' in change)}")
    return lines


def _parts_table(found: Plan) -> list[str]:
    own = [choice for choice in found.choices if choice.micro_batch_size == found.own]
    shown = [
        name
        for name in own[0].memory.parts
        if name != "reference" or any(choice.memory.reference for choice in own)
    ]
    rows = [["", "checkpointing", *shown, "total", "when"]]
    for choice in own:
        sizes = [*(choice.memory.parts[name] for name in shown), choice.memory.total]
        numbers = map(_gib, sizes)
        rows.append([choice.way, choice.checkpointing, *numbers, choice.memory.moment])
    return _aligned(rows, left=(0, 1, len(rows[0]) - 1))


def _fit_table(found: Plan, sizes: Sequence[float]) -> list[str]:
    rows = [["", *(f"{size:g} GiB" for size in sizes)]]
    for way in dict.fromkeys(choice.way for choice in found.choices):
        largest = [
            [_largest(found, way, checkpointing, size) for checkpointing in CHECKPOINTING]
            for size in sizes
        ]
        rows.append([way, *("/".join(f"{rows or '–'}" for rows in cell) for cell in largest)])
    return _aligned(rows, left=(0,))


def _traffic_lines(found: Plan) -> list[str]:
    """What a step sends, for each way to shard; nothing on one GPU."""
    own = [choice for choice in found.choices if choice.micro_batch_size == found.own]
    steps = {choice.way: choice.step for choice in own if choice.step.collectives}
    if not steps:
        return []
    kinds: tuple[Kind, ...] = ("all-gather", "reduce-scatter", "all-reduce")
    columns = ("into a node", "ms sent", "ms computed", "ms exposed", "hidden above")
    rows = [["", *kinds, *columns]]
    for way, step in steps.items():
        sizes = [*(step.received(kind) for kind in kinds), step.into_node]
        times = (step.communication, step.compute, step.exposed)
        tokens = f"{_tokens(step.hides_above)} tokens"
        rows.append([way, *map(_gb, sizes), *(f"{1e3 * time:,.0f}" for time in times), tokens])
    step = next(iter(steps.values()))
    what = step.hardware
    return [
        "On paper, one step: GB (1e9 bytes) that each GPU receives and each node, and times",
        *_aligned(rows, left=(0,)),
        f"at {what.flops / 1e12:g} TFLOP/s × {what.utilisation:.0%} for model FLOPs, NVLink "
        f"{what.nvlink / 1e9:g} GB/s, network {what.network / 1e9:g} GB/s, each per GPU and way,",
        f"nodes of {step.per_node}. A micro-batch is {step.tokens:,} tokens on each GPU; one above "
        "`hidden above` hides",
        "all but the gather before its first block and the reduction after its last.",
        "",
    ]


def _tokens(count: float) -> str:
    """Three significant digits of large numbers."""
    rounding = -max(0, len(str(int(count))) - 3)
    return f"{round(count, rounding):,.0f}"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f}"


def _largest(found: Plan, way: str, checkpointing: Checkpointing, size: float) -> int:
    """Rows in a micro-batch; 0 if not even one fits."""
    wanted = (way, checkpointing)
    return max(
        (
            choice.micro_batch_size
            for choice in found.choices
            if (choice.way, choice.checkpointing) == wanted and choice.fits(size)
        ),
        default=0,
    )


def _advice(found: Plan, size: float) -> str:
    best = found.best(size)
    if best is not None:
        changes = _set(best.changes)
        return f"{size:g} GiB: {changes or 'the recipe as it is'} ({_gib(best.memory.total)} GiB)"
    least = found.smallest()
    how = "no" if least.checkpointing == "none" else least.checkpointing
    words = f"{least.way}, {how} checkpointing, {_plural(least.micro_batch_size, 'row')}"
    return (
        f"{size:g} GiB: nothing fits; the least is {_gib(least.memory.total)} GiB "
        f"({words}). Try {_or(_remedies(found, least))}"
    )


def _remedies(found: Plan, least: Choice) -> list[str]:
    """What takes less, in the order in which it costs least."""
    recipe = found.recipe
    training, runtime = recipe.training, recipe.runtime
    if training.adapt == "full":
        remedies = [f"adapters ({_set(['training.adapt=lora'])})"]
        if found.counts.predicting > 1:
            remedies.append(f"extra heads alone ({_set(['training.adapt=heads'])})")
    elif training.adapt == "lora" and training.lora.heads == "full" and found.counts.heads > 1:
        remedies = [f"adapters of the heads too ({_set(['training.lora.heads=lora'])})"]
    else:
        remedies = []
    sharded = runtime.parallel in ("fsdp", "hsdp")
    if training.optimizer == "adamw" and not sharded:
        remedies.append(f"8-bit optimizer state ({_set(['training.optimizer=adamw_8bit'])})")
    if least.memory.reference:
        remedies.append("stored losses (weighted-mtp prepare reference-losses)")
    if not runtime.fsdp.cpu_offload:
        needed = [] if sharded else ["runtime.parallel=fsdp"]
        remedies.append(_set([*needed, "runtime.fsdp.cpu_offload=true"]))
    return [*remedies, "more GPUs", "shorter rows"]


def _or(words: Sequence[str]) -> str:
    """a, b or c."""
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _set(changes: Iterable[str]) -> str:
    """The `--set` options that make these changes, quoted for a shell."""
    return command_line(*set_options(changes))


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _number(count: int) -> str:
    """6.74 billion, 2.27 million, 4,097."""
    for scale, word in ((1e9, "billion"), (1e6, "million")):
        if count >= scale:
            return f"{count / scale:.2f} {word}"
    return f"{count:,}"


def _gib(size: int) -> str:
    """One decimal, or two significant ones down to a MiB."""
    gib = size / 2**30
    return f"{gib:.2g}" if 0.001 <= gib < 1 else f"{gib:.1f}"


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Align columns; those in `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def step_record(step: Step) -> dict[str, float]:
    """What a step sends and computes, as JSON can hold it: bytes, seconds, FLOPs of one GPU."""
    return {
        "all_gathered": step.received("all-gather"),
        "reduce_scattered": step.received("reduce-scatter"),
        "all_reduced": step.received("all-reduce"),
        "into_node": step.into_node,
        "flops": step.flops,
        "tokens": step.tokens * step.micro_batches,
        "compute_s": step.compute,
        "communication_s": step.communication,
        "exposed_s": step.exposed,
        "hides_above_tokens": step.hides_above,
        "tokens_per_second": step.tokens_per_second,
    }


def plan_record(found: Plan, sizes: Sequence[float]) -> dict[str, Any]:
    """Every choice, as JSON can hold it; sizes in bytes."""
    choices = [
        {
            "parallel": choice.mode,
            "lean": choice.lean,
            "activation_checkpointing": choice.checkpointing,
            "micro_batch_size": choice.micro_batch_size,
            "set": list(choice.changes),
            "total": choice.memory.total,
            "moment": choice.memory.moment,
            **choice.memory.parts,
            "fits": [size for size in sizes if choice.fits(size)],
            "step": step_record(choice.step),
        }
        for choice in found.choices
    ]
    best = {f"{size:g}": found.best(size) for size in sizes}
    return {
        "parameters": found.counts.parameters,
        "trained": found.counts.trained,
        "gpus": found.gpus,
        "share": SHARE,
        "hardware": asdict(found.choices[0].step.hardware),
        "choices": choices,
        "best": {
            size: None if choice is None else list(choice.changes) for size, choice in best.items()
        },
    }
