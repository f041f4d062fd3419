"""How well Rho-1's scores find noise, head by head.

As Rho-1 is used: a base model learns from pieces of Python's standard library; the reference is
the base, trained further on clean micro-task programs; the policy is the base, trained for some
steps (0: not at all) on programs of which 15 % of the bytes were replaced by random ones. A token
is noise if it was replaced. Noise should have a low excess loss: reported is the AUC of −excess,
i.e. the probability that a noise token has a lower excess than a clean one, with the reference's
own head k (`same`) and with its next-token loss (`next`); and the share of the noise that each mode
keeps at k_percent 0.6.

With `--unrelated` reference and policy start from scratch, each on pieces of the standard library.

    nice python benchmarks/rho1_noise.py --out benchmarks/results     # two minutes on a free core
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import string
import sysconfig
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from weighted_mtp.cli.main import main as weighted_mtp
from weighted_mtp.data.datasets import file_digest, write_jsonl
from weighted_mtp.data.reference_losses import Fingerprint, ReferenceLosses
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer
from weighted_mtp.evaluation.critic_metrics import auc
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.micro_tasks import generate, up_to
from weighted_mtp.pipelines.training.reference import ReferenceRequest, prepare_reference_losses
from weighted_mtp.value_weighting.rho1_weighting import compute_mtp_selective_weights

HEADS, LENGTH, PIECE, NOISE, KEPT = 4, 128, 100, 0.15, 0.6
SHAPE = {"dim": 64, "n_layers": 6, "n_heads": 2, "n_future_tokens": HEADS, "multiple_of": 32}


def pieces(count: int, rng: random.Random) -> list[str]:
    """Different pieces of the standard library, ASCII alone."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    found = (text[start : start + PIECE] for start in range(0, len(text) - PIECE, PIECE))
    return rng.sample([piece for piece in found if piece.isascii()], count)


def as_row(text: str, number: int) -> dict[str, object]:
    return {"instruction": "", "output": text, "task_id": str(number), "is_correct": True}


def noisy(text: str, rng: random.Random) -> tuple[str, list[bool]]:
    """The text with 15 % of its characters replaced, and which ones."""
    flags = [rng.random() < NOISE for _ in text]
    characters = [
        rng.choice([c for c in string.printable[:95] if c != old]) if flag else old
        for old, flag in zip(text, flags, strict=True)
    ]
    return "".join(characters), flags


def train(run_dir: Path, rows: Path, steps: int, seed: int, start: Path | None = None) -> Path:
    """A model trained on all rows, every token weighted alike."""
    settings = {f"model.architecture.{key}": value for key, value in SHAPE.items()}
    settings |= {"model.architecture.max_seq_len": LENGTH, "model.init_std": 0.05}
    if start is not None:
        settings = {"model.path": start}
    settings |= {
        "objective.name": "uniform",
        "tokenizer.kind": "bytes",
        "data.train": rows,
        "data.template": "short",
        "data.max_length": LENGTH,
        "data.packing": True,
        "training.steps": steps,
        "training.batch_size": 16,
        "training.micro_batch_size": 16,
        "training.optimizer": "muon",
        "training.learning_rate": 3e-3 if start is None else 1e-3,
        "training.save_every": steps,
        "runtime.device": "cpu",
        "runtime.compute_dtype": "float32",
        "runtime.seed": seed,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = ["train", "--recipe", "baseline", "--output-dir", str(run_dir), *words]
    if weighted_mtp(command):
        raise SystemExit(f"training {run_dir} failed")
    return run_dir / "checkpoints" / f"step-{steps:08d}" / "model"


def losses_of(model: Path, rows: Path, out: Path, count: int) -> list[Tensor]:
    """`[tokens, heads]` of each row."""
    request = ReferenceRequest(rows, model, out, "short", LENGTH, device="cpu")
    path = prepare_reference_losses(request)
    expected = Fingerprint(file_digest(rows), ByteTokenizer().fingerprint, "short", LENGTH)
    stored = ReferenceLosses(path, expected)
    return [stored[row] for row in range(count)]


def measure(policy: Tensor, reference: Tensor, noise: Tensor) -> dict[str, object]:
    """Figures of all tokens: losses `[N, heads]`, noise `[N]`."""
    scores = {"same": reference, "next": reference[:, :1].expand_as(reference)}
    valid = torch.ones_like(policy, dtype=torch.bool)
    figures: dict[str, object] = {"tokens": len(noise), "noise": float(noise.double().mean())}
    for name, compared in scores.items():
        excess = (policy - compared).double()
        figures[f"auc_{name}"] = [auc(-excess[:, k], noise) for k in range(HEADS)]
        for mode in ("signed", "absolute", "difficult"):
            weights = compute_mtp_selective_weights(
                policy[None], compared[None], valid[None], KEPT, mode
            )[0]
            figures[f"noise_kept_{mode}_{name}"] = weights[noise].double().mean(0).tolist()
    return figures


def table(found: dict[int, dict[str, list[float]]]) -> str:
    """Markdown, one column a head."""
    lines = ["| policy | figure | " + " | ".join(f"head {k + 1}" for k in range(HEADS)) + " |"]
    lines.append("|" + " --- |" * (HEADS + 2))
    rows = {
        "AUC, `reference_heads: next`": "auc_next",
        "AUC, `reference_heads: same`": "auc_same",
        "noise kept, signed, next": "noise_kept_signed_next",
        "noise kept, signed, same": "noise_kept_signed_same",
        "noise kept, absolute, same": "noise_kept_absolute_same",
        "noise kept, difficult": "noise_kept_difficult_same",
    }
    for steps, figures in found.items():
        for words, key in rows.items():
            cells = " | ".join(f"{x:.3f}" for x in figures[key])
            lines.append(f"| {steps} steps | {words} | {cells} |")
    return "\n".join(lines)


def programs(problems: int) -> list[str]:
    """Solutions of micro tasks."""
    with Sandbox() as judge:
        rows = generate(problems, 0, judge, "train", 3, 0, up_to(3, None, 15, False))
    return [str(row["output"])[:PIECE] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unrelated", action="store_true")
    parser.add_argument("--rows", type=int, default=900, help="of the policy")
    parser.add_argument("--base-steps", type=int, default=300)
    parser.add_argument("--reference-steps", type=int, default=150)
    parser.add_argument("--policy-steps", type=int, nargs="+", default=[0, 30, 100])
    parser.add_argument("--out", type=Path, help="folder for rho1_noise.json and .md")
    args = parser.parse_args()
    started, rng = time.perf_counter(), random.Random(0)
    library = pieces(4 * args.rows, rng)
    if args.unrelated:
        clean, texts = library[args.rows :], library[: args.rows]
    else:
        both = programs(2 * args.rows // 3)
        rng.shuffle(both)
        clean, texts = both[args.rows :], both[: args.rows]
    changed = [noisy(text, rng) for text in texts]
    found: dict[int, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, base = Path(name), None
        files = {"library": library, "clean": clean, "noisy": [text for text, _ in changed]}
        for key, content in files.items():
            write_jsonl(folder / key, [as_row(text, i) for i, text in enumerate(content)])
        if not args.unrelated:
            base = train(folder / "base", folder / "library", args.base_steps, 2)
        model = train(folder / "reference", folder / "clean", args.reference_steps, 0, base)
        reference = losses_of(model, folder / "noisy", folder / "reference.st", len(changed))
        flags = [
            torch.tensor([*flag, False])[: len(losses)]  # EOS is never replaced
            for (_, flag), losses in zip(changed, reference, strict=True)
        ]
        for steps in args.policy_steps:
            if steps or base is None:
                model = train(folder / f"policy{steps}", folder / "noisy", steps, 1, base)
            else:
                model = base
            policy = losses_of(model, folder / "noisy", folder / f"{steps}.st", len(changed))
            found[steps] = measure(torch.cat(policy), torch.cat(reference), torch.cat(flags))
    seconds = time.perf_counter() - started
    print(table(found))
    print(f"{seconds:.0f} s")
    if args.out is not None:
        write(args, found, seconds)


def write(
    args: argparse.Namespace, found: dict[int, dict[str, list[float]]], seconds: float
) -> None:
    """The raw figures as JSON, and the table."""
    name = "rho1_noise_unrelated" if args.unrelated else "rho1_noise"
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    python = platform.python_version()
    raw = {"settings": settings, "python": python, "seconds": seconds, "policies": found}
    (args.out / f"{name}.json").write_text(json.dumps(raw, indent=1) + "\n")
    models = (
        f"reference ({args.reference_steps} steps, clean rows) and policies from scratch"
        if args.unrelated
        else f"base of {args.base_steps} steps on the standard library of Python {python}; "
        f"reference = base + {args.reference_steps} steps on clean programs, policy = base + the "
        "steps named"
    )
    title = (
        f"# Noise and Rho-1\n\n`benchmarks/rho1_noise.py`: {models}, on {args.rows} rows of up "
        f"to {PIECE} bytes, {NOISE:.0%} of them replaced. AUC of −excess for the noise, and the "
        f"share of the noise kept at k_percent {KEPT} (chance: {KEPT}).\n\n"
    )
    (args.out / f"{name}.md").write_text(title + table(found) + "\n")


if __name__ == "__main__":
    main()
