"""From rows to padded batches: prompt mask, EOS, truncation, padding, templates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weighted_mtp.core.types import IGNORE_INDEX, Row
from weighted_mtp.data.collators import TEMPLATES, AlpacaCollator, PromptTemplate
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer, SentencePieceTokenizer
from weighted_mtp.losses import count_targets, shift_labels

TOKENIZER = ByteTokenizer()
BOS, EOS, PAD = TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id
PLAIN = PromptTemplate("{instruction}>", "{instruction}|{input}>")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


class NoBos(ByteTokenizer):
    """A model trained without BOS, whose padding is its EOS (as GPT-2's is)."""

    bos_id = None
    pad_id = EOS


def make_row(instruction="ask", output="reply", input_text="") -> Row:
    return Row(
        instruction=instruction,
        input=input_text,
        output=output,
        task_id="t",
        is_correct=True,
        metadata={},
    )


def make_collator(max_length=64, tokenizer=TOKENIZER, template=PLAIN) -> AlpacaCollator:
    return AlpacaCollator(tokenizer, template, max_length)


# --- one row -------------------------------------------------------------------------------------


def test_a_row_is_bos_prompt_response_eos():
    example = make_collator().encode(make_row("ask", "reply", "with"), index=7)
    assert example.ids == [BOS, *b"ask|with>", *b"reply", EOS]
    assert example.prompt_length == 1 + len("ask|with>")
    assert not example.truncated
    assert example.row == 7


def test_without_bos_a_row_starts_with_its_prompt():
    example = make_collator(tokenizer=NoBos()).encode(make_row())
    assert example.ids == [*b"ask>", *b"reply", EOS]
    assert example.prompt_length == 4


def test_the_prompt_of_generation_is_the_prompt_of_training():
    for template in TEMPLATES:
        collator = make_collator(1000, template=template)
        for input_text in ("", "given"):
            example = collator.encode(make_row(input_text=input_text))
            prompt = collator.encode_prompt("ask", input_text)
            assert example.ids[: example.prompt_length] == prompt


def test_indentation_of_a_response_is_kept():
    output = "    return 1\n\n"
    example = make_collator().encode(make_row(output=output))
    assert TOKENIZER.decode(example.ids[example.prompt_length :]) == output


# --- targets -------------------------------------------------------------------------------------


def test_the_prompt_is_masked_and_eos_is_the_last_target():
    collator = make_collator()
    batch = collator([collator.encode(make_row("ask", "reply"))])
    prompt = 1 + len("ask>")
    assert batch.labels.tolist() == [[IGNORE_INDEX] * prompt + [*b"reply", EOS]]
    assert batch.tokens.tolist() == [[BOS, *b"ask>", *b"reply"]]
    targets = shift_labels(batch.labels, n=3, length=batch.tokens.shape[1])
    assert targets[0, prompt - 1].tolist() == list(b"rep")  # the last prompt token predicts r, e, p
    assert targets[0, -1].tolist() == [EOS, IGNORE_INDEX, IGNORE_INDEX]
    assert count_targets(targets).tolist() == [6, 6, 6]


def test_an_empty_response_still_learns_to_end():
    collator = make_collator()
    labels = collator([collator.encode(make_row(output=""))]).labels
    assert labels[labels != IGNORE_INDEX].tolist() == [EOS]


# --- truncation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spare", [-7, -6, -5, -1, 0, 1])
def test_truncation_is_reported_and_has_no_eos(spare):
    whole = [BOS, *b"ask>", *b"reply", EOS]
    max_length = len(whole) + spare
    collator = make_collator(max_length)
    example = collator.encode(make_row())
    assert example.ids == whole[:max_length]
    assert example.truncated == (spare < 0)
    assert (EOS in example.ids) == (spare >= 0)
    assert example.prompt_length == min(5, max_length)
    batch = collator([example])
    assert batch.truncated.tolist() == [spare < 0]
    assert (batch.labels != IGNORE_INDEX).sum() == max(0, len(example.ids) - 5)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rows=st.lists(st.tuples(texts, texts, texts), max_size=4), max_length=st.integers(2, 40))
def test_any_batch(rows, max_length):
    """Lengths, shapes, masks and flags of any rows at any length."""
    collator = make_collator(max_length)
    examples = [collator.encode(make_row(a, b, c), i) for i, (a, b, c) in enumerate(rows)]
    batch = collator(examples)
    B, S = batch.tokens.shape
    assert max(1, len(rows)) == B
    assert batch.labels.shape == (B, S + 1)
    assert 1 <= S < max(3, max_length + 1)
    assert batch.tokens.dtype == batch.labels.dtype == torch.long
    assert batch.truncated.shape == batch.rows.shape == (B,)
    assert batch.tokens.is_contiguous()
    for i, example in enumerate(examples):
        end = len(example.ids)
        assert end <= max_length
        assert batch.tokens[i].tolist() == (example.ids + [PAD] * (S + 1 - end))[:S]
        response = example.ids[example.prompt_length :]
        before, after = [IGNORE_INDEX] * example.prompt_length, [IGNORE_INDEX] * (S + 1 - end)
        assert batch.labels[i].tolist() == before + response + after
        assert example.truncated != (example.ids[-1] == EOS)
        assert batch.rows[i] == i


# --- padding -------------------------------------------------------------------------------------


def test_padding_is_inert_even_where_it_is_eos():
    collator = make_collator(tokenizer=NoBos())
    short, long = (collator.encode(make_row(output=text)) for text in ("a", "a long reply"))
    alone, padded = collator([short]), collator([short, long])
    width = alone.labels.shape[1]
    assert torch.equal(padded.labels[0, :width], alone.labels[0])
    assert (padded.labels[0, width:] == IGNORE_INDEX).all()
    assert (padded.labels[0] == EOS).sum() == 1
    assert (padded.tokens[0, width:] == EOS).all()
    for labels in (padded.labels[:1], alone.labels):
        assert count_targets(shift_labels(labels, n=2)).tolist() == [2, 2]


def test_a_batch_is_padded_to_a_multiple_but_not_past_the_longest_row():
    collator = AlpacaCollator(ByteTokenizer(), "short", max_length=30, pad_to_multiple=8)
    example = collator.encode(make_row())

    def width(length: int) -> int:
        return collator([example._replace(ids=list(range(length)))]).tokens.shape[1]

    assert [width(n) for n in (2, 9, 10, 25, 26, 30)] == [8, 8, 16, 24, 29, 29]


def test_an_empty_batch_has_nothing_to_learn():
    batch = make_collator()([])
    assert batch.tokens.shape == (1, 1)
    assert batch.labels.tolist() == [[IGNORE_INDEX] * 2]
    assert batch.truncated.tolist() == [False]
    assert batch.rows.tolist() == [-1]
    assert 0 <= int(batch.tokens[0, 0]) < TOKENIZER.vocab_size


def test_a_batch_moves_whole():
    collator = make_collator()
    moved = collator([collator.encode(make_row())]).to(torch.device("meta"))
    assert all(tensor.device.type == "meta" for tensor in moved if tensor is not None)


# --- templates -----------------------------------------------------------------------------------


def test_the_alpaca_prompt_without_input():
    assert TEMPLATES["alpaca"].render("Add 1 and 2.") == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd 1 and 2.\n\n### Response:\n"
    )


def test_the_alpaca_prompt_with_input():
    assert TEMPLATES["alpaca"].render("Add them.", "1 2") == (
        "Below is an instruction that describes a task, "
        "paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd them.\n\n### Input:\n1 2\n\n### Response:\n"
    )


@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_a_blank_input_is_no_input(blank):
    for template in TEMPLATES.values():
        assert template.render("Add.", blank) == template.render("Add.")


@pytest.mark.parametrize(
    "text",
    ["{}", "{0}", "{x}", 'd = {"a": {1}}', "f'{a!r:>{w}}'", "%s %(a)s", "{input}", "{instruction}"],
)
def test_braces_in_a_text_are_left_alone(text):
    """Instructions speak of dicts, f-strings and templates; none of it is a placeholder of ours."""
    assert PLAIN.render(text) == f"{text}>"
    assert PLAIN.render(text, "given") == f"{text}|given>"
    assert PLAIN.render("ask", text) == f"ask|{text}>"
    assert text in TEMPLATES["alpaca"].render(text)


def test_an_unknown_template_is_refused():
    with pytest.raises(KeyError, match="chatml"):
        AlpacaCollator(TOKENIZER, "chatml")


# --- prompt and response as one text -------------------------------------------------------------


class Pairs(ByteTokenizer):
    """Merges every two characters, wherever they stand."""

    fingerprint = "pairs"

    def encode(self, text):
        return [ord(text[i]) for i in range(0, len(text), 2)]

    def encode_with_ends(self, text):
        return self.encode(text), [min(i + 2, len(text)) for i in range(0, len(text), 2)]


@pytest.mark.parametrize(("instruction", "prompt_tokens"), [("ask", 1 + 2), ("as", 1 + 1)])
def test_a_token_that_straddles_the_border_is_a_target(instruction, prompt_tokens):
    """`ask>` is two whole tokens; of `as>` the second has a letter of the response."""
    joint = AlpacaCollator(Pairs(), PLAIN, 64, joint=True)
    example = joint.encode(make_row(instruction, "reply"))
    assert example.ids == [BOS, *Pairs().encode(f"{instruction}>reply"), EOS]
    assert example.prompt_length == prompt_tokens
    apart = AlpacaCollator(Pairs(), PLAIN, 64).encode(make_row(instruction, "reply"))
    assert apart.ids == [BOS, *Pairs().encode(f"{instruction}>"), *Pairs().encode("reply"), EOS]


@given(texts, texts, st.integers(2, 40))
def test_bytes_make_no_difference_between_joint_and_apart(instruction, output, max_length):
    row = make_row(instruction, output)
    made = [
        AlpacaCollator(TOKENIZER, PLAIN, max_length, joint=j).encode(row) for j in (True, False)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize("joint", [True, False])
def test_real_merges_across_the_border(joint, sentencepiece_model):
    """A response that begins with spaces, after a prompt that ends with a newline."""
    tokenizer = SentencePieceTokenizer(sentencepiece_model)
    collator = AlpacaCollator(tokenizer, "alpaca", 512, joint=joint)
    row = make_row("Write it.", "    return x\n")
    example = collator.encode(row)
    text = collator.template.render("Write it.") + row["output"]
    assert tokenizer.decode(example.ids) == text
    response = tokenizer.decode([tokenizer.encode("a")[0], *example.ids[example.prompt_length :]])
    assert response.endswith("    return x\n")
    assert "Response" not in response


def test_the_fingerprint_tells_collators_apart():
    made = [
        AlpacaCollator(TOKENIZER, PLAIN, 64),
        AlpacaCollator(NoBos(), "short", 64),
        AlpacaCollator(TOKENIZER, PLAIN, 65),
        AlpacaCollator(TOKENIZER, PLAIN, 64, joint=True),
        AlpacaCollator(Pairs(), PLAIN, 64),
    ]
    assert len({collator.fingerprint for collator in made}) == len(made)
    assert made[0].fingerprint == AlpacaCollator(TOKENIZER, PLAIN, 64, 8).fingerprint
