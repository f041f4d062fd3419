"""All recipe options with type, default and meaning, read from the sections; the nearest option to
a misspelled key."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from weighted_mtp.core.config.section import Section
from weighted_mtp.core.errors import UserError, simplified
from weighted_mtp.core.input_files import parse_yaml

ANY_NAME = "*"
"""Stands in a key for a name or a number chosen by the user, such as that of a bin."""
_ALIASES = {
    "training.learning_rate": "lr maxlr",
    "training.final_learning_rate": "minlr",
    "training.batch_size": "bs batch globalbatchsize",
    "training.micro_batch_size": "mbs microbatch perdevicetrainbatchsize gradaccum "
    "gradientaccumulationsteps",
    "training.weight_decay": "wd decay",
    "training.steps": "maxsteps numsteps iters iterations epoch epochs numepochs numtrainepochs",
    "training.warmup_fraction": "warmup warmupsteps warmupratio",
    "training.schedule": "scheduler lrscheduler lrschedulertype",
    "training.optimizer": "optim opt",
    "training.clip_norm": "clip gradclip clipgrad maxgradnorm",
    "training.activation_checkpointing": "gradientcheckpointing checkpointing",
    "training.validate_every": "evalevery evalsteps evalinterval",
    "training.save_every": "savesteps saveinterval",
    "training.keep_last": "savetotallimit",
    "training.trackers": "reportto wandb mlflow tensorboard",
    "training.early_stopping.patience": "patience",
    "data.max_length": "seqlen maxlen maxseqlength contextlength blocksize",
    "data.train": "dataset trainfile trainpath",
    "data.validation": "eval val validationfile",
    "data.workers": "numworkers",
    "model.path": "modelpath modelnameorpath checkpoint",
    "model.architecture.dim": "hiddensize dmodel width",
    "model.architecture.n_layers": "layers numlayers numhiddenlayers depth",
    "model.architecture.n_heads": "nheads numattentionheads",
    "objective.heads": "numheads mtpheads",
    "objective.name": "loss",
    "objective.td.lam": "lam lambda lamda",
    "objective.td.gamma": "gamma",
    "objective.td.beta": "temperature",
    "objective.rho1.k_percent": "k kpercent topk",
    "runtime.compute_dtype": "dtype precision bf16 amp",
    "runtime.parallel": "fsdp ddp strategy",
    "runtime.compile": "torchcompile",
}
"""Names used elsewhere, simplified, for options that difflib cannot relate to them."""
ALIASES = {alias: key for key, aliases in _ALIASES.items() for alias in aliases.split()}
_REMARKS = {
    "epoch": "a run is counted in optimizer steps: epochs × rows / training.batch_size",
    "warmupsteps": "a fraction of the steps",
    "accum": "micro-batches per step follow from training.batch_size",
}


@dataclass(frozen=True)
class Option:
    """An option of a recipe.

    Attributes:
        key: dotted, such as `training.steps`.
        type: in words. choices: of an enumerated value, else empty.
        default: plain data; None also if `required`.
        optional_section: the innermost section around it that is absent by default, "" for none.
    """

    key: str
    type: str
    choices: tuple[str, ...]
    required: bool
    default: Any
    meaning: str
    optional_section: str


@cache
def recipe_options() -> tuple[Option, ...]:
    """Return every option of a recipe, in the order of the sections."""
    from weighted_mtp.core.config.recipe import Recipe  # which imports this module for suggestions

    return tuple(_options(Recipe, "", ""))


def section_titles() -> dict[str, str]:
    """Return the first sentence about each section, by its key."""
    return {key: about for key, (_, about) in _sections().items()}


def find_options(word: str) -> list[Option]:
    """Return the options of a section, those of a name, or else those with all words of `word` in
    key or meaning.

    Raises:
        UserError: there is none.
    """
    options, wanted = recipe_options(), word.strip(".")
    found = [o for o in options if f"{o.key}.".startswith(f"{wanted}.")]
    found = found or [o for o in options if f".{o.key}.".count(f".{wanted}.")]
    words = word.lower().split()
    found = found or [o for o in options if all(w in _searched(o) for w in words)]
    if not found:
        raise UserError(
            f"no option or section {word!r}{suggest_key(word.split('.'))}; weighted-mtp options "
            "lists all"
        )
    return found


def _searched(option: Option) -> str:
    return f"{option.key} {option.key.replace('_', ' ')} {option.meaning}".lower()


@cache
def shipped_settings() -> dict[str, dict[str, Any]]:
    """Return by whom each option is set, and to what: shipped recipes, presets, and presets for a
    pipeline, as `micro (critic)`. Placeholders (null) are left out."""
    from weighted_mtp.core.config.recipe import RECIPES, available

    found: dict[str, dict[str, Any]] = {option.key: {} for option in recipe_options()}

    def note(value: Any, key: str, name: str) -> None:
        if key in found:
            found[key] |= {name: value} if value is not None else {}
        elif isinstance(value, dict):
            for part, below in value.items():
                note(below, f"{key}.{part}" if key else part, name)

    for folder in (RECIPES, RECIPES / "presets"):
        for name in available(folder):
            content = parse_yaml((folder / f"{name}.yaml").read_bytes())
            special = content.pop("pipelines", {})
            note(content, "", name)
            for pipeline, part in special.items():
                note(part, "", f"{name} ({pipeline})")
    return found


def suggest_key(place: Sequence[str], inside: type[Section] | None = None) -> str:
    """Return ` (did you mean KEY?)` for an unknown key, "" if no option is near.

    Args:
        place: parts of the key, from the root of a recipe or of the section `inside`.
    """
    if inside is not None:
        root = next((key for key, (section, _) in _sections().items() if section is inside), None)
        if root is None:  # a section of another package
            return ""
        place = [*filter(None, root.split(".")), *place]
    key, remark = nearest_key(place)
    return f" (did you mean {key}?{remark})" if key else ""


def nearest_key(place: Sequence[str]) -> tuple[str, str]:
    """Return the option or section nearest to an unknown key, and a remark; "" if none is near."""
    *above, name = place
    word = simplified(name)
    if not word:
        return "", ""
    keys = [option.key for option in recipe_options()] + list(filter(None, section_titles()))
    alias = ALIASES.get(word, "")
    remark = next((f" {text}" for part, text in _REMARKS.items() if alias and part in word), "")
    leaf = alias.rpartition(".")[2]
    near = [key for key in keys if simplified(key.rpartition(".")[2]) in (word, simplified(leaf))]
    if above and not _below(near, above):  # a misspelled name is likelier than another section
        near = _close(word, _below(keys, above)) or near
    near = near or _close(word, keys)
    wanted = ".".join(above)
    near = [key for key in near if above and f".{key}".endswith(f".{wanted}.{leaf}")] or near
    if alias in near and not _below(near, above):
        return alias, remark
    if not near:
        return "", ""
    key = max(_below(near, above) or near, key=lambda key: _likeness(key, wanted, alias))
    return _as_given(key, above), remark if key == alias else ""


def _below(keys: Sequence[str], above: Sequence[str]) -> list[str]:
    """Keys in or below the section `above`; none for the root."""
    return [
        key
        for key in keys
        if above
        and len(key.split(".")) > len(above)
        and all(
            part in (ANY_NAME, given) for part, given in zip(key.split("."), above, strict=False)
        )
    ]


def _close(word: str, keys: Sequence[str]) -> list[str]:
    """Keys whose last part is the nearest to `word`."""
    names = {simplified(key.rpartition(".")[2]) for key in keys}
    near = difflib.get_close_matches(word, sorted(names), n=1, cutoff=0.7)
    return [key for key in keys if simplified(key.rpartition(".")[2]) in near]


def _likeness(key: str, wanted: str, alias: str) -> tuple[bool, float, bool, int]:
    """Rank options of one name: the alias, the section most like the one given, training's, the
    least deep one."""
    section = key.rpartition(".")[0]
    parts = section.split(".")
    endings = [".".join(parts[i:]) for i in range(len(parts))]
    like = max(difflib.SequenceMatcher(None, wanted, ending).ratio() for ending in endings)
    return key == alias, like if wanted else 0.0, section == "training", -key.count(".")


def _as_given(key: str, above: Sequence[str]) -> str:
    """Replace `*` by the name that was given there."""
    parts = key.split(".")
    names = [given if part == ANY_NAME else part for part, given in zip(parts, above, strict=False)]
    return ".".join([*names, *parts[len(names) :]])


# --- reading the sections ------------------------------------------------------------------------


@cache
def _sections() -> dict[str, tuple[type[Section], str]]:
    """Every section by its key ("" for the recipe itself), with what it is about."""
    from weighted_mtp.core.config.recipe import Recipe

    found: dict[str, tuple[type[Section], str]] = {}

    def visit(section: type[Section], key: str) -> None:
        about = inspect.getdoc(section) or ""
        found[key] = section, " ".join(about.partition("\n\n")[0].split())
        for name, field in section.model_fields.items():
            for below, several in _nested(field.annotation):
                visit(below, ".".join(filter(None, (key, name, several))))

    visit(Recipe, "")
    return found


def _options(section: type[Section], prefix: str, optional: str) -> Iterator[Option]:
    meanings = _meanings(section)
    for name, field in section.model_fields.items():
        key, nested = prefix + name, list(_nested(field.annotation))
        if not nested:
            choices = tuple(map(str, _choices(field.annotation)))
            required, default = field.is_required(), plain(field.default)
            if required:
                default = None
            kind, about = _type(field.annotation, field.metadata), meanings.get(name, "")
            yield Option(key, kind, choices, required, default, about, optional)
        for below, several in nested:
            absent = key if field.default is None or several else optional
            yield from _options(below, ".".join(filter(None, (key, several))) + ".", absent)


def _meanings(section: type[Section]) -> dict[str, str]:
    """What the `Attributes:` of the docstring say of each field."""
    _, _, attributes = (inspect.getdoc(section) or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", attributes, re.MULTILINE)
    return {name: _sentence(" ".join(text.split())) for name, text in entries}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] if text[:1].isascii() else text  # λ stays λ


def plain(value: Any) -> Any:
    """Return a value as JSON and YAML have it."""
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _nested(annotation: Any, several: str = "") -> Iterator[tuple[type[Section], str]]:
    """The sections in `Section | None`, `dict[str, Section]`, …, and `*` if they are several."""
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        yield annotation, several
    if get_origin(annotation) in (dict, tuple, list):
        several = ANY_NAME
    for part in get_args(annotation):
        yield from _nested(part, several)


def _choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in words: `integer > 0`, `path or null`, `list of one of tensorboard, mlflow, …`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0], [*inner[1:], *metadata])
    if origin is Literal:
        several = "one of " if len(inner) > 1 else ""
        return several + ", ".join(map(str, inner))
    if origin is dict:
        return f"mapping of names to {_type(inner[1])}"
    if origin in (tuple, list):
        if inner[-1] is Ellipsis or origin is list:
            return f"list of {_plural(_type(inner[0]))}"
        return f"list of {len(inner)} {_plural(_type(inner[0]))}"
    if inner:  # a union
        return " or ".join(_type(part, metadata) for part in inner)
    names = {int: "integer", float: "number", bool: "true or false", str: "string", Path: "path"}
    word = "null" if annotation is NoneType else names.get(annotation, str(annotation))
    return word + (_bounds(metadata) if annotation in (int, float) else "")


def _plural(kind: str) -> str:
    return re.sub(r"^(number|integer|string|path)", r"\1s", kind)


def _bounds(metadata: Sequence[Any]) -> str:
    """` > 0 and ≤ 1`; limits that only guard against overflow are left out."""
    signs = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}
    found: dict[str, str] = {}
    for mark in metadata:
        for part in mark.metadata if isinstance(mark, FieldInfo) else [mark]:
            for kind, sign in signs.items():
                if isinstance(part, kind):
                    value = getattr(part, kind.__name__.lower())
                    if value < 2**31:
                        found["low" if kind in (Ge, Gt) else "high"] = f" {sign} {value:g}"
    return " and".join(found[side] for side in ("low", "high") if side in found)
