"""Run lm-eval on an export and compare its log-likelihoods with our own.

Two environments, because the harness pins its own versions:

    python benchmarks/clients/lm_eval_check.py write MODEL WORK --mbpp FILE
    VENV/bin/python benchmarks/clients/lm_eval_check.py check WORK [--out FILE]

`write` exports MODEL to WORK/export (`convert --to hf`), makes 50 multiple-choice items (an MBPP
problem, its own solution and those of three other problems), and computes log p(choice | question)
of every choice in float32 with this package, into WORK/ours.json. `check` runs lm-eval's `hf` model
on the same items, with nothing of ours installed, and compares.

    pip install torch==2.13.0 lm-eval accelerate transformers
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ITEMS, CHOICES = 50, 4
TASK = """task: mbpp_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {items}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
target_delimiter: "\\n"
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def main() -> None:
    """Run one of the two halves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("model", type=Path)
    writing.add_argument("work", type=Path)
    writing.add_argument("--mbpp", type=Path, required=True)
    checking = commands.add_parser("check")
    checking.add_argument("work", type=Path)
    checking.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.command == "write":
        write(args.model, args.work, args.mbpp)
    else:
        check(args.work, args.out)


def items_of(mbpp: Path) -> list[dict[str, Any]]:
    """Multiple-choice items, the right answer in turn first, second, third and fourth."""
    lines = mbpp.read_text(encoding="utf-8").splitlines()
    problems = [json.loads(line) for line in lines]
    codes = [problem["code"].replace("\r\n", "\n") for problem in problems]
    items = []
    for i in range(ITEMS):
        others = [codes[(i + step) % len(codes)] for step in (1, 2, 3)]
        label = i % CHOICES
        choices = [*others[:label], codes[i], *others[label:]]
        question = problems[i]["text"].strip()  # the harness moves blanks into the choice
        items.append({"question": question, "choices": choices, "label": label})
    return items


def write(model: Path, work: Path, mbpp: Path) -> None:
    """Export, make the items, and score them with this package."""
    import torch

    import weighted_mtp as wm
    from weighted_mtp.data.tokens.tokenizers import load_tokenizer

    work.mkdir(parents=True, exist_ok=True)
    if not (work / "export").exists():
        words = ["convert", str(model), str(work / "export"), "--to", "hf"]
        subprocess.run([sys.executable, "-m", "weighted_mtp", *words], check=True)
    items = items_of(mbpp)
    text = "".join(json.dumps(item) + "\n" for item in items)
    (work / "items.jsonl").write_text(text, encoding="utf-8")
    (work / "task").mkdir(exist_ok=True)
    task = TASK.format(items=(work / "items.jsonl").resolve())
    (work / "task/mbpp_choice.yaml").write_text(task, encoding="utf-8")
    transformer = wm.load(work / "export", device="cpu", dtype="float32").transformer
    tokenizer = load_tokenizer(work / "export")
    scores = []
    with torch.inference_mode():
        for item in items:
            row = []
            for choice in item["choices"]:
                question = tokenizer.encode(item["question"])
                whole = torch.tensor([tokenizer.encode(f"{item['question']}\n{choice}")])
                log_p = transformer(whole[:, :-1])[0, :, 0].log_softmax(-1)
                targets = whole[0, 1:]
                each = log_p.gather(1, targets[:, None])[:, 0]
                row.append(float(each[len(question) - 1 :].double().sum()))
            scores.append(row)
    (work / "ours.json").write_text(json.dumps(scores), encoding="utf-8")
    print(f"{len(items)} items, {CHOICES} choices each")


def check(work: Path, out: Path | None) -> None:
    """Score the export with lm-eval, and compare."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    results = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={work / 'export'},dtype=float32,trust_remote_code=False",
        tasks=["mbpp_choice"],
        task_manager=TaskManager(include_path=str(work / "task"), include_defaults=False),
        batch_size=1,
        device="cpu",
        log_samples=True,
    )
    ours = json.loads((work / "ours.json").read_text(encoding="utf-8"))
    samples = sorted(results["samples"]["mbpp_choice"], key=lambda sample: sample["doc_id"])
    theirs = [[float(answer[0]) for answer in s["filtered_resps"]] for s in samples]
    gaps = [
        abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)
    ]
    labels = [sample["doc"]["label"] for sample in samples]
    accuracy = [
        sum(
            max(range(CHOICES), key=row.__getitem__) == label
            for row, label in zip(side, labels, strict=True)
        )
        / len(labels)
        for side in (ours, theirs)
    ]
    found = {
        "lm_eval": lm_eval.__version__,
        "items": len(theirs),
        "choices": sum(map(len, theirs)),
        "largest_difference_nats": max(gaps),
        "mean_log_likelihood": sum(map(sum, theirs)) / sum(map(len, theirs)),
        "accuracy_ours": accuracy[0],
        "accuracy_lm_eval": accuracy[1],
        "reported": {
            k: v
            for k, v in results["results"]["mbpp_choice"].items()
            if isinstance(v, (int, float))
        },
    }
    print(json.dumps(found, indent=1))
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
