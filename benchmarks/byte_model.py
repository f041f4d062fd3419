"""A byte model with eight heads, deep enough that seven extra blocks do not weigh much.

    python benchmarks/byte_model.py --out FOLDER [--steps 350] [--deep-steps 50]

It stands in for the byte model of the paper (Gloeckle et al. 2024, table S3: 7.04 tokens a forward
pass with n = 8), for measuring how much of its tokens per forward pass decoding turns into speed.

Text: Python modules of micro-task programs, made to be predictable. A module goes through eight
of sixteen families in one order, from a random one on; each gives its instruction as a comment and
then all its solutions, one after the other. Wording and names are those of the family, so all that
is open is where a module begins and the numbers and characters in the instructions, which the
programs then repeat. Held-out modules are of the validation split: problems never trained on.

Training: the library's own, recipe `pretrain`, twice. First a model of few blocks; then blocks that
begin as the identity are put in among those of its trunk (LLaMA Pro, arXiv 2401.02415: a copy whose
two output projections are zero), and all train on. A step of the deep model takes three times one
of the other, and what decoding is measured for is its depth, not what it learnt with it.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import torch
from torch import nn

from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.core.model_folder import find_model
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer
from weighted_mtp.decoding import Speculation, Stopping, complete
from weighted_mtp.micro_tasks import Family, Problem, Split, pose, up_to
from weighted_mtp.models.meta_mtp.checkpoints import (
    check_destination,
    find_tokenizer_files,
    load_meta_mtp_model,
    save_native,
)
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.request import RunRequest
from weighted_mtp.pipelines.train import run_pipeline

FAMILIES = (
    *("add_each", "average", "backwards", "between", "clamp", "difference", "discount", "distance"),
    *("divisible", "largest", "linear", "remainder", "repeat", "replace", "sum_beyond", "wrap"),
)
MAX_CONSTANT = 99
IN_A_MODULE = 8
SEPARATOR = "# ----"


def module(split: Split, seed: int) -> str:
    """One module of IN_A_MODULE tasks."""
    chance = Random(f"{split}/{seed}")
    first = chance.randrange(len(FAMILIES))
    labels = [FAMILIES[(first + i) % len(FAMILIES)] for i in range(IN_A_MODULE)]
    return "\n".join(task_text(chance.choice(problems(label, split))) for label in labels)


def task_text(problem: Problem) -> str:
    """An instruction as a comment, and every solution; name and wording are the family's own."""
    task = pose(problem, Random(problem.family.label))
    solutions = [task.solutions[style] for style in sorted(task.solutions)]
    return f"# {task.instruction}\n" + "\n".join(solutions)


@cache
def problems(label: str, split: Split) -> list[Problem]:
    """Up to 400 problems of one family in one split."""
    families: tuple[Family, ...] = up_to(11, (label,), MAX_CONSTANT, marked=False)
    drawn: list[Problem] = []
    seen = set()
    for family in families:
        for problem in family.problems(Random(label)):
            if problem.split == split and problem.task_id not in seen:
                seen.add(problem.task_id)
                drawn.append(problem)
            if len(drawn) == 400:
                return drawn
    return drawn


def prompts(count: int, length: int | None = None, seed: int = 0) -> list[list[int]]:
    """Beginnings of held-out modules as ids, BOS first.

    Args:
        length: cut to so many ids, wherever that is; None: to the end of an instruction, the
            module's first, second, third or fourth.
    """
    tokenizer, found = ByteTokenizer(), []
    for i in range(count):
        text = module("validation", seed * 100_000 + i)
        if length is None:
            parts = text.split("# ")[1:]
            text = "".join(f"# {part}" for part in parts[: i % 4 + 1])
            text = text[: text.rindex("# ")] + text[text.rindex("# ") :].split("\n")[0] + "\n"
        found.append([tokenizer.bos_id or 0, *tokenizer.encode(text)][:length])
    return found


def write_corpus(folder: Path, modules: int) -> None:
    """`train.txt` and `validation.txt`, modules with a separator line between them."""
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[Split, int] = {"train": modules, "validation": 24}
    for split, count in counts.items():
        texts = (module(split, seed) for seed in range(count))
        (folder / f"{split}.txt").write_text(f"{SEPARATOR}\n".join(texts), encoding="utf-8")


def deepen(model: Transformer, every: int) -> Transformer:
    """The same function with `every` more blocks after each block of the trunk."""
    trunk, last = list(model.layers[:-1]), model.layers[-1]
    blocks: list[nn.Module] = []
    for block in trunk:
        blocks.append(block)
        for _ in range(every):
            identity = copy.deepcopy(block)
            nn.init.zeros_(identity.get_parameter("attention.wo.weight"))
            nn.init.zeros_(identity.get_parameter("feed_forward.w2.weight"))
            blocks.append(identity)
    args = replace(model.args, n_layers=model.args.n_layers + every * len(trunk))
    with torch.device("meta"):
        deep = Transformer(args)
    deep.tok_embeddings, deep.layers = model.tok_embeddings, nn.ModuleList([*blocks, last])
    deep.extra_heads, deep.norm, deep.output = model.extra_heads, model.norm, model.output
    return deep


def train(folder: Path, corpus: Path, steps: int, rate: float, *settings: str) -> Path:
    """Run the recipe; where its model is."""
    recipe = load_recipe(
        "pretrain",
        None,
        [
            f"data.text.path={corpus / 'train.txt'}",
            f"data.text.validation_path={corpus / 'validation.txt'}",
            f"data.text.separator={SEPARATOR}",
            f"data.cache_dir={corpus / 'cache'}",
            "data.max_length=1025",
            f"training.steps={steps}",
            f"training.learning_rate={rate}",
            f"training.final_learning_rate={rate / 20}",
            f"training.validate_every={max(1, steps // 5)}",
            f"training.save_every={steps}",
            *settings,
        ],
    )
    run_pipeline(RunRequest(recipe, folder))
    return find_model(folder)


def main() -> None:
    """Write the text, train twice, decode held-out prompts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--deep-steps", type=int, default=50)
    parser.add_argument("--modules", type=int, default=600)
    parser.add_argument("--trunk", type=int, default=8, help="blocks of the first model's trunk")
    parser.add_argument("--insert", type=int, default=5, help="blocks put in after each of them")
    parser.add_argument("--start", type=Path, help="train on from this model, of `--trunk` blocks")
    parser.add_argument("--windows", type=int, default=2, help="of 1024 bytes, in a batch")
    args = parser.parse_args()
    check_destination(args.out)
    work = args.out.with_name(args.out.name + "-work")
    write_corpus(work / "corpus", args.modules)
    batch = f"training.batch_size={args.windows}", f"training.micro_batch_size={args.windows}"
    shape = {
        "dim": 128,
        "n_heads": 4,
        "multiple_of": 32,
        "n_layers": args.trunk + 8,
        "n_future_tokens": 8,
        "max_seq_len": 1024,
    }
    new = [f"model.architecture.{key}={value}" for key, value in shape.items()]
    start = ["model.init_std=0.05", *new]
    if args.start:
        start = ["model.architecture=null", f"model.path={find_model(args.start)}"]
    shallow = train(work / "shallow", work / "corpus", args.steps, 3e-3, *batch, *start)
    deeper = deepen(load_meta_mtp_model(shallow, device="cpu"), args.insert)
    files = find_tokenizer_files(shallow)
    save_native(deeper, work / "deeper", tokenizer_files=files, overwrite=True)
    settings = "model.architecture=null", f"model.path={work / 'deeper'}"
    deep = train(work / "deep", work / "corpus", args.deep_steps, 1e-3, *batch, *settings)
    model = load_meta_mtp_model(deep, device="cpu")
    save_native(model, args.out, tokenizer_files=files)
    measure(model)


def measure(model: Transformer) -> None:
    """Tokens per forward and acceptance of greedy decoding on held-out prompts."""
    tokenizer = ByteTokenizer()
    for length in (None, 16, 512):
        stopping = Stopping(256, tokenizer.eos_id)
        done, report = complete(model, prompts(8, length), stopping, speculation=Speculation())
        acceptance = " ".join(f"{share:.2f}" for share in report.acceptance)
        print(f"prompts of {length or 'whole instructions'}: {report.tokens} bytes, "
              f"{report.tokens_per_forward:.2f} a forward pass, accepted {acceptance}")  # fmt: skip
    print(tokenizer.decode(done[0].tokens))


if __name__ == "__main__":
    main()
