"""The Jinja environment of chat templates: what transformers gives a template, without importing
it, which takes longer than PyTorch.

A template is code that came with a model. It runs in Jinja's sandbox and can only make text; of
`dict` and `namespace`, whose attributes lead elsewhere, it gets the call alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

Span = tuple[int, int]


class _Answers(Extension):
    """`{% generation %} … {% endgeneration %}`: what stands between is an answer."""

    tags = {"generation"}  # noqa: RUF012 — Jinja reads it of the class

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._written: list[str] | None = None  # so far, while a text is rendered
        self._spans: list[Span] = []
        environment.extend(answers=self)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = nodes.CallBlock(self.call_method("_note"), [], [], body)
        return call.set_lineno(line)

    def _note(self, caller: Callable[[], str]) -> str:
        text = caller()
        if self._written is not None:
            start = sum(map(len, self._written))
            self._spans.append((start, start + len(text)))
        return text

    @contextmanager
    def noted(self, written: list[str]) -> Iterator[list[Span]]:
        """Note where answers are while the caller appends what is rendered to `written`."""
        self._written, self._spans = written, []
        try:
            yield self._spans
        finally:
            self._written = None


class _Dict:
    """`dict(…)` and `dict.fromkeys(…)`."""

    def __call__(self, *pairs: Any, **more: Any) -> dict[Any, Any]:
        return dict(*pairs, **more)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Variables(Namespace):
    """`namespace(…)` whose variables cannot have the names of Python's internals."""

    def __init__(self, *pairs: Any, **more: Any) -> None:
        values = dict(*pairs, **more)
        for name in values:
            _check_name(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a variable of a namespace must not begin with _: {name!r:.60}")


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own `tojson` escapes it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@lru_cache
def compiled(text: str) -> Template:
    """Compile a template once for a process.

    Raises:
        TemplateError: it is not valid Jinja.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Answers, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": _Variables,
    }
    return environment.from_string(text)


def render(text: str, variables: Mapping[str, Any]) -> tuple[str, list[Span]]:
    """What a template writes, and where the answers are that it marks.

    Raises:
        Exception: whatever the template raises.
    """
    template, written = compiled(text), list[str]()
    answers: Any = template.environment.answers  # type: ignore[attr-defined]  # by `extend`
    with answers.noted(written) as spans:
        for block in template.generate(**variables):
            written.append(block)
    return "".join(written), spans
