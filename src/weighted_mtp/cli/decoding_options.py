"""Decoding options, shared by `generate` and `evaluate`."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from weighted_mtp.cli.arguments.decoding import ALL, AUTO, NONE, OFF, STORED
from weighted_mtp.core.errors import UserError
from weighted_mtp.decoding import LossyTypical, Sampling, Speculation
from weighted_mtp.models.meta_mtp.checkpoints import inspect_checkpoint

_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}


@dataclass(frozen=True)
class DecodingOptions:
    """How to decode.

    Attributes:
        max_new_tokens: None for the default of the command.
        stops: strings that end a text, besides those of the prompt style.
        speculation: None for one token per forward pass.
    """

    max_new_tokens: int | None
    sampling: Sampling
    stops: tuple[str, ...]
    speculation: Speculation | None


def decoding_options(args: argparse.Namespace) -> DecodingOptions:
    """Return the options as given.

    Raises:
        UserError: a value is out of range, or an option has no effect.
    """
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise UserError("--max-new-tokens must be at least 1")
    try:
        sampling = Sampling(
            args.temperature,
            args.top_p,
            args.seed,
            args.top_k,
            args.min_p,
            args.repetition_penalty,
            args.ties,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    if not all(args.stop):
        raise UserError("--stop is empty, which would end every text at once; give a string")
    stops = tuple(_unescaped(text) for text in args.stop)
    return DecodingOptions(args.max_new_tokens, sampling, stops, speculation_option(args))


def check_heads(args: argparse.Namespace, model: Path) -> None:
    """Reject an explicit `--speculate` or `--tree` for a model without extra heads.

    Raises:
        UserError: the model has only the next-token head.
    """
    chain = args.tree in (None, AUTO, NONE)
    if args.speculate == OFF or (args.speculate == AUTO and chain):
        return
    option = "--speculate" if chain else "--tree"
    if inspect_checkpoint(model).args.n_future_tokens == 1:
        raise UserError(
            f"{option}: {model} has only the next-token head and no heads to draft with; remove "
            f"{option}, or add heads (weighted-mtp convert --add-heads N) and train them"
        )


def speculation_option(args: argparse.Namespace) -> Speculation | None:
    """Return how to draft as given; None for plain decoding.

    Raises:
        UserError: a value is out of range, or an option has no effect.
    """
    if args.speculate == OFF:
        for name in ("adaptive", "lossy_typical", "tree"):
            if getattr(args, name):
                raise UserError(f"--{name.replace('_', '-')} does not go with --no-speculate")
        if args.draft_vocabulary == NONE:
            raise UserError("--draft-vocabulary does not go with --no-speculate")
        return None
    heads = None
    if args.speculate not in (AUTO, ALL):
        if not re.fullmatch(r"[+-]?\d+", args.speculate):
            raise UserError(
                f"--speculate {args.speculate!r}: give a number of heads, or nothing for all; "
                "put the checkpoint before it"
            )
        heads = int(args.speculate)
        if heads < 1:
            raise UserError(f"--speculate {heads}: K must be at least 1")
    lossy = LossyTypical() if args.lossy_typical else None
    adaptive = args.adaptive or args.speculate == AUTO
    try:
        return Speculation(
            heads,
            adaptive,
            lossy_typical=lossy,
            draft_vocabulary=args.draft_vocabulary == STORED,
            tree=_tree(args),
        )
    except ValueError as error:
        raise UserError(f"--tree: {error}") from error


def _tree(args: argparse.Namespace) -> int | Literal["auto"] | None:
    given = args.tree
    if given is None:  # a chain was asked for, or a rule that trees do not know
        return "auto" if args.speculate == AUTO and not args.lossy_typical else None
    if given == NONE:
        return None
    if given == AUTO:
        return "auto"
    if not re.fullmatch(r"[+-]?\d+", given):
        raise UserError(
            f"--tree {given!r}: give the most tokens of a pass, from 2 on, auto or none"
        )
    return int(given)


def _unescaped(text: str) -> str:
    """Replace \\n, \\t and \\\\, since newlines are awkward to type in a shell."""
    return re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match.group()], text)
