"""`weighted-mtp generate` from the command line: prompts in, texts out, figures on the side."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.helpers import ROOT, tiny_args, tiny_model
from tests.unit.test_control_tokens import byte_level

from weighted_mtp.cli.main import main
from weighted_mtp.core.terminal import printable
from weighted_mtp.data.collators import TEMPLATES
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer, load_tokenizer
from weighted_mtp.decoding import Stopping, Stream, complete_naively
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, save_native
from weighted_mtp.models.meta_mtp.quantised import quantise
from weighted_mtp.pipelines.evaluating.decoding_figures import DecodingFigures, line, table
from weighted_mtp.pipelines.evaluating.writer import row_seed

RAW = ["--template", "raw", "--device", "cpu", "--max-new-tokens", "12"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A random model of three heads that writes bytes."""
    path = tmp_path_factory.mktemp("models") / "bytes"
    save_native(tiny_model(tiny_args(vocab_size=259, max_seq_len=256)), path)
    ByteTokenizer().save(path / "tokenizer")
    return path


def generate(checkpoint: Path, *options: str | Path) -> int:
    return main(["generate", str(checkpoint), *RAW, *map(str, options)])


def records(capsys) -> list[dict]:
    return [json.loads(text) for text in capsys.readouterr().out.splitlines()]


def naive(checkpoint: Path, prompt: str, count: int = 12) -> list[int]:
    """The greedy tokens by the reference, without EOS."""
    model, tokenizer = load_meta_mtp_model(checkpoint, device="cpu"), ByteTokenizer()
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    return complete_naively(model, ids, Stopping(count, tokenizer.eos_id)).tokens


# --- texts ---------------------------------------------------------------------------------------


def test_text_on_stdout_and_figures_on_stderr(checkpoint, capsys):
    assert generate(checkpoint, "--prompt", "def f(") == 0
    said = capsys.readouterr()
    tokenizer = ByteTokenizer()
    tokens = naive(checkpoint, "def f(")
    assert said.out == tokenizer.decode([*b"x", *tokens])[1:] + "\n"
    last = said.err.splitlines()[-1]
    assert last.startswith(f"{len(tokens)} tokens in ")
    for words in ("tokens/s", "tokens per forward (at most 3)", "drafts kept: head 2", "head 3"):
        assert words in last


def test_drafts_do_not_change_a_greedy_text(checkpoint, capsys):
    texts = []
    drafted = (["--speculate", "2"], ["--speculate", "--adaptive"], ["--tree", "8", "--speculate"])
    for options in ([], ["--no-speculate"], *drafted, ["--tree", "auto"]):
        assert generate(checkpoint, "--prompt", "abc", *options) == 0
        said = capsys.readouterr()
        texts.append(said.out)
        assert ("nodes per pass" in said.err) == (not options or "--tree" in options)
    assert len(set(texts)) == 1
    assert generate(checkpoint, "--prompt", "abc", "--lossy-typical", "--temperature", "1") == 0


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_rounded_weights_write_what_the_rounded_model_does(bits, checkpoint, capsys):
    """With drafts and without; the checkpoint stays as it is."""
    before = (checkpoint / "metadata.json").read_text()
    texts = []
    for more in ([], ["--no-speculate"]):
        words = ["--dtype", bits, "--ties", "exact", "--json", "--prompt", "def f("]
        assert generate(checkpoint, *words, *more) == 0
        texts += [record["text"] for record in records(capsys)]
    model, tokenizer = load_meta_mtp_model(checkpoint, device="cpu"), ByteTokenizer()
    quantise(model, bits)
    ids = [tokenizer.bos_id, *tokenizer.encode("def f(")]
    wanted = complete_naively(model, ids, Stopping(12, tokenizer.eos_id)).tokens
    assert texts == [tokenizer.decode([*b"x", *wanted])[1:]] * 2
    assert (checkpoint / "metadata.json").read_text() == before


def test_a_terminal_sees_the_text_as_it_comes(checkpoint, capsys, monkeypatch):
    assert generate(checkpoint, "--prompt", "def") == 0
    piped = capsys.readouterr().out
    pieces = []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    plain = Stream.__next__

    def noted(stream):
        found = plain(stream)
        pieces.append(found[0].text)
        return found

    monkeypatch.setattr(Stream, "__next__", noted)
    assert generate(checkpoint, "--prompt", "def") == 0
    said = capsys.readouterr()
    assert piped == "".join(pieces) + "\n"
    assert said.out == printable(piped, keep="\n\t")
    assert len(pieces) > 2
    assert "tokens/s" in said.err
    assert generate(checkpoint, "--prompt", "def", "--prompt", "x") == 0  # whole, and headed
    said = capsys.readouterr()
    assert said.out.startswith(printable(piped, keep="\n\t"))
    assert "── prompt 2, text 1" in said.err


def test_json_records(checkpoint, capsys):
    asked = ["--prompt", "ab", "--prompt", "c", "--json", "--logprobs"]
    assert generate(checkpoint, *asked) == 0
    first, second = records(capsys)
    assert [first["prompt"], second["prompt"]] == ["ab", "c"]
    for record in (first, second):
        assert record["tokens"] == naive(checkpoint, record["prompt"])
        assert len(record["logprobs"]) == len(record["tokens"])
        assert all(logprob < 0 for logprob in record["logprobs"])
        assert record["finish"] in ("eos", "length")
    assert generate(checkpoint, *asked[:-1], "--batch-size", "1") == 0
    for record, again in zip((first, second), records(capsys), strict=True):
        del record["logprobs"]
        assert again == record


def test_stop_strings(checkpoint, capsys):
    asked = ["--prompt", "q", "--json", "--max-new-tokens", "60", "--temperature", "1.5"]
    assert generate(checkpoint, *asked) == 0
    (whole,) = records(capsys)
    stop = next(letter for letter in whole["text"] if letter.isascii() and letter != "\\")
    assert generate(checkpoint, *asked, "--stop", stop, "--stop", "never\\n") == 0
    (stopped,) = records(capsys)
    assert stopped["finish"] == "stop"
    assert stopped["text"] == whole["text"][: whole["text"].index(stop)]
    assert stopped["tokens"] == whole["tokens"][: len(stopped["tokens"])]


def test_a_stop_string_that_names_a_control_token(checkpoint, capsys):
    """The text never contains it: the token itself ends the row."""
    asked = ["--prompt", "q", "--json", "--max-new-tokens", "60", "--temperature", "1.5"]
    pad = ByteTokenizer().control["<pad>"]
    for seed in range(40):  # until a text has the token
        assert generate(checkpoint, *asked, "--seed", seed) == 0
        (whole,) = records(capsys)
        if pad in whole["tokens"]:
            break
    assert generate(checkpoint, *asked, "--seed", seed, "--stop", "<pad>") == 0
    (stopped,) = records(capsys)
    assert stopped["tokens"] == whole["tokens"][: whole["tokens"].index(pad)]
    assert stopped["finish"] == "eos"


@pytest.fixture
def fast_folder(tmp_path) -> Path:
    """A Hugging Face tokenizer, and in `native/` a random model with it."""
    tokenizer = load_tokenizer(byte_level(tmp_path))
    args = tiny_args(vocab_size=tokenizer.vocab_size, max_seq_len=256)
    save_native(tiny_model(args), tmp_path / "native")
    tokenizer.save(tmp_path / "native" / "tokenizer")
    return tmp_path


def test_every_eos_of_the_model_ends_a_text(fast_folder, capsys):
    """Which they are, config.json or generation_config.json says; a saved tokenizer keeps it."""
    model = fast_folder / "native"
    assert generate(model, "--prompt", "q", "--json") == 0
    (whole,) = records(capsys)
    end = whole["tokens"][7]
    config = {"eos_token_id": [load_tokenizer(model).eos_id, end]}
    (fast_folder / "config.json").write_text(json.dumps(config))
    load_tokenizer(fast_folder).save(model / "tokenizer")
    for speculate in ("--no-speculate", "--speculate"):
        assert generate(model, "--prompt", "q", "--json", speculate) == 0
        (stopped,) = records(capsys)
        assert stopped["tokens"] == whole["tokens"][: whole["tokens"].index(end)]
        assert stopped["finish"] == "eos"


def test_a_prompt_that_spells_control_tokens_stays_text(fast_folder, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "weighted_mtp.pipelines.evaluating.writer.complete", lambda *a: seen.append(a)
    )
    with pytest.raises(TypeError):  # nothing comes back
        generate(fast_folder / "native", "--prompt", "<s>a</s><|im_end|>")
    (ids,), tokenizer = seen[0][1], load_tokenizer(fast_folder)
    assert [i for i in ids if i in tokenizer.control.values()] == [tokenizer.bos_id]
    assert tokenizer.decode(ids) == "<s>a</s><|im_end|>"


def test_escapes_of_stop_strings(checkpoint, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "weighted_mtp.pipelines.evaluating.writer.complete", lambda *a: seen.append(a)
    )
    with pytest.raises(TypeError):  # nothing comes back
        generate(checkpoint, "--prompt", "q", "--stop", r"a\n\tb\\n", "--stop", "é")
    assert seen[0][2].strings == ("a\n\tb\\n", "é")


def test_samples_have_seeds_of_their_own(checkpoint, capsys):
    sampled = ["--prompt", "a", "--prompt", "a", "--temperature", "0.8", "--json"]
    assert generate(checkpoint, *sampled, "--n-samples", "3") == 0
    many = records(capsys)
    assert [(r["number"], r["sample"]) for r in many] == [(n, s) for n in (0, 1) for s in (0, 1, 2)]
    assert len({r["text"] for r in many}) == 6
    assert generate(checkpoint, *sampled, "--n-samples", "2", "--batch-size", "3") == 0
    assert records(capsys) == [r for r in many if r["sample"] < 2]
    assert generate(checkpoint, *sampled, "--seed", "1") == 0
    assert records(capsys)[0]["text"] != many[0]["text"]


def test_a_row_seed_is_of_its_address_alone():
    seeds = {row_seed(name, sample) for name in ("a", "a0", "b", "\ud800") for sample in range(50)}
    assert len(seeds) == 200
    assert row_seed("HumanEval/0", 0) == row_seed("HumanEval/0", 0)
    assert all(0 <= seed < 2**64 for seed in seeds)


# --- prompts -------------------------------------------------------------------------------------


def stdin(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_prompts_of_files_and_standard_input(checkpoint, tmp_path, capsys, monkeypatch):
    lines, objects = tmp_path / "p.txt", tmp_path / "p.jsonl"
    lines.write_bytes(b"one\r\n\n  two {\n")
    content = b'{"prompt": "one"}\n{"instruction": "two", "input": "in"}\n'
    objects.write_bytes(content)
    assert generate(checkpoint, "--prompt", "zero", "--prompts", lines, "--json") == 0
    assert [r["prompt"] for r in records(capsys)] == ["zero", "one", "  two {"]
    assert generate(checkpoint, "--prompts", objects, "--json") == 0
    of_file = records(capsys)
    assert [(r["prompt"], r.get("input")) for r in of_file] == [("one", None), ("two", "in")]
    stdin(monkeypatch, content)
    assert generate(checkpoint, "--prompts", "-", "--json") == 0
    assert records(capsys) == of_file
    stdin(monkeypatch, b"one\ntwo\n")
    assert generate(checkpoint, "--prompts", "-", "--json") == 0
    assert [r["prompt"] for r in records(capsys)] == ["one", "two"]
    stdin(monkeypatch, b"one\ntwo\n")
    assert generate(checkpoint, "--prompt", "-", "--json") == 0
    assert [r["prompt"] for r in records(capsys)] == ["one\ntwo\n"]


def test_a_template_is_put_around_a_prompt(checkpoint, capsys):
    rendered = TEMPLATES["short"].render("do it")
    assert generate(checkpoint, "--prompt", rendered, "--json") == 0
    (raw,) = records(capsys)
    assert generate(checkpoint, "--prompt", "do it", "--template", "short", "--json") == 0
    (templated,) = records(capsys)
    assert templated["tokens"] == raw["tokens"]


# --- figures -------------------------------------------------------------------------------------


def test_figures_of_nothing():
    record = DecodingFigures(2).record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert line(record) == (
        "0 tokens in 0.0 s, – tokens/s, – tokens per forward (at most 2); drafts kept: head 2 –"
    )
    assert [name for name, _, _ in table(record)] == ["tokens/s", "per forward", "head 2"]


# --- mistakes, and ends before the end -----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--prompt", "--prompts"]),
        (["--prompt", "-", "--prompts", "-"], ["standard input", "once"]),
        (["--prompts", "/absent.txt"], ["/absent.txt", "cannot be read"]),
        (["--prompt", "x", "--n-samples", "0"], ["--n-samples must be at least 1"]),
        (["--prompt", "x", "--n-samples", "2"], ["--n-samples", "--temperature"]),
        (["--prompt", "x", "--batch-size", "0"], ["--batch-size must be at least 1"]),
        (["--prompt", "x", "--logprobs"], ["--logprobs", "--json"]),
        (["--prompt", "x", "--max-new-tokens", "0"], ["--max-new-tokens must be at least 1"]),
        (["--prompt", "x", "--temperature", "-0.5"], ["temperature must be 0", "-0.5"]),
        (["--prompt", "x", "--temperature", "nan"], ["temperature must be 0", "nan"]),
        (["--prompt", "x", "--top-p", "0"], ["top_p must be in (0, 1]"]),
        (["--prompt", "x", "--top-k", "-1"], ["top_k must be at least 1"]),
        (["--prompt", "x", "--min-p", "-1"], ["min_p must be in [0, 1]"]),
        (["--prompt", "x", "--repetition-penalty", "-1"], ["repetition_penalty"]),
        (["--prompt", "x", "--ties", "often"], ["ties must be auto, exact or fast"]),
        (["--prompt", "x", "--stop", ""], ["--stop"]),
        (["--prompt", "x", "--speculate", "9"], ["--speculate", "need 9 heads", "has 3"]),
        (["--prompt", "x", "--speculate", "-1"], ["--speculate -1", "at least 1"]),
        (
            ["--prompt", "x", "--speculate", "two"],
            ["--speculate 'two'", "put the checkpoint before"],
        ),
        (["--prompt", "x", "--no-speculate", "--adaptive"], ["--adaptive"]),
        (["--prompt", "x", "--no-speculate", "--tree", "4"], ["--tree does not go with --no-spec"]),
        (["--prompt", "x", "--speculate", "1", "--tree", "4"], ["--tree", "k of at least 2"]),
        (["--prompt", "x", "--lossy-typical", "--tree", "4"], ["--tree", "exact"]),
        (["--prompt", "x", "--tree", "1"], ["--tree", "from 2 on, got 1"]),
        (["--prompt", "x", "--tree", "many"], ["--tree 'many'", "auto"]),
        (["--prompt", "x", "--tree", "4", "--batch-size", "2"], ["--tree", "--batch-size 2"]),
        (["--prompt", "x", "--device", "gpu"], ["device 'gpu'"]),
        (["--prompt", "caf\udce9"], ["'caf\\udce9'", "is not valid UTF-8 at character 4"]),
        (["--prompt", "x", "--stop", "\udcff"], ["'\\udcff'", "is not valid UTF-8"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_a_mistake_is_one_line(options, words, checkpoint, capsys):
    assert generate(checkpoint, *options) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1, said.err
    assert said.err.startswith("error: ")
    for word in words:
        assert word in said.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["contains no prompt"]),
        (b'{"prompt": "a"}\n{"prompt": 3}\n', ["line 2", "'prompt' or 'instruction'"]),
        (b'{"prompt": "a"}\nplain\n', ["line 2", "JSON"]),
        (b'{"text": "a"}\n', ["line 1", "'prompt' or 'instruction'"]),
        (b'{"prompt": "a", "input": []}\n', ["line 1"]),
        (b'{"prompt": "\\ud800"}\n', ["line 1", "'prompt' contains a lone surrogate"]),
        (
            b'{"prompt": "a", "input": "\\uDFFF."}\n',
            ["line 1", "'input' contains a lone surrogate"],
        ),
        (b'{"prompt": "\xff"}\n', ["line 1", "not UTF-8"]),
    ],
)
def test_a_file_of_prompts_that_is_none(content, words, checkpoint, tmp_path, capsys):
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    assert generate(checkpoint, "--prompts", path) == 2
    (error,) = capsys.readouterr().err.splitlines()
    for word in (str(path), *words):
        assert word in error


def test_prompts_that_the_model_cannot_take(checkpoint, tmp_path, capsys):
    path = tmp_path / "p.txt"
    path.write_bytes(b"caf\xe9\n")
    assert generate(checkpoint, "--prompts", path) == 2
    assert f"error: {path}, line 1: is not UTF-8" in capsys.readouterr().err
    assert generate(checkpoint, "--prompt", "x", "--prompt", "y" * 600) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("error: prompt 2 has 601 tokens")
    assert said.out == ""  # nor is the first one written


def test_an_argument_that_the_terminal_did_not_encode(checkpoint):
    """Bytes as the system hands them over; one line, not a traceback."""
    command = [sys.executable, "-m", "weighted_mtp", "generate", str(checkpoint), *RAW, "--prompt"]
    done = subprocess.run([*command, b"\xff"], capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stdout == b""
    assert b"('\\udcff') is not valid" in done.stderr.splitlines()[-1]
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("option", [["--prompt", "-"], ["--prompts", "-"]])
def test_standard_input_that_is_not_utf8(option, checkpoint, capsys, monkeypatch):
    stdin(monkeypatch, b"caf\xe9")
    assert generate(checkpoint, *option) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "standard input" in error
    assert "is not UTF-8" in error


@pytest.mark.parametrize("option", ["--prompt", "--prompts"])
def test_standard_input_that_is_closed(option, checkpoint):
    command = [sys.executable, "-m", "weighted_mtp", "generate", str(checkpoint), option, "-"]
    shell = ["bash", "-c", '"$@" <&-', "bash", *command]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "standard input is closed" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_tokenizer_of_another_model(tmp_path, capsys):
    save_native(tiny_model(tiny_args(vocab_size=37)), tmp_path / "model")
    ByteTokenizer().save(tmp_path / "model" / "tokenizer")
    assert generate(tmp_path / "model", "--prompt", "x") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "the tokenizer has 259 tokens and the model only 37" in error


def test_ctrl_c_ends_quietly(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    plain, steps = Stream.__next__, []

    def interrupted(stream):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return plain(stream)

    monkeypatch.setattr(Stream, "__next__", interrupted)
    assert generate(checkpoint, "--prompt", "def") == 130
    said = capsys.readouterr()
    assert said.out.endswith("\n")
    assert said.err.splitlines()[-1] == "interrupted"


def test_a_reader_that_leaves_is_no_error(checkpoint, tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a prompt\n" * 2000)
    command = [sys.executable, "-m", "weighted_mtp", "generate", str(checkpoint), *RAW]
    with subprocess.Popen(
        [*command, "--prompts", str(path), "--json", "--max-new-tokens", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["number"] == 0
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert process.returncode == 0
    assert [text for text in said.splitlines() if "loaded" not in text] == []
