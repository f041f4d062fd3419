"""Chat models from the command line: training on conversations, `generate --template chat`,
`evaluate --template chat` and `chat`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from tests.helpers import tiny_args, tiny_model
from tests.integration.helpers_training import CRITIC, TINY, last_checkpoint
from tests.unit.test_chat_template import TEMPLATES, byte_level, chat_model, say

from weighted_mtp.cli.main import main
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.tokens.chat import ChatTemplate
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer, load_tokenizer
from weighted_mtp.decoding import Sampling, Stopping, Stream, complete_naively
from weighted_mtp.evaluation.benchmarks import Problem
from weighted_mtp.evaluation.prompts import Prompting, choose_prompting
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, save_native
from weighted_mtp.pipelines.evaluating.writer import ModelWriter, continuation_decoder

RUNS = "--allow-code-execution"
ON_CPU = ["--device", "cpu", "--max-new-tokens", "12"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return chat_model(tmp_path_factory.mktemp("models") / "chat")


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "plain"
    save_native(tiny_model(tiny_args(vocab_size=259, max_seq_len=64)), path)
    ByteTokenizer().save(path / "tokenizer")
    return path


def naive(model: Path, messages: list[dict[str, str]], count: int = 12) -> str:
    """The greedy answer by the reference."""
    tokenizer = load_tokenizer(model)
    template, decode = ChatTemplate(tokenizer), continuation_decoder(tokenizer)
    stopping = Stopping(count, {tokenizer.eos_id, tokenizer.control["<|eot_id|>"]})
    loaded = load_meta_mtp_model(model, device="cpu")
    return decode(complete_naively(loaded, template.encode_prompt(messages), stopping).tokens)


# --- generate, evaluate --------------------------------------------------------------------------


def test_generate_writes_after_the_template(model, capsys):
    asked = ["generate", str(model), "--template", "chat", "--prompt", "ask", *ON_CPU]
    assert main(asked) == 0
    assert capsys.readouterr().out == naive(model, say("ask")) + "\n"
    assert main([*asked, "--system", "Be brief.", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["text"] == naive(model, say("ask", system="Be brief."))


def test_the_end_of_turn_ends_an_answer(model):
    """Also where no configuration lists it, as those of base models do not."""
    writer = ModelWriter(model, "cpu", Sampling(), 4)
    end = writer.tokenizer.control["<|eot_id|>"]
    assert end not in writer.tokenizer.stop_ids
    assert not writer._stopping(()).ends(end)
    writer.encode(say("ask"))
    assert writer._stopping(()).ends(end)


def test_a_model_without_a_chat_template_is_refused(plain_model, capsys):
    for command in (
        ["generate", str(plain_model), "--template", "chat", "--prompt", "x"],
        ["chat", str(plain_model)],
        ["evaluate", str(plain_model), "--template", "chat"],
        ["evaluate", str(plain_model), "--dataset", "humaneval", "--prompt", "chat", RUNS],
    ):
        assert main(command) == 2
        assert "has no chat template" in capsys.readouterr().err.splitlines()[-1]
    assert main(["generate", str(plain_model), "--system", "x", "--prompt", "x"]) == 2
    assert "--system goes with --template chat" in capsys.readouterr().err


def test_a_benchmark_asks_in_the_users_turn():
    for style, template in (("chat", None), ("template", "chat"), (None, "chat"), ("chat", "chat")):
        assert choose_prompting("mbpp", style, template, None) == Prompting("template", "chat")
    assert choose_prompting("humaneval", None, None, "chat") == Prompting("template", "chat")
    with pytest.raises(UserError, match="goes with --prompt template, not with chat"):
        choose_prompting("mbpp", "chat", "short", None)
    problem = Problem("t", "asserts", "Add.", input="1 2")
    prompting = Prompting("template", "chat")
    assert prompting.render(problem) == say("Add.\n\n1 2")
    assert prompting.stops == ()


def test_micro_tasks_by_the_chat_template(model, tmp_path, capsys):
    output = tmp_path / "found.jsonl"
    asked = ["evaluate", str(model), "--template", "chat", "--n-problems", "1", *ON_CPU]
    assert main([*asked, "--max-difficulty", "1", "--output", str(output)]) == 0
    (attempt,) = map(json.loads, output.read_text().splitlines())
    assert attempt["completion"] == naive(model, say(attempt["instruction"]))
    capsys.readouterr()


# --- training ------------------------------------------------------------------------------------


def test_a_critic_and_weights_are_trained_on_conversations(tmp_path, capsys):
    """From rows of both kinds to a run that `generate` prompts by its chat template."""
    folder = byte_level(tmp_path / "tokenizer", TEMPLATES["chatml"])
    rows = tmp_path / "rows.jsonl"
    given = [
        {"messages": say(f"add {i}", f"is {i}", "and?", "no" * i), "is_correct": i % 2 == 0}
        for i in range(6)
    ]
    given.append({"instruction": "add 1", "output": "2"})
    rows.write_text("".join(json.dumps(row) + "\n" for row in given))
    settings = {
        **{key: value for key, value in TINY.items() if not key.startswith("tokenizer")},
        "tokenizer.kind": "huggingface",
        "tokenizer.path": folder,
        "data.train": rows,
        "data.validation": rows,
        "data.template": "chat",
        "data.max_length": 128,
        "training.steps": 2,
        "training.validate_every": 2,
        **CRITIC,
    }
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    run = tmp_path / "run"
    assert main(["train", "--recipe", "critic", "--output", str(run), *sets]) == 0
    capsys.readouterr()
    asked = ["generate", str(run), "--prompt", "add 3", "--json", *ON_CPU]
    assert main(asked) == 0
    by_default = json.loads(capsys.readouterr().out)
    assert main([*asked, "--template", "chat"]) == 0
    assert json.loads(capsys.readouterr().out) == by_default
    assert (last_checkpoint(run) / "model" / "tokenizer" / "chat_template.jinja").is_file()


def test_stored_losses_know_the_template_they_are_of(model, tmp_path, capsys):
    """A reference scores conversations; another template of the same tokenizer makes them stale."""
    rows, out = tmp_path / "rows.jsonl", tmp_path / "losses.safetensors"
    rows.write_text(
        "".join(json.dumps({"messages": say(f"{i}", "no", "so", "b" * i)}) + "\n" for i in range(4))
    )
    length = ["--template", "chat", "--max-length", "128", "--device", "cpu"]
    asked = ["prepare", "reference-losses", "--data", str(rows), "--model", str(model)]
    assert main([*asked, "--out", str(out), *length]) == 0
    other = byte_level(tmp_path / "other", TEMPLATES["chatml"])

    def train(name: str, *changes: str) -> int:
        settings = {
            **{k: v for k, v in TINY.items() if k.startswith(("training", "runtime"))},
            "model.path": model,
            "data.train": rows,
            "data.template": "chat",
            "data.max_length": 128,
            "objective.rho1.reference": out,
            "training.steps": 1,
        }
        sets = [f"{key}={value}" for key, value in settings.items()] + list(changes)
        words = [word for one in sets for word in ("--set", one)]
        return main(["train", "--recipe", "rho1", "--output", str(tmp_path / name), *words])

    assert train("run") == 0
    changed = ("tokenizer.kind=huggingface", f"tokenizer.path={other}")
    capsys.readouterr()
    assert train("stale", *changed) == 2
    assert "template" in capsys.readouterr().err.splitlines()[-1]


def test_a_dry_run_finds_that_the_template_is_missing(plain_model, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": say("a", "b")}) + "\n")
    sets = (f"model.path={plain_model}", f"data.train={rows}", "data.template=chat")
    words = [word for one in (*sets, "data.max_length=32") for word in ("--set", one)]
    train = ["train", "--recipe", "baseline", "--output", str(tmp_path / "run"), *words]
    for asked in ([*train, "--dry-run"], train):
        assert main(asked) == 2
        assert "has no chat template" in capsys.readouterr().err.splitlines()[-1]
    joint = [*train, "--set", "data.joint=true", "--dry-run"]
    assert main(joint) == 2
    assert "data.joint has no effect with data.template chat" in capsys.readouterr().err


# --- chat ----------------------------------------------------------------------------------------


@pytest.fixture
def chat(model, monkeypatch, capsys):
    """Runs `chat` on the lines of a standard input that is no terminal."""

    def talk(*lines: str, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        status = main(["chat", str(model), *ON_CPU, *options])
        said = capsys.readouterr()
        return status, said.out, said.err

    return talk


def test_a_conversation_has_a_history(model, chat):
    first = naive(model, say("hi"))
    second = naive(model, say("hi", first.strip(), "more"))
    status, out, _ = chat("hi", "", "more", "/reset", "more", "/exit", "never")
    assert (status, out) == (0, f"{first}\n{second}\n{naive(model, say('more'))}\n")
    with_system = naive(model, say("hi", system="Rhyme."))
    assert chat("hi", options=("--system", "Rhyme."))[1] == f"{with_system}\n"


def test_ctrl_c_stops_the_answer_alone(model, chat, monkeypatch):
    real, calls = Stream.__next__, []

    def interrupted(stream):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(stream)

    monkeypatch.setattr(Stream, "__next__", interrupted)
    status, out, err = chat("hi", "more", options=("--no-speculate",))
    begun, answer = out.split("\n", 1)
    assert naive(model, say("hi")).startswith(begun)
    assert answer == naive(model, say("hi", begun.strip(), "more")) + "\n"
    assert "[stopped]" in err
    assert status == 0


def test_a_full_context_drops_the_oldest_turns(model, chat):
    lines = [f"{letter}" * 25 for letter in "abcd"]
    status, out, err = chat(*lines, options=("--system", "S"))
    assert status == 0
    assert "the context is full: " in err
    answer = naive(model, say(lines[0], system="S"))
    assert out.startswith(answer)
    status, out, err = chat("hi", "x" * 300, "more")
    assert status == 2  # for whoever pipes; the conversation went on, nothing was dropped
    assert "error: the message has" in err
    first = naive(model, say("hi"))
    assert out == f"{first}\n" + naive(model, say("hi", first.strip(), "more")) + "\n"
    assert chat("hi", options=("--max-new-tokens", "160"))[0] == 2


def test_ctrl_c_at_the_prompt_ends_it(chat, model, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

        def readline(self):
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Terminal())
    assert main(["chat", str(model), *ON_CPU]) == 130
    assert "/reset" in capsys.readouterr().err
