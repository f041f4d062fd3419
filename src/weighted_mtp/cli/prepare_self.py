"""`weighted-mtp prepare self`: a model's own texts as training rows."""

from __future__ import annotations

import argparse

from weighted_mtp.cli.arguments.prepare_models import MAX_NEW_TOKENS
from weighted_mtp.cli.decoding_options import check_heads, decoding_options
from weighted_mtp.cli.generate_prompts import prompts_of_file
from weighted_mtp.cli.prepare_models import print_training, settings_of_heads
from weighted_mtp.core.errors import UserError, did_you_mean
from weighted_mtp.core.model_folder import find_model
from weighted_mtp.data.templates import TEMPLATE_NAMES
from weighted_mtp.models.meta_mtp.checkpoints import inspect_checkpoint
from weighted_mtp.pipelines.generating.rows import Question, named_counts
from weighted_mtp.pipelines.generating.self_rows import (
    SelfRequest,
    SelfRows,
    write_self_rows,
)

_MAX_LENGTH = 2048  # data.max_length of the recipe
_VOCABULARY = 8192  # as docs/faster.md proposes


def run_self(args: argparse.Namespace) -> int:
    """Write the rows and print the command that trains with them."""
    options = decoding_options(args)
    for name in ("n", "n_samples", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    if args.n_samples > 1 and options.sampling.greedy:
        raise UserError("--n-samples: greedy texts are identical; set --temperature above 0")
    if args.held_out and args.prompts is not None:
        raise UserError(
            "--held-out chooses among documents of the standard library; it does not "
            "go with --prompts"
        )
    if args.template is not None and args.template not in TEMPLATE_NAMES:
        raise UserError(
            f"--template {args.template!r}{did_you_mean(args.template, TEMPLATE_NAMES)}: choose "
            f"one of {', '.join(TEMPLATE_NAMES)}"
        )
    find_model(args.model)  # first, for a clear error where there is no model
    check_heads(args, args.model)
    written = write_self_rows(
        SelfRequest(
            args.model,
            args.out,
            _questions(args.prompts),
            args.n,
            args.held_out,
            args.template,
            options.max_new_tokens or MAX_NEW_TOKENS,
            options.sampling,
            options.speculation,
            options.stops,
            args.n_samples,
            args.batch_size,
            args.device,
            args.dtype,
            args.overwrite,
        )
    )
    print(f"{_summary(written)}: {args.out}{' (finished earlier)' if written.already else ''}")
    shape = inspect_checkpoint(args.model).args
    settings = settings_of_heads(args.model, shape, args.out)
    settings.append(f"data.template={written.template}")
    if shape.vocab_size > _VOCABULARY:  # most of a step's work, for tokens that hardly occur
        settings.append(f"objective.distil.vocabulary={_VOCABULARY}")
    max_length = max(written.figures["longest"], min(_MAX_LENGTH, shape.max_positions))
    if max_length != _MAX_LENGTH:
        settings.append(f"data.max_length={max_length}")
    print_training("heads", settings)
    return 0


def _questions(name: str | None) -> list[Question] | None:
    """The prompts of a file; None if none is named."""
    if name is None:
        return None
    found = [
        Question(prompt.text, prompt.input, prompt.messages)
        for prompt in prompts_of_file(name, conversations=True)
    ]
    if not found:
        raise UserError(f"{name}: contains no prompt")
    return found


def _summary(written: SelfRows) -> str:
    """One line: rows, tokens, how they ended, and what was cut or dropped."""
    figures = written.figures
    parts = [
        f"{figures['rows']:,} rows",
        f"{figures['tokens']:,} tokens",
        f"{figures['ended']:,} ended by themselves",
    ]
    if written.seconds:
        parts.insert(2, f"{written.tokens / written.seconds:,.0f} tokens/s")
    for what in ("cut", "dropped"):
        if figures[what]:
            parts.append(f"{what}: {named_counts(figures[what])}")
    return ", ".join(parts)
