"""Small data sets, known by their metadata alone, and the orders they are drawn in."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from weighted_mtp.core.config.sampling import SamplingConfig
from weighted_mtp.data.rows.metadata import Metadata
from weighted_mtp.data.sampling import RowOrder

NAN = float("nan")
quick = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 9)


def make(correct, number=None, labels=None, rating=None, problem=None, length=None) -> Metadata:
    """Metadata of as many rows as `correct` has entries."""
    n = len(correct)
    names = tuple(sorted({label for label in labels or () if label is not None}))
    index = [-1 if label is None else names.index(label) for label in labels or [None] * n]
    return Metadata(
        is_correct=np.array(correct, dtype=np.bool_),
        problem=np.array(problem if problem is not None else range(n), dtype=np.int32),
        difficulty=np.array(index, dtype=np.int32),
        difficulties=names,
        difficulty_number=np.array(number or [NAN] * n, dtype=np.float32),
        cf_rating=np.array(rating or [NAN] * n, dtype=np.float32),
        length=np.array(length if length is not None else [9] * n, dtype=np.int32),
    )


def plain(n: int) -> Metadata:
    return make([True] * n)


def numbered(numbers) -> Metadata:
    return make([True] * len(numbers), number=list(map(float, numbers)))


def sampling(**settings_) -> SamplingConfig:
    return SamplingConfig.model_validate(settings_)


def everything(metadata):
    return np.arange(len(metadata))


def order_of(metadata, config=None, seed=0, total=100, candidates=None, cap=None) -> RowOrder:
    chosen = everything(metadata) if candidates is None else np.array(candidates, dtype=np.int64)
    return RowOrder(metadata, chosen, config or sampling(), seed, total, cap)


def epoch_of(order: RowOrder, epoch: int) -> list[int]:
    return order.take(epoch * order.epoch_size, order.epoch_size)[:, 0].tolist()
