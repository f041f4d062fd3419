"""Open a model and its export, and compare what both say: tokens, logits, weights, drafts.

No code from the export is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from weighted_mtp.core.choices import EXPORT_TOLERANCE, SPECULATORS
from weighted_mtp.core.device import resolve_device
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.model_folder import find_model
from weighted_mtp.decoding import Report, Speculation, Stopping, complete
from weighted_mtp.evaluation.export_check import (
    ExportCheck,
    HeadCheck,
    copies,
    explain_heads,
    explain_shared,
    round_alike,
)
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, open_checkpoint
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.exporting.other_readers import compare_others
from weighted_mtp.pipelines.exporting.read_text import rows_to_read

_WRITTEN = 32
"""Tokens that either side adds to each row: a pass for each, where drafts are poor."""


@dataclass(frozen=True)
class VerifyRequest:
    """What to compare.

    Attributes:
        model: a run, a checkpoint, a model directory, or ORG/NAME on the hub.
        export: a directory in any layout, or the speculator inside one.
        text: to read; None: a built-in text, or random tokens where neither side has a tokenizer.
        tokens: of the text that are read.
        tolerance: of logits and weights, relative; None is `EXPORT_TOLERANCE`, under which drafts
            must be the same, too.
    """

    model: Path
    export: Path
    text: str | None = None
    tokens: int = 128
    tolerance: float | None = None
    device: str = "auto"

    @property
    def limit(self) -> float:
        return EXPORT_TOLERANCE if self.tolerance is None else self.tolerance


def verify_export(request: VerifyRequest) -> ExportCheck:
    """Compare; float32 on both sides, MODEL's weights rounded to the formats that the export has.

    Memory: two models in float32.

    Raises:
        UserError: one of the two cannot be opened, or the text is too short.
    """
    check, device = ExportCheck(), resolve_device(request.device)
    base, forms = _places(request.export)
    only = 2 if base != find_model(request.export) else None  # a speculator: heads 1 and 2
    model = load_meta_mtp_model(request.model, device, torch.float32).eval()
    source = open_checkpoint(base)
    layout, formats = source.layout, source.dtypes
    narrow = sorted({*source.formats.values()} - {"float32"})
    export = load_meta_mtp_model(source, device, torch.float32).eval()
    round_alike(model, formats)
    if narrow:
        check.notes.append(f"MODEL's weights were rounded to the export's {', '.join(narrow)}")
    for head, earlier in copies(model).items():
        check.notes.append(f"in MODEL itself head {head} is an untrained copy of head {earlier}")
    folders = find_model(request.model), base
    rows = rows_to_read(request.text, request.tokens, folders, (model, export), check)
    _compare_ours(model, export, rows, request, check, only)
    del export
    if layout == "huggingface":
        compare_others(base, forms, model, rows, request.limit, check)
    elif forms:
        raise UserError(f"{base}: a speculator is compared with a base in Hugging Face's layout")
    return check


def _places(export: Path) -> tuple[Path, tuple[str, ...]]:
    """The base export, and the speculators to compare."""
    place = find_model(export)
    if (place / "config.json").is_file():
        fields = JsonFile.read(place / "config.json").fields
        draft = fields.get("speculators_model_type") == "eagle3"
        if draft or fields.get("architectures") == ["LlamaForCausalLMEagle3"]:
            return find_model(place.resolve().parent), (place.resolve().name,)
    return place, tuple(form for form in SPECULATORS if (place / form / "config.json").is_file())


def _compare_ours(
    model: Transformer,
    export: Transformer,
    rows: Sequence[Tensor],
    request: VerifyRequest,
    check: ExportCheck,
    only: int | None,
) -> None:
    limit = request.limit
    n, theirs = model.args.n_future_tokens, export.args.n_future_tokens
    heads = [HeadCheck(k, "weighted-mtp") for k in range(1, min(n, theirs, only or n) + 1)]
    check.heads += heads
    if n != theirs and only is None:
        check.failures.append(f"heads: MODEL has {n}, the export {theirs}")
    if model.args.vocab_size != export.args.vocab_size:
        sizes = f"{model.args.vocab_size} tokens, the export {export.args.vocab_size}"
        check.failures.append(f"vocabulary: MODEL has {sizes}")
    V = min(model.args.vocab_size, export.args.vocab_size)
    with torch.no_grad():
        for row in rows:
            ours = model(row, return_all_heads=True)[0]
            said = export(row, return_all_heads=True)[0]
            for k, head in enumerate(heads):
                head.add(ours[:, k, :V], said[:, k, :V], limit)
    _compare_weights(model, export, heads, limit, check)
    if len(heads) > 1:
        _compare_drafts(model, export, rows, heads, request, check)


def _compare_weights(
    model: Transformer,
    export: Transformer,
    heads: Sequence[HeadCheck],
    limit: float,
    check: ExportCheck,
) -> None:
    shapes = [
        {
            name: weight.shape
            for name, weight in side.named_parameters()
            if not name.startswith("extra_heads.")
        }
        for side in (model, export)
    ]
    if shapes[0] != shapes[1]:
        check.failures.append("shape: the two are not the same architecture (weighted-mtp inspect)")
        return
    for k, wrong in explain_heads(model, export, limit).items():
        if k <= len(heads):
            heads[k - 1].fail(wrong)
    shared = explain_shared(model, export, limit)
    if shared:
        check.failures.append(f"weights: {shared}")
    settings, others = asdict(model.args), asdict(export.args)
    names = ("rope_theta", "rope_scaling", "norm_eps")
    changed = [f"{key} {settings[key]} / {others[key]}" for key in names]
    changed = [x for x, key in zip(changed, names, strict=True) if settings[key] != others[key]]
    if changed and not check.equal:
        check.notes.append(f"settings of MODEL / the export: {', '.join(changed)}")


def _compare_drafts(
    model: Transformer,
    export: Transformer,
    rows: Sequence[Tensor],
    heads: Sequence[HeadCheck],
    request: VerifyRequest,
    check: ExportCheck,
) -> None:
    """Continue half of each row with either side, greedily, with drafts of all heads."""
    prompts = [row[0, : (row.shape[1] + 1) // 2].tolist() for row in rows]
    room = min(model.max_positions, export.max_positions) - max(map(len, prompts))
    new = min(_WRITTEN, room)
    sides: list[Report] = []
    texts = []
    for side in (model, export):
        try:
            found, report = complete(
                side,
                prompts,
                Stopping(new),
                speculation=Speculation(k=len(heads), draft_vocabulary=False),
            )
        except ValueError as error:  # ids that the smaller vocabulary lacks
            check.failures.append(f"decoding: {error}")
            return
        sides.append(report)
        texts.append([each.tokens for each in found])
    ours, theirs = sides
    for i, head in enumerate(heads[1:]):
        head.kept = (ours.accepted[i], ours.tested[i]), (theirs.accepted[i], theirs.tested[i])
        if head.kept[0] != head.kept[1] and request.tolerance is None:
            head.fail("keeps another number of drafts")
    if texts[0] != texts[1] and request.tolerance is None:
        check.failures.append("decoding: the texts differ")
    gained = [f"{report.tokens_per_forward:.2f}" for report in sides]
    check.notes.append(f"tokens per forward pass: MODEL {gained[0]}, the export {gained[1]}")
