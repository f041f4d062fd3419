"""Types that cross room borders.

Letters used in shapes everywhere: B batch, S sequence, n future tokens (heads), D model width,
V vocabulary, H attention heads, K key/value heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict

IGNORE_INDEX = -100
"""Label of a position that is not a target: prompt and padding (PyTorch's own convention)."""

DERIVED_FROM = "weighted_mtp_derived_from"
"""In an exported `tokenizer_config.json`: the file that it and `tokenizer.json` are made of."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class _PlainRow(TypedDict):
    instruction: str
    input: str
    output: str
    task_id: str
    is_correct: bool
    metadata: dict[str, Any]


class Row(_PlainRow, total=False):
    """One labelled solution, the unit of every data set (docs/data.md).

    A row has either `instruction`, `input` and `output`, or `messages`, a conversation with at
    least one answer; the three texts are then empty.
    """

    messages: list[Message]


@dataclass(frozen=True)
class Program:
    """A program to be judged, by what its names do (`tests`) or by what it prints
    (`expected_stdout`); not by both.

    Attributes:
        source: the code under judgement, run as the module `__main__`.
        tests: assert statements, run after `source`; its names are theirs to use.
        stdin: what the program reads; None: nothing.
        expected_stdout: what it should print, word by word; numbers by tolerance
            (docs/evaluation.md).
    """

    source: str
    tests: tuple[str, ...] = ()
    stdin: str | None = None
    expected_stdout: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What running a `Program` showed.

    Attributes:
        passed: every test ran to its end without an exception.
        status: "passed", "failed" (an assertion, or the wrong output), "error" (any other
            exception, a syntax error too), "timeout", "killed" (memory, signal, endless output) or
            "exited" (left before the tests ended, or with a failure as its exit status).
        detail: the last line a person needs, "" when passed.
        seconds: wall-clock time of the run.
    """

    passed: bool
    status: str
    detail: str = ""
    seconds: float = field(default=0.0, compare=False)


class Judge(Protocol):
    """Runs programs somewhere safe and returns one verdict each, in order."""

    def __call__(self, programs: Sequence[Program]) -> list[Verdict]: ...


@dataclass(frozen=True)
class TokenTrace:
    """What a critic says about one program, token by token.

    Attributes:
        title: such as the task's name.
        pieces: text of each response token; "" for a token without text, such as EOS.
        values: the critic's value after each token; NaN where it has none, as after EOS.
        start_value: its value before the first token.
        td_errors, weights: of each token.
    """

    title: str
    instruction: str
    pieces: tuple[str, ...]
    values: tuple[float, ...]
    start_value: float
    td_errors: tuple[float, ...]
    weights: tuple[float, ...]
    is_correct: bool

    def __post_init__(self) -> None:
        lengths = [len(x) for x in (self.pieces, self.values, self.td_errors, self.weights)]
        if len(set(lengths)) > 1:
            raise ValueError(f"{self.title!r}: pieces, values, td_errors, weights are {lengths}")
