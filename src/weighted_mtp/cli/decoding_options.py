"""Decoding options, shared by `generate` and `evaluate`."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from weighted_mtp.core.errors import UserError
from weighted_mtp.decoding import LossyTypical, Sampling, Speculation
from weighted_mtp.models.meta_mtp.checkpoints import inspect_checkpoint

_AUTO: Literal["auto"] = "auto"
_ALL, _OFF = "all", "off"
_STORED, _NONE = "stored", "none"
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


def add_decoding_arguments(
    parser: argparse.ArgumentParser,
    new_tokens: int | None,
    new_tokens_help: str = "",
    lossy: bool = True,
) -> None:
    """Add the options to a command.

    Args:
        new_tokens: default of the command.
        new_tokens_help: how its help names the default.
        lossy: offer `--lossy-typical`.
    """
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=new_tokens,
        metavar="N",
        help=f"most tokens to generate per text ({new_tokens_help or f'default {new_tokens}'})",
    )
    group.add_argument(
        "--temperature", type=float, default=0.0, help="sampling temperature; 0 (default) is greedy"
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the smallest set of tokens of total probability P",
    )
    group.add_argument(
        "--top-k", type=int, metavar="K", help="sample from the K most likely tokens"
    )
    group.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="drop tokens less likely than P times the most likely one",
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="penalty on tokens already used (default 1: none)",
    )
    group.add_argument("--seed", type=int, default=0, help="seed of the sampling (default 0)")
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end the text before this string; \\n is a newline, \\t a tab, \\\\ a backslash; "
        "repeatable",
    )
    add_speculation_arguments(group)
    group.add_argument(
        "--tree",
        metavar="N",
        help="draft a tree of up to N tokens for each forward pass instead of a chain, one text at "
        "a time (auto: as many as pay on this machine, which is measured first)",
    )
    if lossy:
        group.add_argument(
            "--lossy-typical",
            action="store_true",
            help="LOSSY: accept drafts that are likely enough (Medusa's typical acceptance); "
            "faster, but changes the distribution of the texts",
        )
    parser.set_defaults(lossy_typical=False)
    group.add_argument(
        "--ties",
        default="auto",
        metavar="RULE",
        help="greedy near-ties: exact (recompute, so that the text depends on the model alone), "
        "fast, or auto (default: exact in float32, fast in bfloat16)",
    )


def add_speculation_arguments(group: argparse._ActionsContainer) -> None:
    """Add the options that choose how many tokens are drafted."""
    group.add_argument(
        "--speculate",
        nargs="?",
        const=_ALL,
        default=_AUTO,
        metavar="K",
        help="let the extra heads draft K tokens (no K: one per head) for the next forward pass to "
        "verify; greedy texts stay the same, sampled ones keep their distribution (default: all "
        "heads with --adaptive)",
    )
    group.add_argument(
        "--no-speculate",
        dest="speculate",
        action="store_const",
        const=_OFF,
        help="generate one token per forward pass",
    )
    group.add_argument(
        "--adaptive",
        action="store_true",
        help="draft fewer tokens where drafts are rejected",
    )
    group.add_argument(
        "--draft-vocabulary",
        choices=[_STORED, _NONE],
        default=_STORED,
        help="tokens that the heads may draft: those stored with the model (default; all if none "
        "are), or none for all; texts stay the same",
    )


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
    if args.speculate == _OFF or (args.speculate == _AUTO and args.tree is None):
        return
    option = "--speculate" if args.tree is None else "--tree"
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
    if args.speculate == _OFF:
        for name in ("adaptive", "lossy_typical", "tree"):
            if getattr(args, name):
                raise UserError(f"--{name.replace('_', '-')} does not go with --no-speculate")
        if args.draft_vocabulary == _NONE:
            raise UserError("--draft-vocabulary does not go with --no-speculate")
        return None
    heads = None
    if args.speculate not in (_AUTO, _ALL):
        if not re.fullmatch(r"[+-]?\d+", args.speculate):
            raise UserError(
                f"--speculate {args.speculate!r}: give a number of heads, or nothing for all; "
                "put the checkpoint before it"
            )
        heads = int(args.speculate)
        if heads < 1:
            raise UserError(f"--speculate {heads}: K must be at least 1")
    lossy = LossyTypical() if args.lossy_typical else None
    adaptive = args.adaptive or args.speculate == _AUTO
    try:
        return Speculation(
            heads,
            adaptive,
            lossy_typical=lossy,
            draft_vocabulary=args.draft_vocabulary == _STORED,
            tree=_tree(args.tree),
        )
    except ValueError as error:
        raise UserError(f"--tree: {error}") from error


def _tree(given: str | None) -> int | Literal["auto"] | None:
    if given is None or given == _AUTO:
        return given
    if not re.fullmatch(r"[+-]?\d+", given):
        raise UserError(f"--tree {given!r}: give auto, or the most tokens of a pass, from 2 on")
    return int(given)


def _unescaped(text: str) -> str:
    """Replace \\n, \\t and \\\\, since newlines are awkward to type in a shell."""
    return re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match.group()], text)
