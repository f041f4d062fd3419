"""`weighted-mtp prepare self`: the model's own texts, row for row what it read and wrote."""

import json
import re
from pathlib import Path

import pytest
import torch
from tests.helpers import tiny_args, tiny_model
from tests.unit.test_chat_template import MARKED, TEMPLATES, byte_level, row_of, say

from weighted_mtp.cli import prepare_self
from weighted_mtp.cli.main import main
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.datasets import read_jsonl
from weighted_mtp.data.rows.store import open_rows
from weighted_mtp.data.tokens.corpus import STDLIB, Corpus, held_out
from weighted_mtp.data.tokens.openings import HELD_OUT, LENGTHS, draw_openings
from weighted_mtp.data.tokens.row_tokens import tokenise
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from weighted_mtp.decoding import Completion
from weighted_mtp.models.meta_mtp.checkpoints import save_native
from weighted_mtp.pipelines.generating import self_rows
from weighted_mtp.pipelines.generating.journal import (
    request_file,
    template_of_rows,
    work_directory,
)
from weighted_mtp.pipelines.generating.rows import Question, RowMaker, learned

PROMPTS = ["def f(", "class A", "x = ", "for i", "import ", "while "]
BYTES = ByteTokenizer()
NEW = 12


def writes_letters(path: Path, tokenizer: Tokenizer, end: int, heads: int = 3) -> Path:
    """Save a random model that writes printable ASCII and ends of sequence."""
    args = tiny_args(vocab_size=tokenizer.vocab_size, max_seq_len=256, n_future_tokens=heads)
    model = tiny_model(args)
    with torch.no_grad():
        model.output.weight *= 8
        like = model.output.weight[tokenizer.encode("0")[0]].clone()
        for number in range(tokenizer.vocab_size):
            text = tokenizer.decode([number])
            if number == end:
                model.output.weight[number] = like * 0.98
            elif not (text.isascii() and text.isprintable() and len(text) == 1):
                model.output.weight[number] = 0
    save_native(model, path)
    tokenizer.save(path / "tokenizer")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return writes_letters(tmp_path_factory.mktemp("models") / "bytes", BYTES, BYTES.eos_id)


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(byte_level(folder / "files", TEMPLATES["llama 3"]))
    return writes_letters(folder / "chat", tokenizer, tokenizer.control["<|eot_id|>"])


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return path


def prepare(model: Path, out: Path, *options: str | Path, new: int = NEW) -> int:
    fixed = ["--device", "cpu", "--max-new-tokens", str(new), "--batch-size", "3"]
    command = ["prepare", "self", "--model", model, "--out", out, *fixed, *options]
    return main([str(word) for word in command])


def raw(prompts: Path, *options: str) -> list[str]:
    return ["--template", "raw", "--prompts", str(prompts), *options]


def said(capsys, *words: str) -> None:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling", [[], ["--temperature", "4", "--top-k", "8", "--n-samples", "2"]]
)
def test_rows_are_the_texts_of_generate(model, prompts, sampling, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert prepare(model, out, *raw(prompts, *sampling)) == 0
    last, following = capsys.readouterr().out.splitlines()
    assert following.endswith("--set data.template=raw --set data.max_length=512")
    options = ["--template", "raw", "--max-new-tokens", str(NEW), "--device", "cpu", "--json"]
    assert main(["generate", str(model), "--prompts", str(prompts), *options, *sampling]) == 0
    texts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rows = read_jsonl(out)
    assert last.startswith(f"{len(rows)} rows, ")
    assert len(rows) == len(texts)
    finishes = set()
    for row, text in zip(rows, texts, strict=True):
        assert (row["instruction"], row["output"]) == (text["prompt"], text["text"])
        assert row["metadata"]["finish"] == text["finish"]
        assert row["task_id"] == f"self-{text['number']}"
        prompt = [BYTES.bos_id, *BYTES.encode(text["prompt"])]
        example = AlpacaCollator(BYTES, "raw").encode(row)
        end = [BYTES.eos_id] if text["finish"] == "eos" else []
        assert example.ids == [*prompt, *text["tokens"], *end]
        assert example.prompt_length == len(prompt)
        assert example.truncated == (text["finish"] == "length")
        finishes.add(text["finish"])
    if sampling:
        assert finishes == {"eos", "length"}  # else the test would not see both


def test_stop_strings_end_a_row_that_teaches_no_end(model, prompts, tmp_path, capsys):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "rows.jsonl"
    assert prepare(model, whole, *raw(prompts)) == 0
    place, first = max(enumerate(read_jsonl(whole)), key=lambda pair: len(pair[1]["output"]))
    stop = first["output"][5]
    assert prepare(model, out, *raw(prompts, "--stop", stop)) == 0
    row = read_jsonl(out)[place]
    assert row["output"] == first["output"][: first["output"].index(stop)]
    assert row["metadata"]["finish"] == "stop"
    example = AlpacaCollator(BYTES, "raw").encode(row)
    assert BYTES.eos_id not in example.ids


@pytest.mark.parametrize("heads", [["--no-speculate"], ["--speculate", "2"]])
def test_drafts_change_nothing(model, prompts, heads, tmp_path):
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    assert prepare(model, one, *raw(prompts)) == 0
    assert prepare(model, other, *raw(prompts, *heads)) == 0
    assert one.read_bytes() == other.read_bytes()


def test_what_does_not_come_back_is_cut_or_dropped():
    """Half a character, a control token in the middle, another end than the template's."""
    collator = AlpacaCollator(BYTES, "raw")
    maker = RowMaker(collator, lambda ids: BYTES.decode(ids))
    ask = Question("ask")
    prompt = ask.encode(collator)

    def make(tokens: list[int], finish: str, end: int | None = None):
        completion = Completion(tokens, BYTES.decode(tokens), [], finish)
        return maker.make(ask, prompt, completion, end)

    whole = make([*b"abc"], "eos", BYTES.eos_id)
    assert whole.why == ""
    assert whole.ended
    assert whole.tokens == 4
    for tokens, finish, end in (
        ([*b"abc", 0xC3], "length", None),
        ([*b"abc", BYTES.bos_id, *b"d"], "eos", BYTES.eos_id),
        ([*b"abc"], "eos", BYTES.bos_id),
    ):
        cut = make(tokens, finish, end)
        assert cut.why.startswith("whose ")
        assert not cut.ended
        assert cut.row is not None
        assert cut.row["output"] == "abc"
        assert learned(collator.encode(cut.row)) == [*prompt, *b"abc"]
    assert make([0xC3], "length").row is None
    assert make([], "length").row is None


# --- the chat template ---------------------------------------------------------------------------


def test_rows_of_a_chat_are_what_the_model_read_and_wrote(chat, tmp_path, capsys):
    conversations = tmp_path / "chats.jsonl"
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    answer = {"role": "assistant", "content": "of another"}
    lines = [{"instruction": "Add", "input": "1 2"}, {"messages": turns}]
    lines += [{"messages": [*turns, answer, turns[1]]}, {"prompt": "Why?"}]
    conversations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "rows.jsonl"
    options = ["--template", "chat", "--prompts", conversations, "--temperature", "4"]
    assert prepare(chat, out, *options, "--top-k", "8", "--n-samples", "4") == 0
    assert "data.template=chat" in capsys.readouterr().out
    tokenizer = load_tokenizer(chat)
    collator = AlpacaCollator(tokenizer, "chat")
    rows = read_jsonl(out)
    assert len(rows) > 12
    ends = set()
    for row in rows:
        example = collator.encode(row)
        ids = learned(example)
        if "messages" in row:
            assert row["messages"][:-1] == turns
            assert ids[: example.prompt_length] == collator.template.encode_prompt(turns)
        response = ids[example.prompt_length :]
        finished = row["metadata"]["finish"] == "eos"
        assert (response[-1] in tokenizer.control.values()) == finished
        assert example.truncated != finished
        ends.add(finished)
    assert ends == {True, False}


@pytest.mark.parametrize("name", [*TEMPLATES, *MARKED])
def test_an_unfinished_answer_teaches_no_end_of_turn(name, tmp_path):
    tokenizer = load_tokenizer(byte_level(tmp_path, {**TEMPLATES, **MARKED}[name]))
    collator = AlpacaCollator(tokenizer, "chat")
    whole, part = (
        collator.encode(row_of(say("a b", "c d", "e", "f g"), metadata={"finish": finish}))
        for finish in ("eos", "length")
    )
    read = learned(part)
    assert part.truncated
    assert read == whole.ids[: len(read)]
    assert part.prompt_length == whole.prompt_length
    assert tokenizer.decode(read).endswith("f g")
    assert len(read) < len(learned(whole))


def test_messages_need_the_chat_template(model, tmp_path, capsys):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n")
    assert prepare(model, tmp_path / "rows.jsonl", *raw(path)) == 2
    said(capsys, "prompt 1", "--template chat")


# --- training ------------------------------------------------------------------------------------


def test_heads_train_on_the_rows(prompts, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WEIGHTED_MTP_CACHE", str(tmp_path / "cache"))
    plain = writes_letters(tmp_path / "plain", BYTES, BYTES.eos_id, heads=1)
    out = tmp_path / "rows.jsonl"
    assert prepare(plain, out, *raw(prompts)) == 0
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("next: weighted-mtp ").split()
    assert "model.add_heads=3" in command
    tiny = ["training.steps=2", "training.batch_size=2", "training.micro_batch_size=2"]
    tiny += ["runtime.device=cpu", "runtime.compute_dtype=float32", "runtime.threads=1"]
    sets = [word for one in tiny for word in ("--set", one)]
    assert main([*command, *sets, "--output-dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert "were cut" not in said.out + said.err
    assert "`prepare self`" not in said.err

    whole = ["training.steps=3", f"training.batch_size={len(PROMPTS)}", "data.template=short"]
    sets += [word for one in whole for word in ("--set", one)]
    assert main([*command, *sets, "--output-dir", str(tmp_path / "other")]) == 0
    said = capsys.readouterr()
    assert "set data.template=raw" in said.err  # the rows were written with another one
    fitted = re.search(r"fitted to head 1 at (\d+) positions", said.err)
    assert 0 < int(fitted[1]) <= json.loads(request_file(out).read_text())["figures"]["tokens"]


def test_a_chat_model_is_asked_by_its_own_template(chat, model, prompts, tmp_path, capsys):
    few = ["--prompts", str(prompts), "--n", "1", "--max-new-tokens", "2"]
    for name, path in (("chat", chat), ("alpaca", model)):
        out = tmp_path / f"{name}.jsonl"
        assert prepare(path, out, *few) == 0
        assert f"data.template={name}" in capsys.readouterr().out
        assert template_of_rows(out) == name
    assert template_of_rows(prompts) is None


def test_a_large_vocabulary_is_not_compared_whole(model, prompts, tmp_path, capsys, monkeypatch):
    few = ["--prompts", str(prompts), "--n", "1", "--max-new-tokens", "2"]
    for limit in (8192, 100):
        monkeypatch.setattr(prepare_self, "_VOCABULARY", limit)
        assert prepare(model, tmp_path / f"{limit}.jsonl", *few) == 0
        assert ("vocabulary=100" in capsys.readouterr().out) == (limit == 100)


def test_unfinished_rows_are_not_counted_as_too_long(tmp_path):
    path = tmp_path / "rows.jsonl"
    texts = [("length", "abc"), ("eos", "abc"), ("stop", "abc"), (None, "abcdefghijkl")]
    path.write_text(
        "".join(
            json.dumps({"instruction": "a", "output": text, "metadata": {"finish": finish}}) + "\n"
            for finish, text in texts
        )
    )
    store = open_rows(path, tmp_path / "cache")
    rows = tokenise(store, torch.arange(4).numpy(), AlpacaCollator(BYTES, "raw", 8), tmp_path)
    assert rows.truncated == 1
    assert [rows[i].truncated for i in range(4)] == [True, False, True, True]
    assert [BYTES.eos_id in rows[i].ids for i in range(4)] == [False, True, False, False]


# --- openings ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """Some files of the standard library."""
    folder = tmp_path_factory.mktemp("corpus")
    for path in Corpus(STDLIB).files()[:60]:
        (folder / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    return Corpus(folder, suffixes=(".py",))


def test_openings_of_train_and_validation_share_no_document(corpus):
    documents = list(corpus.documents())
    train = draw_openings(BYTES, 40, 1000, 3, corpus=corpus)
    assert train == draw_openings(BYTES, 40, 1000, 3, corpus=corpus)
    assert train != draw_openings(BYTES, 40, 1000, 4, corpus=corpus)
    held = draw_openings(BYTES, 8, 1000, 3, validation=True, corpus=corpus)
    for texts, validation in ((train, False), (held, True)):
        assert len(set(texts)) == len(texts)
        for place, text in enumerate(texts):
            assert len(BYTES.encode(text)) == LENGTHS[place % len(LENGTHS)]
            assert text.lstrip().startswith(("def ", "class ", "async def "))
            sides = {held_out(doc, HELD_OUT) for doc in documents if text in doc}
            assert validation in sides


def test_too_few_openings_take_a_line(model, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        self_rows, "draw_openings", lambda *args: draw_openings(*args, corpus=corpus)
    )
    out = tmp_path / "rows.jsonl"
    assert prepare(model, out, "--held-out", "--n", "100000", "--template", "raw") == 2
    said(capsys, "--n 100000", "held-out documents", "lower --n")
    assert prepare(model, out, "--n", "3", new=509) == 2
    said(capsys, "--max-new-tokens 509")
    assert prepare(model, out, "--held-out", "--n", "3") == 0
    assert all(row["instruction"] == self_rows.CONTINUE for row in read_jsonl(out))


# --- interruption --------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on(model, prompts, tmp_path, monkeypatch, capsys):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "rows.jsonl"
    assert prepare(model, whole, *raw(prompts)) == 0
    keep, kept = self_rows._Work._keep, []

    def interrupted(self, row, text):
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append(text.number)
        return keep(self, row, text)

    monkeypatch.setattr(self_rows._Work, "_keep", interrupted)
    assert prepare(model, out, *raw(prompts)) == 130
    assert "2 of 6 texts are kept" in capsys.readouterr().err
    assert not out.exists()
    journal = work_directory(out) / "journal.jsonl"
    assert len(journal.read_text().splitlines()) == 3
    with journal.open("a") as file:
        file.write('{"number": 5, "ro')  # a kill cut it
    capsys.readouterr()
    assert prepare(model, out, *raw(prompts, "--repetition-penalty", "1.5")) == 2
    said(capsys, "another repetition_penalty", "--overwrite")

    again = []

    def counted(self, row, text):
        again.append(text.number)
        return keep(self, row, text)

    monkeypatch.setattr(self_rows._Work, "_keep", counted)
    assert prepare(model, out, *raw(prompts, "--overwrite")) == 0  # of the same request: goes on
    assert sorted(kept + again) == list(range(len(PROMPTS)))
    assert out.read_bytes() == whole.read_bytes()
    assert not work_directory(out).exists()


def test_a_finished_file_is_said_to_be(model, prompts, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert prepare(model, out, *raw(prompts)) == 0
    first = capsys.readouterr().out.splitlines()
    content = out.read_bytes()
    assert prepare(model, out, *raw(prompts)) == 0
    again = capsys.readouterr().out.splitlines()
    assert again[0].endswith("(finished earlier)")
    assert again[1] == first[1]
    assert prepare(model, out, *raw(prompts), new=5) == 2
    said(capsys, "max_new_tokens: 12, now 5", "--overwrite")
    assert prepare(model, out, *raw(prompts, "--overwrite"), new=5) == 0
    assert out.read_bytes() != content
    capsys.readouterr()
    out.write_bytes(content)
    assert prepare(model, out, *raw(prompts), new=5) == 2
    said(capsys, "was changed")
    request_file(out).unlink()
    assert prepare(model, out, *raw(prompts), new=5) == 2
    said(capsys, "exists, and")
    assert out.read_bytes() == content


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--template", "chta"], ["did you mean chat?"]),
        (["--template", "chat"], ["no chat template"]),
        (["--prompts", "missing.txt"], ["missing.txt", "cannot be read"]),
        (["--held-out", "--prompts", "x"], ["--held-out"]),
        (["--n", "0"], ["--n must be at least 1"]),
        (["--n-samples", "2"], ["--temperature"]),
        (["--batch-size", "0"], ["--batch-size"]),
    ],
)
def test_mistakes_take_a_line(model, options, words, tmp_path, capsys):
    assert prepare(model, tmp_path / "rows.jsonl", *options) == 2
    said(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_mistakes_of_files_take_a_line(model, tmp_path, capsys):
    empty, long, out = tmp_path / "empty.txt", tmp_path / "long.txt", tmp_path / "rows.jsonl"
    empty.write_text("\n")
    long.write_text("short\n" + "x" * 600 + "\n")
    assert prepare(model, out, *raw(empty)) == 2
    said(capsys, "contains no prompt")
    assert prepare(model, out, *raw(long)) == 2
    said(capsys, "prompt 2 has 601 tokens", "--max-new-tokens")
    assert prepare(tmp_path / "nowhere", out) == 2
    said(capsys, "nowhere")
    assert prepare(model, tmp_path, *raw(long)) == 2
    said(capsys, "is a directory")
    assert prepare(model, long / "rows.jsonl", *raw(long)) == 2
    said(capsys, "cannot be written")


def test_the_model_is_loaded_once_all_else_is_checked(model, prompts, tmp_path, monkeypatch):
    out = tmp_path / "rows.jsonl"
    assert prepare(model, out, *raw(prompts)) == 0
    monkeypatch.setattr(self_rows, "ModelWriter", None)
    assert prepare(model, out, *raw(prompts)) == 0
