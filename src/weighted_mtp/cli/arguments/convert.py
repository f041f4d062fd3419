"""Options of `weighted-mtp convert`."""

from __future__ import annotations

import argparse

from weighted_mtp.core.choices import ENGINES, NUMBER_FORMATS, SPECULATORS
from weighted_mtp.core.files import given_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `convert`."""
    parser.add_argument(
        "source",
        type=given_path,
        metavar="SRC",
        help="a run, a checkpoint, a model directory, or ORG/NAME on the Hugging Face hub",
    )
    parser.add_argument("destination", type=given_path, metavar="DST", help="directory to write")
    parser.add_argument(
        "--to",
        choices=["native", "hf", "mtp_llama", *SPECULATORS],
        default="native",
        help="layout (default native); eagle3 and speculators are hf with head 2 for a serving "
        "engine in a subfolder",
    )
    parser.add_argument(
        "--engine", choices=ENGINES, help="engine that --to eagle3 writes for (default vllm)"
    )
    parser.add_argument(
        "--draft-tokens",
        type=given_path,
        metavar="FILE",
        help="JSON list of the token ids that the speculator may draft (default: all)",
    )
    parser.add_argument(
        "--draft-vocabulary",
        metavar="N",
        help="tokens that heads 2 … n may draft: the N most frequent, or auto (as few as cover "
        "99.5 %% of the text), or none (default: as SRC); texts stay the same",
    )
    parser.add_argument(
        "--draft-text",
        type=given_path,
        metavar="FILE",
        help="text or JSONL whose tokens are counted for it (default: Python's standard library)",
    )
    parser.add_argument(
        "--dtype", help=f"number format (default: as stored): {', '.join(NUMBER_FORMATS)}"
    )
    parser.add_argument(
        "--add-heads", type=int, metavar="N", help="add N heads, untrained copies of the last block"
    )
    parser.add_argument(
        "--license",
        metavar="ID",
        help="licence to name in the model card, as the hub spells it: mit, apache-2.0, …",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing checkpoint at DST"
    )
