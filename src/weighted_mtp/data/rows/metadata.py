"""The small columns of a data set: all that filtering and sampling look at.

Letters: N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Indices: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
"""Row numbers."""


@dataclass(frozen=True)
class Metadata:
    """One entry a row; a few dozen bytes, whatever the row's text weighs.

    Attributes:
        is_correct: `[N]` bool.
        problem: `[N]` int32, equal for rows of one `task_id`.
        difficulty: `[N]` int32 index into `difficulties`, −1 where the row has none.
        difficulties: the labels as text. A label is a category: CodeContests' "B" is not "A" + 1.
        difficulty_number: `[N]` float32, NaN unless the difficulty is a number (micro tasks: 1–11).
        cf_rating: `[N]` float32 Codeforces rating, NaN where there is none.
        length: `[N]` int32 characters of instruction, input and output, or of all messages.
    """

    is_correct: np.ndarray[Any, np.dtype[np.bool_]]
    problem: np.ndarray[Any, np.dtype[np.int32]]
    difficulty: np.ndarray[Any, np.dtype[np.int32]]
    difficulties: tuple[str, ...]
    difficulty_number: np.ndarray[Any, np.dtype[np.float32]]
    cf_rating: np.ndarray[Any, np.dtype[np.float32]]
    length: np.ndarray[Any, np.dtype[np.int32]]

    def __len__(self) -> int:
        return len(self.is_correct)
