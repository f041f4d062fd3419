"""Names and defaults that a command line shows, apart from what they stand for: `--help` must not
wait for PyTorch. Each is used by the module that knows what the names mean."""

from __future__ import annotations

from typing import Literal

NUMBER_FORMATS = ("float32", "bfloat16", "float16", "float64")
"""Formats of weights and arithmetic (core/device.py)."""
MICRO = "micro"
BENCHMARKS = ("humaneval", "mbpp", "codecontests")
"""Data sets of `evaluate`, besides the micro tasks (evaluation/benchmarks.py)."""
SPECULATORS = ("eagle3", "speculators")
ENGINES = ("vllm", "sglang", "llamacpp")
"""Layouts of a speculator, and who reads them (models/meta_mtp/layouts/eagle3.py)."""
EXPORT_TOLERANCE = 1e-4
"""Largest difference of two float32 logits, as a share of the largest logit (of 1, if all are
smaller), that order of summation explains (evaluation/export_check.py)."""
OPENINGS = 2000
"""Openings that `prepare self` draws, unless told how many (pipelines/generating/self_rows.py)."""
PLANNED_SHAPES = ("micro", "7b", "8b", "13b", "70b")
"""Models that `plan` knows by name (pipelines/planning/shapes.py)."""
Split = Literal["train", "validation", "test", "compositions"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "compositions")
"""Of the micro tasks; no two share a problem (micro_tasks/family.py)."""
