"""Packed windows against the plainest enumeration of what each head should predict."""

import json
import pickle
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import Example, pack_batch
from weighted_mtp.data.tokens.text_tokens import TokenStream
from weighted_mtp.data.tokens.windows import PackedWindows
from weighted_mtp.losses import shift_labels


def make_stream(folder: Path, lengths: list[int]) -> TokenStream:
    """Documents of these lengths; a token's id is its place in the stream."""
    offsets = np.array([0, *np.cumsum(lengths)], np.int64)
    np.arange(offsets[-1], dtype=np.uint16).tofile(folder / "train.tokens")
    offsets.tofile(folder / "train.offsets")
    (folder / "stream.json").write_text(json.dumps({"dtype": "uint16"}))
    return TokenStream(folder, "train")


def predictions(piece: Example, n: int) -> list[tuple[int, int]]:
    """(position, token it predicts) of every head, as the loss sees a piece."""
    labels = torch.tensor([piece.ids])
    labels[0, : piece.prompt_length] = IGNORE_INDEX
    targets = shift_labels(labels, n, length=piece.inputs)[0]  # [inputs, n]
    found = []
    for t, k in (targets != IGNORE_INDEX).nonzero().tolist():
        assert targets[t, k] == piece.ids[t] + k + 1
        found.append((piece.ids[t], int(targets[t, k])))
    return found


lengths = st.lists(st.integers(1, 14), min_size=1, max_size=10).filter(lambda x: sum(x) > 1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(documents=lengths, length=st.integers(2, 9), n=st.integers(1, 5))
def test_every_head_predicts_every_token_once(documents, length, n, tmp_path_factory):
    stream = make_stream(tmp_path_factory.mktemp("stream"), documents)
    windows = PackedWindows(stream, length, n)
    S = length - 1
    covered = len(windows) * S
    expected = Counter(
        (t, t + k)
        for a, b in pairwise(stream.offsets.tolist())
        for t in range(a, b)
        for k in range(1, n + 1)
        if t + k < b and t < covered
    )
    found = Counter(x for window in windows for piece in window for x in predictions(piece, n))
    assert found == expected
    assert set(found.values()) <= {1}
    assert covered >= len(stream) - S + 1  # only a part of a window is dropped


@settings(max_examples=100, deadline=None, derandomize=True)
@given(documents=lengths, length=st.integers(2, 9), n=st.integers(1, 5))
def test_windows_are_full_and_pieces_whole(documents, length, n, tmp_path_factory):
    stream = make_stream(tmp_path_factory.mktemp("stream"), documents)
    windows = PackedWindows(stream, length, n)
    S, offsets = length - 1, stream.offsets.tolist()
    inputs = []
    for i, window in enumerate(windows):
        assert len(stream) < S or sum(piece.inputs for piece in window) == S
        assert sum(len(piece.ids) for piece in window) <= length + n - 1
        for piece in window:
            document = int(piece.task_id)
            assert 0 < piece.inputs <= len(piece.ids)
            assert offsets[document] <= piece.ids[0]
            assert piece.ids[-1] < offsets[document + 1]
            assert piece.row == i
        assert all(piece.inputs == len(piece.ids) for piece in window[:-1])
        read = [x for piece in window for x in piece.ids[: piece.inputs]]
        assert pack_batch([window], pad_id=0).tokens[0].tolist() == read
        inputs += read
    assert inputs == list(range(min(len(windows) * S, len(stream))))


def test_an_example_by_hand(tmp_path):
    """Documents 0–4 and 5–11, S = 4, n = 3."""
    windows = PackedWindows(make_stream(tmp_path, [5, 7]), length=5, n=3)
    shown = [[(x.ids, x.inputs, x.task_id) for x in window] for window in windows]
    assert shown == [
        [([0, 1, 2, 3, 4], 4, "0")],
        [([4], 1, "0"), ([5, 6, 7, 8, 9, 10], 3, "1")],
        [([8, 9, 10, 11], 4, "1")],
    ]


def test_windows_are_a_sequence(tmp_path):
    windows = PackedWindows(make_stream(tmp_path, [9, 9, 9]), length=5, n=2)
    assert len(windows) == 6  # 24 of 27 tokens
    assert windows[-1] == windows[5] == list(windows)[5]
    assert windows[1:3] == [windows[1], windows[2]]
    for beyond in (6, -7):
        with pytest.raises(IndexError):
            windows[beyond]


def test_windows_travel_to_other_processes(tmp_path):
    windows = PackedWindows(make_stream(tmp_path, [500] * 20), length=65, n=4)
    parcel = pickle.dumps(windows)
    assert len(parcel) < 1000
    assert list(pickle.loads(parcel)) == list(windows)  # noqa: S301  # our own bytes


def test_a_short_stream_is_one_short_window(tmp_path):
    (window,) = PackedWindows(make_stream(tmp_path, [3, 2]), length=100, n=4)
    assert [(piece.ids, piece.inputs) for piece in window] == [([0, 1, 2], 3), ([3, 4], 2)]


def test_nothing_to_predict_is_refused(tmp_path):
    with pytest.raises(UserError, match="too few"):
        PackedWindows(make_stream(tmp_path, [1]), length=5, n=1)
    with pytest.raises(UserError, match="predict nothing"):
        PackedWindows(make_stream(tmp_path, [5]), length=1, n=1)
