"""`weighted-mtp evaluate` on micro tasks: always the same programs and verdicts, resumed or not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration import test_evaluate_cli
from tests.integration.test_evaluate_cli import Parrot

from weighted_mtp.cli.main import main
from weighted_mtp.data.collators import TEMPLATES
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.micro_tasks import generate
from weighted_mtp.pipelines import evaluating
from weighted_mtp.pipelines.evaluating import EvaluationRequest
from weighted_mtp.pipelines.evaluating import writer as model_writer

checkpoint = test_evaluate_cli.checkpoint
EXPECTED = Path(__file__).parents[1] / "data" / "micro_evaluation.json"
"""Written by version 0.1.0, whose evaluator of micro tasks was a program of its own."""
SAMPLED = ["--n-problems", "4", "--n-samples", "2", "--temperature", "0.8", "--k", "1,2"]
CASES = {
    "sampled": [*SAMPLED, "--batch-size", "3", "--max-new-tokens", "12"],
    "greedy": ["--split", "compositions", "--n-problems", "3", "--max-new-tokens", "9"],
    "answers": ["--n-problems", "12", "--max-new-tokens", "1000", "--seed", "3", "--stop", "@@"],
}
SHAPES = (
    "{0}",
    "Here it is:\n```python\n{0}```\nIt works.",
    "{0}\n### Instruction:\nmore",
    "I think:\n\n{0}\nThat is all.",
    "def f(\n",
    "{1}",
    "{0}@@ 1 / 0",
    "",
)
"""Of what a model answers: {0} is a right program, {1} one that raises an error."""


def evaluate(checkpoint: Path, output: Path, *options: str) -> int:
    fixed = ["--device", "cpu", "--show", "0", "--output", str(output)]
    return main(["evaluate", str(checkpoint), *fixed, *options])


def answering(prompt_of) -> Parrot:
    """A model that answers the problems of the case `answers`, each in another way."""
    with Sandbox(workers=1) as judge:
        rows = generate(12, 3, judge, "test")
    texts = {}
    for number, row in enumerate(rows):
        broken = row["output"].replace(":\n", ":\n    1 / 0\n", 1)
        shape = SHAPES[number % len(SHAPES)]
        texts[prompt_of(row["instruction"], "")] = shape.format(row["output"], broken)
    return Parrot(ByteTokenizer(), texts)


def found(output: Path) -> dict:
    """Result file and summary, without times."""
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert all(record.pop("seconds") >= 0 for record in records)
    summary = json.loads(output.with_suffix(".summary.json").read_text())
    for name in ("seconds", "tokens_per_second"):
        summary["decoding"].pop(name)
    return {"records": records, "summary": summary}


def run_case(case: str, checkpoint: Path, output: Path, monkeypatch) -> dict:
    if case == "answers":
        monkeypatch.setattr(model_writer, "complete", answering(TEMPLATES["alpaca"].render))
    assert evaluate(checkpoint, output, *CASES[case]) == 0
    return found(output)


@pytest.mark.parametrize("case", CASES)
def test_programs_and_verdicts_are_those_of_the_evaluator_before(
    case, checkpoint, tmp_path, monkeypatch
):
    expected = json.loads(EXPECTED.read_text())[case]
    assert run_case(case, checkpoint, tmp_path / "micro.jsonl", monkeypatch) == expected


# --- resuming ------------------------------------------------------------------------------------

RESUMED = [*SAMPLED, "--max-new-tokens", "12"]


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory) -> Path:
    """The result file of a finished evaluation."""
    output = tmp_path_factory.mktemp("finished") / "micro.jsonl"
    assert evaluate(checkpoint, output, *RESUMED) == 0
    return output


class Ends:
    """Decoding that raises an error after some batches, and counts them."""

    def __init__(self, batches: int, error: BaseException | None = None) -> None:
        self.left, self.error, self.sizes = batches, error, []
        self.complete = model_writer.complete

    def __call__(self, model, prompts, *rest):
        if self.left == 0 and self.error is not None:
            raise self.error
        self.left -= 1
        self.sizes.append(len(prompts))
        return self.complete(model, prompts, *rest)


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), 130), (ValueError("no memory"), 2)], ids=str
)
def test_an_interrupted_evaluation_resumes(
    error, status, checkpoint, finished, tmp_path, monkeypatch
):
    """With another batch size: the programs of an uninterrupted run, none written twice."""
    output = tmp_path / "stopped.jsonl"
    monkeypatch.setattr(model_writer, "complete", Ends(2, error))
    assert evaluate(checkpoint, output, *RESUMED, "--batch-size", "3", "--workers", "1") == status
    journal = output.with_suffix(".evaluation") / "attempts.jsonl"
    kept = journal.read_bytes().count(b"\n") if journal.exists() else 0
    assert not output.exists()
    monkeypatch.undo()
    rest = Ends(-1)
    monkeypatch.setattr(model_writer, "complete", rest)
    assert evaluate(checkpoint, output, *RESUMED, "--batch-size", "2") == 0
    assert sum(rest.sizes) == 8 - kept
    assert found(output)["records"] == found(finished)["records"]
    assert found(output)["summary"]["decoding"]["texts"] == 8 - kept


def test_a_killed_evaluation_resumes(checkpoint, finished, tmp_path, monkeypatch):
    """A kill leaves a journal whose last line may be cut short, and no result file."""
    output = tmp_path / "micro.jsonl"
    folder = shutil.copytree(finished.with_suffix(".evaluation"), tmp_path / "micro.evaluation")
    lines = (folder / "attempts.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "attempts.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:20])
    (folder / "results.json").unlink()
    rest = Ends(-1)
    monkeypatch.setattr(model_writer, "complete", rest)
    assert evaluate(checkpoint, output, *RESUMED) == 0
    assert rest.sizes == [3]
    assert found(output)["records"] == found(finished)["records"]
    assert evaluate(checkpoint, output, *RESUMED) == 0
    assert rest.sizes == [3]  # everything is known: nothing is written again


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--temperature", "0.9"], "sampling"),
        (["--n-problems", "5"], "n_problems"),
        (["--seed", "1"], "seed"),
        (["--split", "compositions"], "split"),
        (["--template", "short"], "template"),
        (["--max-difficulty", "1"], "max_difficulty"),
        (["--max-new-tokens", "13"], "max_new_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_settings_do_not_resume(options, name, checkpoint, finished, capsys):
    before = found(finished)
    assert evaluate(checkpoint, finished, *RESUMED, *options) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"another {name}" in line
    assert "--overwrite" in line
    assert found(finished) == before


def test_overwrite_starts_over(checkpoint, finished, tmp_path):
    output = tmp_path / "copy.jsonl"
    shutil.copytree(finished.with_suffix(".evaluation"), output.with_suffix(".evaluation"))
    greedy = ["--n-problems", "2", "--max-new-tokens", "4", "--overwrite"]
    assert evaluate(checkpoint, output, *greedy) == 0
    assert len(found(output)["records"]) == 2


def test_a_damaged_journal_is_one_line(checkpoint, finished, tmp_path, capsys):
    output = tmp_path / "micro.jsonl"
    folder = shutil.copytree(finished.with_suffix(".evaluation"), tmp_path / "micro.evaluation")
    journal = folder / "attempts.jsonl"
    journal.write_text(journal.read_text().replace('"sample": 1', '"sample": "1"', 1))
    capsys.readouterr()
    assert evaluate(checkpoint, output, *RESUMED) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {journal}, line 2: broken")
    assert not output.exists()


# --- one writer ----------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from weighted_mtp.core.lock import only_writer
with only_writer(Path(sys.argv[1]), ""):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("dataset", ["micro", "humaneval"])
def test_a_second_evaluation_into_one_directory_is_refused(dataset, checkpoint, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    folder = output.with_suffix(".evaluation") if dataset == "micro" else output
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        options = ["--dataset", dataset, "--n-problems", "1", "--allow-code-execution"]
        assert evaluate(checkpoint, output, *options, "--max-new-tokens", "2") == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"process {other.pid} on " in line
        assert "--output" in line
        other.stdin.close()
    assert list(tmp_path.iterdir()) == []  # neither left anything


# --- from Python ---------------------------------------------------------------------------------


def test_evaluate_from_python(checkpoint, tmp_path):
    request = EvaluationRequest(
        path=checkpoint,
        output=tmp_path / "micro.jsonl",
        n_problems=2,
        max_new_tokens=4,
        device="cpu",
    )
    result = evaluating.evaluate(request)
    assert result.pass_at_1 == 0
    assert sum(count for _, count in result.by_family.values()) == 2
    assert [attempt.task_id for attempt in result.attempts] == [
        record["task_id"] for record in found(tmp_path / "micro.jsonl")["records"]
    ]
    assert type(result) is evaluating.EvaluationResult


def test_importing_the_package_loads_no_torch():
    code = "import sys, weighted_mtp.pipelines.evaluating; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("command", ["evaluate", "experiment"])
def test_help_ends_with_an_example(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"  weighted-mtp {command} ")
