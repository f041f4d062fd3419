"""`weighted-mtp generate`: continue a prompt with a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from weighted_mtp.core.device import resolve_device
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.collators import TEMPLATES, AlpacaCollator
from weighted_mtp.data.tokenizers import check_vocabulary, load_tokenizer
from weighted_mtp.decoding import Sampling, generate
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.pipelines.checkpoint_utils import resolve_model_dir
from weighted_mtp.pipelines.run_evaluation import template_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `generate`."""
    parser.add_argument("checkpoint", type=Path, help="a run, a checkpoint or a model directory")
    parser.add_argument(
        "--prompt", required=True, help="an instruction (with --template raw: any text)"
    )
    parser.add_argument(
        "--template",
        choices=[*TEMPLATES, "raw"],
        help="prompt template (default: the one of the run; raw continues the text as it is)",
    )
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: as stored)")


def run(args: argparse.Namespace) -> int:
    """Print the continuation."""
    if args.max_new_tokens < 1:
        raise UserError("--max-new-tokens must be at least 1")
    model_dir = resolve_model_dir(args.checkpoint)
    tokenizer = load_tokenizer(model_dir)
    adapter = MetaLlamaMTPAdapter.from_pretrained(
        model_dir, resolve_device(args.device), args.dtype, initialize_value_head=False
    )
    check_vocabulary(tokenizer, adapter.args.vocab_size, str(model_dir))
    template = args.template or template_of(args.checkpoint)
    if template == "raw":
        bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        prompt = bos + tokenizer.encode(args.prompt)
    else:
        prompt = AlpacaCollator(tokenizer, template).encode_prompt(args.prompt)
    try:
        sampling = Sampling(args.temperature, args.top_p, args.seed)
        ids = generate(
            adapter.transformer, [prompt], args.max_new_tokens, tokenizer.eos_id, sampling
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    print(tokenizer.decode(ids[0]))
    return 0
