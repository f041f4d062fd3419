"""Import paths of version 0.1.0 that have moved. They work in this version, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader
else:
    Loader = object  # importlib.abc is slow to import

MOVED = {
    "core.section": "core.config.section",
    "core.sections": "core.config.sections",
    "core.data_sections": "core.config.data",
    "core.text_section": "core.config.text",
    "core.sampling_section": "core.config.sampling",
    "core.runtime_section": "core.config.runtime",
    "data.processes": "core.processes",
    "data.store": "data.rows.store",
    "data.convert_rows": "data.rows.convert",
    "data.row_columns": "data.rows.columns",
    "data.metadata": "data.rows.metadata",
    "data.tokenizers": "data.tokens.tokenizers",
    "data.token_store": "data.tokens.row_tokens",
    "data.row_encoding": "data.tokens.encode_rows",
    "data.token_stream": "data.tokens.text_tokens",
    "data.corpus": "data.tokens.corpus",
    "data.huggingface_tokenizer": "data.tokens.huggingface",
    "data.sentencepiece_tokenizer": "data.tokens.sentencepiece",
    "data.tokenizer_files": "data.tokens.files",
    "data.derived_tokenizer": "data.tokens.derived",
    "data.windows": "data.tokens.windows",
    "data.document_ids": "data.tokens.document_ids",
    "data.micro_tasks": "micro_tasks",
    "analysis.plots": "analysis.charts",
    "evaluation.passk": "evaluation.scores",
    "pipelines.trainer": "pipelines.training.trainer",
    "pipelines.training_module": "pipelines.training.module",
    "pipelines.step_figures": "pipelines.training.step",
    "pipelines.step_weights": "pipelines.training.step",
    "pipelines.best": "pipelines.training.policies",
    "pipelines.nonfinite": "pipelines.training.policies",
    "pipelines.interruption": "pipelines.training.policies",
    "pipelines.optimization": "pipelines.training.optimization",
    "pipelines.training_data": "pipelines.training.data",
    "pipelines.reference": "pipelines.training.reference",
    "pipelines.objectives": "pipelines.training.objectives",
    "pipelines.sharded_checkpoints": "pipelines.checkpointing.sharded",
    "pipelines.restoring": "pipelines.checkpointing.restoring",
    "pipelines.model_start": "pipelines.checkpointing.model_start",
    "pipelines.remote": "pipelines.checkpointing.remote_directory",
    "pipelines.remote_runs": "pipelines.checkpointing.remote_runs",
    "pipelines.remote_copies": "pipelines.checkpointing.remote_copies",
    "pipelines.checkpoint_sums": "pipelines.checkpointing.sums",
    "pipelines.resuming": "pipelines.checkpointing.resuming",
    "pipelines.resume_rules": "pipelines.checkpointing.resume_rules",
    "pipelines.hf_files": "pipelines.checkpointing.hub_files",
    "pipelines.planner": "pipelines.planning.plan",
    "pipelines.estimate": "pipelines.planning.estimate",
    "pipelines.memory": "pipelines.planning.memory",
    "pipelines.memory_inputs": "pipelines.planning.memory_inputs",
    "pipelines.run_evaluation": "pipelines.evaluating.evaluator",
    "pipelines.run_benchmark": "pipelines.evaluating.evaluator",
    "pipelines.completion_sources": "pipelines.evaluating.sources",
    "pipelines.model_writer": "pipelines.evaluating.writer",
    "pipelines.decoding_figures": "pipelines.evaluating.decoding_figures",
    "pipelines.traces": "pipelines.evaluating.traces",
    "pipelines.experiment": "pipelines.experiments",
    "pipelines.trackers": "pipelines.tracking.trackers",
    "pipelines.tracker_backends": "pipelines.tracking.backends",
}
"""Old and new names, relative to `weighted_mtp`. `core.config` and `evaluation.sandbox`, which were
modules and are packages, export their former names themselves."""


class _Finder:
    """Imports the new module for an old path. It comes last in `sys.meta_path`, so it is asked only
    for what does not exist."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Called by the import system."""
        root, *parts = fullname.split(".")
        new = MOVED.get(".".join(parts[:2])) if root == "weighted_mtp" else None
        if new is None:
            return None
        return ModuleSpec(fullname, _Loader(".".join([root, new, *parts[2:]])))


class _Loader(Loader):
    def __init__(self, new: str) -> None:
        self.new = new

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to the import system."""

    def exec_module(self, module: ModuleType) -> None:
        """Warn, and let the old name stand for the new module."""
        old = module.__name__
        warnings.warn(
            f"{old} has moved to {self.new}; the old path will not work in the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        new = importlib.import_module(self.new)
        if not hasattr(new, "__path__"):
            sys.modules[old] = new
            return
        # An import of old.child sets old.child: on the new package that would hide a name.
        module.__path__ = []
        module.__dict__["__getattr__"] = partial(getattr, new)
        module.__dict__["__all__"] = list(getattr(new, "__all__", ()))


def install() -> None:
    """Let old paths be imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
