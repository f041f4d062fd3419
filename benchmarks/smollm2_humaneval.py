"""SmolLM2-135M-Instruct on HumanEval, greedy, float32: our path against `transformers` generate.

    python benchmarks/smollm2_humaneval.py MODEL_FOLDER [--max-new-tokens 512] [--out NAME]

MODEL_FOLDER holds the model as Hugging Face saves it. Two prompts: the published one, raw, and the
same stripped of the new line at its end, which this tokenizer joins with the indentation after it
(BigCode's). A text ends at EOS, at the prompt's stop strings or at the limit. Ours is `weighted-mtp
evaluate`, as it stands. Theirs is `generate` on the same weights, batches padded on the left; its
texts go through the same judge (`--completions`). The two must agree task by task wherever the
logits do: where two texts differ, both models read the text up to there once more, whole and alone,
and the lead of our token over theirs is reported. The model has one head, and so nothing to draft
with: speculative decoding would be plain decoding.

Writes NAME.json and NAME.md into benchmarks/results/. It is a comparison of results; times are not
reported. What was written is kept in --work, from where a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from weighted_mtp.data.tokens.tokenizers import Tokenizer, load_tokenizer
from weighted_mtp.decoding import Sampling
from weighted_mtp.evaluation.benchmarks import Problem
from weighted_mtp.evaluation.completions import written_text
from weighted_mtp.evaluation.extraction import cut, opens_a_block
from weighted_mtp.evaluation.prompts import Prompting
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.evaluating import EvaluationRequest, EvaluationResult, evaluate
from weighted_mtp.pipelines.evaluating.writer import ModelWriter

RESULTS = Path(__file__).parent / "results"
STYLES = ("completion", "stripped")
NEAR = 1e-3
"""Logits this close are as good as tied: two float32 readings of one text differ by about as much
(tests/integration/test_real_weights.py); the largest logits are near 40."""


class AtStopString(StoppingCriteria):
    """Ends a row once a stop string is in the text that follows the prompt."""

    def __init__(self, tokenizer: Tokenizer, prompt_length: int, stops: Sequence[str]) -> None:
        self._tokenizer, self._prompt, self._stops = tokenizer, prompt_length, tuple(stops)
        self._window = 1 + max(map(len, stops))  # tokens that a stop string may be spread over

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        new = input_ids[:, self._prompt :][:, -self._window :].tolist()  # [B, at most window]
        texts = [self._tokenizer.decode(row) for row in new]
        return torch.tensor([any(stop in text for stop in self._stops) for text in texts])


def their_tokens(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    limit: int,
    stops: Sequence[str],
) -> list[list[int]]:
    """What `generate` adds to each prompt, without EOS and what it fills up with."""
    longest = max(map(len, prompts))
    padded = [[tokenizer.pad_id] * (longest - len(p)) + list(p) for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    criteria = [AtStopString(tokenizer, longest, stops)] if stops else []
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor(padded),
            attention_mask=torch.tensor(mask),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.pad_id,
            stopping_criteria=StoppingCriteriaList(criteria),
        )
    assert tokenizer.pad_id == tokenizer.eos_id  # a row that ended is filled up with it
    rows = [row[longest:] for row in whole.tolist()]
    return [row[: row.index(tokenizer.eos_id)] if tokenizer.eos_id in row else row for row in rows]


def write_theirs(
    args: argparse.Namespace, prompting: Prompting, ours: EvaluationResult, path: Path
) -> None:
    """Every task's text by `transformers`, a line each; what is there already stays.

    In the order of the lengths of our texts: `generate` goes on until the longest of a batch ends.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    done = {json.loads(line)["task_id"] for line in lines}
    lengths = {attempt.task_id: len(attempt.completion) for attempt in ours.attempts}
    problems = [p for p in ours.benchmark.problems if p.task_id not in done]
    if not problems:
        return
    tokenizer = load_tokenizer(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, trust_remote_code=False
    ).eval()
    problems.sort(key=lambda problem: lengths[problem.task_id])
    asked_for = {problem.task_id: problem for problem in problems}
    asked = [(p.task_id, tokenizer.encode(prompting.render(p))) for p in problems]
    for start in range(0, len(asked), args.batch_size):
        names, prompts = zip(*asked[start : start + args.batch_size], strict=True)
        rows = their_tokens(model, tokenizer, prompts, args.max_new_tokens, prompting.stops)
        with path.open("a", encoding="utf-8") as file:
            for name, prompt, row in zip(names, prompts, rows, strict=True):
                text = written_text(tokenizer, prompt, row)
                if opens_a_block(asked_for[name], text):  # as in ours: no stop string in a fence
                    (row,) = their_tokens(model, tokenizer, [prompt], args.max_new_tokens, ())
                    text = written_text(tokenizer, prompt, row)
                else:
                    text = cut(text, prompting.stops)  # given completions are judged whole
                record = {"task_id": name, "completion": text, "tokens": row}
                file.write(json.dumps(record) + "\n")
        print(f"theirs: {start + len(names)} of {len(asked)}", flush=True)


def judged(args: argparse.Namespace, style: str, **source: Any) -> EvaluationResult:
    """An evaluation as the command line runs it."""
    return evaluate(
        EvaluationRequest(
            "humaneval",
            n_problems=args.n_problems,
            max_new_tokens=args.max_new_tokens,
            batch_size=args.batch_size,
            prompt=style,
            sampling=Sampling(),
            dtype="float32",
            device="cpu",
            workers=1,
            **source,
        )
    )


class Differences:
    """Finds the first token at which two texts part, and how near the logits are there.

    The models are loaded when the first two texts differ.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args

    @cached_property
    def _writer(self) -> ModelWriter:
        return ModelWriter(
            self._args.model, "cpu", Sampling(), self._args.max_new_tokens, "float32"
        )

    @cached_property
    def _ours(self) -> Transformer:
        return load_meta_mtp_model(self._args.model, device="cpu", dtype="float32").eval()

    @cached_property
    def _theirs(self) -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(
            self._args.model, dtype=torch.float32, trust_remote_code=False
        )
        return model.eval()

    def __call__(
        self, problem: Problem, prompting: Prompting, our_text: str, their_tokens: list[int]
    ) -> dict[str, Any]:
        prompt = self._writer.encode(prompting.render(problem))
        stops = () if opens_a_block(problem, our_text) else prompting.stops
        (again,) = self._writer.write([prompt], [0], stops)
        ours = [*again.tokens, self._writer.tokenizer.eos_id]
        theirs = [*their_tokens, self._writer.tokenizer.eos_id]
        pairs = enumerate(zip(ours, theirs, strict=False))
        place = next(i for i, (a, b) in pairs if a != b)
        text = torch.tensor([[*prompt, *ours[:place]]])
        with torch.inference_mode():
            our_logits = self._ours(text)[0, -1, 0]  # [V]
            their_logits = self._theirs(text).logits[0, -1]  # [V]
        decode = self._writer.tokenizer.decode
        leads = [float(x[ours[place]] - x[theirs[place]]) for x in (our_logits, their_logits)]
        return {
            "same_text_alone": again.text == our_text,  # batch 1 in place of a batch
            "token": place,
            "ours": decode(ours[place : place + 1]),
            "theirs": decode(theirs[place : place + 1]),
            "lead_in_our_logits": leads[0],
            "lead_in_their_logits": leads[1],
            "largest_difference_of_logits": float((our_logits - their_logits).abs().max()),
            "near_tie": max(map(abs, leads)) < NEAR,
        }


def compare(args: argparse.Namespace, style: str, differences: Differences) -> dict[str, Any]:
    """Both evaluations, task by task."""
    prompting, work = Prompting(style), args.work / style
    work.mkdir(parents=True, exist_ok=True)
    ours = judged(args, style, path=args.model, output=work / "ours")
    print(f"{style}, ours: {ours.scores.pass_at[1]}", flush=True)
    given = work / "theirs.jsonl"
    write_theirs(args, prompting, ours, given)
    theirs = judged(args, style, completions=str(given), output=work / "theirs")
    tokens = {r["task_id"]: r["tokens"] for r in map(json.loads, given.read_text().splitlines())}
    tasks = []
    for problem, a, b in zip(ours.benchmark.problems, ours.attempts, theirs.attempts, strict=True):
        same = a.completion == b.completion
        task: dict[str, Any] = {
            "task_id": a.task_id,
            "same_text": same,
            "ours": a.status,
            "theirs": b.status,
        }
        if not same:
            found = differences(problem, prompting, a.completion, tokens[a.task_id])
            task["difference"] = found
        tasks.append(task)
    apart = [task for task in tasks if not task["same_text"]]
    return {
        "problems": len(tasks),
        "ours_pass_at_1": ours.scores.pass_at[1].mean,
        "theirs_pass_at_1": theirs.scores.pass_at[1].mean,
        "ours_passed": sum(a.passed for a in ours.attempts),
        "theirs_passed": sum(a.passed for a in theirs.attempts),
        "same_text": len(tasks) - len(apart),
        "same_verdict": sum((t["ours"] == "passed") == (t["theirs"] == "passed") for t in tasks),
        "apart_at_a_near_tie": sum(task["difference"]["near_tie"] for task in apart),
        "apart_elsewhere": sum(not task["difference"]["near_tie"] for task in apart),
        "their_tokens": sum(map(len, tokens.values())),
        "tasks": tasks,
    }


def page(found: dict[str, Any]) -> str:
    """The figures, and the tasks whose texts differ."""
    lines = [
        "# SmolLM2-135M-Instruct on HumanEval: our path and `transformers`",
        "",
        f"Greedy, float32, at most {found['max_new_tokens']} new tokens; torch {found['torch']}, "
        f"transformers {found['transformers']}. Written by `benchmarks/smollm2_humaneval.py`. "
        f"Texts part at a near-tie if the two logits are closer than {found['near_tie']} (the "
        "largest are near 40).",
        "",
        "| prompt | passed, ours | passed, `transformers` | same verdict | same text | apart at a "
        "near-tie | apart elsewhere |",
        "|---|---|---|---|---|---|---|",
    ]
    for style, part in found["prompts"].items():
        of = part["problems"]
        lines.append(
            f"| `{style}` | {part['ours_passed']} ({part['ours_pass_at_1']:.1%}) | "
            f"{part['theirs_passed']} ({part['theirs_pass_at_1']:.1%}) | "
            f"{part['same_verdict']} of {of} | {part['same_text']} of {of} | "
            f"{part['apart_at_a_near_tie']} | {part['apart_elsewhere']} |"
        )
    rows = [
        _row(style, task)
        for style, part in found["prompts"].items()
        for task in part["tasks"]
        if not task["same_text"]
    ]
    if rows:
        lines += [
            "",
            "A lead is of our token over theirs, in the logits of either, when each model reads "
            "the text up to there whole, alone and without a cache. Our greedy decoding takes the "
            "best token of that reading by definition (its lead is never below 0); theirs is "
            "cached and padded.",
            "",
            "| prompt | task | token | ours | theirs | our lead | their lead | ours | theirs |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    return "\n".join(lines) + "\n"


def _row(style: str, task: dict[str, Any]) -> str:
    d = task["difference"]
    return (
        f"| {style} | {task['task_id']} | {d['token']} | `{d['ours']!r}` | `{d['theirs']!r}` | "
        f"{d['lead_in_our_logits']:.1e} | {d['lead_in_their_logits']:.1e} | {task['ours']} | "
        f"{task['theirs']} |"
    )


def main() -> None:
    """Run both, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--n-problems", type=int, help="the first so many (default: all)")
    parser.add_argument("--work", type=Path, default=Path("smollm2_humaneval.work"))
    parser.add_argument("--out", default="smollm2_humaneval", metavar="NAME")
    args = parser.parse_args()
    differences = Differences(args)
    found = {
        "model": "SmolLM2-135M-Instruct, float32, greedy",
        "max_new_tokens": args.max_new_tokens,
        "near_tie": NEAR,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "prompts": {style: compare(args, style, differences) for style in STYLES},
    }
    text = page(found)
    (RESULTS / f"{args.out}.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / f"{args.out}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
