"""An export as others read it: the plain model in transformers, and a step of its speculator.

transformers gets a directory with the configuration and the tensors alone: some versions run a
model directory's own `generate`, also where `trust_remote_code` is False.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.evaluation.export_check import ExportCheck, HeadCheck
from weighted_mtp.evaluation.speculator_step import SpeculatorStep
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile
from weighted_mtp.models.meta_mtp.transformer import Transformer


def compare_others(
    base: Path,
    forms: Sequence[str],
    model: Transformer,
    rows: Sequence[Tensor],
    limit: float,
    check: ExportCheck,
) -> None:
    """Compare head 1 as transformers has it, and head 2 of every speculator in `forms`."""
    if not any((base / name).is_file() for name in _WEIGHTS):
        check.notes.append("no safetensors files; not read by transformers")
        return
    device = rows[0].device
    head = HeadCheck(1, "transformers")
    check.heads.insert(1, head)
    try:
        plain, problems = _plain(base)
    except Exception as error:  # transformers raises many kinds
        head.fail(f"cannot be loaded ({one_line(error, 160)})")
        return
    plain = plain.to(device).float().eval()
    for problem in problems:
        head.fail(problem)
    steps = {}
    for form in forms:
        drafts = HeadCheck(2, form)
        check.heads.append(drafts)
        if model.args.n_future_tokens < 2:
            drafts.fail("MODEL has no head 2")
            continue
        try:
            step = SpeculatorStep(base / form, plain.config.num_hidden_layers, device)
        except UserError as error:
            drafts.fail(str(error))
            continue
        if not bool(((step.ids >= 0) & (step.ids < model.args.vocab_size)).all()):
            drafts.fail("drafts tokens that MODEL does not have (d2t)")
            continue
        check.notes.append(f"{form} numbers layers as {step.engine} does")
        steps[form] = drafts, step
    V = min(model.args.vocab_size, plain.config.vocab_size)
    with torch.no_grad():
        for row in rows:
            ours = model(row, return_all_heads=True)[0]
            said = plain(row, output_hidden_states=bool(steps), use_cache=False)
            head.add(ours[:, 0, :V], said.logits[0, :, :V], limit)
            for form, (drafts, step) in list(steps.items()):
                try:
                    logits = step.logits(said.hidden_states, plain.get_input_embeddings()(row))
                except UserError as error:
                    drafts.fail(str(error))
                    del steps[form]
                    continue
                drafts.add(ours[:-1, 1][:, step.ids], logits, limit)


_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def _plain(base: Path) -> tuple[Any, list[str]]:
    """The export as transformers loads it for everyone, and keys that it found wrong."""
    from transformers import AutoModelForCausalLM  # slow to import
    from transformers.utils import logging

    bars: Any = logging  # its functions are untyped
    bars.disable_progress_bar()
    with _tensors_only(base) as folder:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    bars.enable_progress_bar()
    plain, info = loaded
    names = {"missing_keys": "lacks", "unexpected_keys": "has unknown", "mismatched_keys": "shapes"}
    tied = {"lm_head.weight"} if plain.config.tie_word_embeddings else set()
    wrong = {text: sorted(map(str, set(info.get(key, ())) - tied)) for key, text in names.items()}
    return plain, [f"{text} {', '.join(keys[:3])}" for text, keys in wrong.items() if keys]


@contextmanager
def _tensors_only(base: Path) -> Iterator[str]:
    """A directory with the export's tensors and its configuration without any mention of code."""
    fields = JsonFile.read(base / "config.json").fields
    with tempfile.TemporaryDirectory() as name:
        plain = {key: value for key, value in fields.items() if key != "auto_map"}
        (Path(name) / "config.json").write_text(json.dumps(plain), encoding="utf-8")
        for path in base.resolve().iterdir():
            if path.name.endswith((".safetensors", ".safetensors.index.json")):
                (Path(name) / path.name).symlink_to(path)
        yield name
