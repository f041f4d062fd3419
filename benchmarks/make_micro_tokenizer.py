"""Train the byte-level BPE tokenizer that is shipped for the micro tasks.

    python benchmarks/make_micro_tokenizer.py

Numbers are cut into groups of at most two digits: few enough tokens that each is seen often, and
telling enough that one points to what follows it. Bytes that were never seen are still in the
alphabet, so every text round-trips.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from weighted_mtp.data.tokens.tokenizers import MICRO_VOCABULARY, HuggingFaceTokenizer
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.micro_tasks import generate

VOCABULARY = 1024
PROBLEMS = 6000


def main() -> None:
    """Generate training rows, train, store, say how well it packs."""
    with Sandbox() as judge:
        rows = generate(PROBLEMS, 7, judge, "train", 1, 0)
    texts = [text for row in rows for text in (row["instruction"], "\n>>>\n", row["output"])]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,2}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    every_pair = [f"{tens}{ones}" for tens in range(10) for ones in range(10)] * len(rows)
    tokenizer.train_from_iterator([*texts, *every_pair], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # a text begins with BOS
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    folder: Path = MICRO_VOCABULARY
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    shipped = HuggingFaceTokenizer(folder)
    characters = sum(map(len, texts))
    tokens = sum(len(shipped.encode(text)) for text in texts)
    print(f"{shipped.vocab_size} tokens, {characters / tokens:.2f} characters a token")


if __name__ == "__main__":
    main()
