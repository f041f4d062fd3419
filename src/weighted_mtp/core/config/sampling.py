"""`data.sampling`: which rows a training draws, and in what order (data/sampling)."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, model_validator

from weighted_mtp.core.config.section import PositiveInt, Section

OTHER = "other"
"""The bin of the rows that fit no other; drawn from only where it has a weight."""

THIRDS = ("low", "medium", "high")
"""The bins where none are given: thirds of the rows by difficulty."""

_STRATEGIES_OF = {
    "correct_fraction": ("balanced",),
    "bins": ("difficulty", "curriculum"),
    "weights": ("difficulty",),
    "stages": ("curriculum",),
}
_KINDS = ("labels", "difficulty_number", "cf_rating")


def _as_text(value: Any) -> Any:
    """YAML reads the label 3 as a number."""
    return str(value) if type(value) in (int, float) else value


Label = Annotated[str, BeforeValidator(_as_text)]
Weights = dict[str, NonNegativeFloat]


class Range(Section):
    """A half-open range of numbers: at_least <= x < below.

    Attributes:
        at_least: lower bound, inclusive; null for none.
        below: upper bound, exclusive; null for none.
    """

    at_least: float | None = None
    below: float | None = None

    @property
    def low(self) -> float:
        return -float("inf") if self.at_least is None else self.at_least

    @property
    def high(self) -> float:
        return float("inf") if self.below is None else self.below


class Bin(Section):
    """A named group of rows of similar difficulty; set exactly one of the three.

    Attributes:
        labels: difficulty labels; the only way to select labels that are not numbers.
        difficulty_number: range of numeric difficulties; other rows do not match.
        cf_rating: range of Codeforces ratings; rows without a rating do not match.
    """

    labels: tuple[Label, ...] | None = None
    difficulty_number: Range | None = None
    cf_rating: Range | None = None


class Stage(Section):
    """A stage of the curriculum; it starts where the previous one ends.

    Attributes:
        until: end of the stage as a fraction of training; 1 for the last stage.
        weights: relative weight of each bin; bins not named have weight 0.
    """

    until: Annotated[float, Field(gt=0, le=1)]
    weights: Weights


DEFAULT_STAGES = (
    Stage(until=0.3, weights={"low": 0.7, "medium": 0.3, "high": 0.0}),
    Stage(until=0.7, weights={"low": 0.3, "medium": 0.5, "high": 0.2}),
    Stage(until=1.0, weights={"low": 0.1, "medium": 0.3, "high": 0.6}),
)


class SamplingConfig(Section):
    """How training rows are drawn from those that the objective uses.

    Attributes:
        strategy: `uniform` draws every row once per epoch, `balanced` correct and incorrect rows by
            `correct_fraction`, `difficulty` bins by `weights`, `curriculum` bins by the weights of
            the current stage.
        n_samples: rows (or pairs, for pairwise losses) per epoch; null for all there are
            (`balanced`: as many as the rarer kind allows).
        correct_fraction: fraction of correct rows with strategy `balanced`.
        bins: bins by name; null for `low`, `medium` and `high`: thirds of the rows by numeric
            difficulty or Codeforces rating.
        weights: relative weight of each bin; null for equal weights. `other` is the rows that match
            no bin.
        stages: stages of the curriculum, in order; null for three default stages from mostly `low`
            to mostly `high`.
        length_balanced_pairs: prefer pairs of similar length, with the correct solution longer as
            often as shorter.
    """

    strategy: Literal["uniform", "balanced", "difficulty", "curriculum"] = "uniform"
    n_samples: PositiveInt | None = None
    correct_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    bins: dict[str, Bin] | None = None
    weights: Weights | None = None
    stages: tuple[Stage, ...] | None = None
    length_balanced_pairs: bool = False

    @property
    def bin_names(self) -> tuple[str, ...]:
        """All but `other`."""
        return THIRDS if self.bins is None else tuple(self.bins)

    @property
    def schedule(self) -> tuple[Stage, ...]:
        """The stages of `difficulty` (one) and `curriculum`, the defaults filled in."""
        if self.strategy == "curriculum":
            return self.stages or DEFAULT_STAGES
        return (Stage(until=1.0, weights=self.weights or dict.fromkeys(self.bin_names, 1.0)),)

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> SamplingConfig:
        for key, strategies in _STRATEGIES_OF.items():
            unused = self.strategy not in strategies
            if unused and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"data.sampling.{key} has no effect with data.sampling.strategy "
                    f"{self.strategy}; take it away, or set the strategy to "
                    f"{' or '.join(strategies)}"
                )
        return self

    @model_validator(mode="after")
    def _bins_are_apart(self) -> SamplingConfig:
        if self.bins is None:
            return self
        if not self.bins:
            raise ValueError("data.sampling.bins is empty; name a bin, or take the key away")
        for name, each in self.bins.items():
            _check_bin(name, each)
        for (name, one), (other_name, other) in combinations(self.bins.items(), 2):
            shared = _shared(one, other)
            if shared is not None:
                raise ValueError(
                    f"data.sampling.bins {name} and {other_name} overlap: both hold {shared}; a "
                    "row belongs to one bin (ranges end before `below`)"
                )
        return self

    @model_validator(mode="after")
    def _weights_name_bins(self) -> SamplingConfig:
        if self.weights is not None:
            _check_weights("data.sampling.weights", self.weights, self.bin_names)
        for i, stage in enumerate(self.stages or ()):
            _check_weights(f"data.sampling.stages.{i}.weights", stage.weights, self.bin_names)
        default = self.strategy == "curriculum" and self.stages is None
        if default and not set(THIRDS) <= set(self.bin_names):
            raise ValueError(
                "data.sampling.stages is missing: the default stages weigh the bins "
                f"{', '.join(THIRDS)}, data.sampling.bins has {', '.join(self.bin_names)}"
            )
        return self

    @model_validator(mode="after")
    def _stages_rise_to_one(self) -> SamplingConfig:
        if self.stages is None:
            return self
        ends = [stage.until for stage in self.stages]
        rising = all(a < b for a, b in pairwise(ends))
        if not rising or not ends or ends[-1] != 1:
            raise ValueError(
                "data.sampling.stages: each `until` must be above the one before and the last must "
                f"be 1.0, they are {', '.join(map(str, ends)) or 'none'}"
            )
        return self


def _check_bin(name: str, each: Bin) -> None:
    key = f"data.sampling.bins.{name}"
    if name == OTHER:
        raise ValueError(
            f"{key}: this name stands for the rows that fit no bin; choose another, or only give "
            "it a weight"
        )
    kinds = [kind for kind in _KINDS if getattr(each, kind) is not None]
    if len(kinds) != 1:
        raise ValueError(
            f"{key}: give exactly one of {', '.join(_KINDS)}, it has "
            f"{' and '.join(kinds) or 'none'}"
        )
    held = getattr(each, kinds[0])
    if isinstance(held, Range):
        if held.low >= held.high:
            raise ValueError(
                f"{key}.{kinds[0]}: at_least ({held.at_least}) must be under below ({held.below})"
            )
    elif not held:
        raise ValueError(f"{key}.labels is empty; name at least one difficulty")


def _shared(one: Bin, other: Bin) -> str | None:
    """Something that both bins hold, in words; None if they hold nothing in common, or are of
    different kinds, which only the data can tell."""
    labels = [label for label in one.labels or () if label in (other.labels or ())]
    if labels:
        return f"the label {labels[0]!r}"
    for kind in _KINDS[1:]:
        a, b = getattr(one, kind), getattr(other, kind)
        if a is not None and b is not None and max(a.low, b.low) < min(a.high, b.high):
            low, high = max(a.low, b.low), min(a.high, b.high)
            return f"{kind} from {low:g} to below {high:g}"
    return None


def _check_weights(key: str, weights: Weights, known: tuple[str, ...]) -> None:
    for name in weights:
        if name not in (*known, OTHER):
            raise ValueError(f"{key}: no bin {name!r}; there are {', '.join(known)} and {OTHER}")
    if not any(weights.values()):
        raise ValueError(f"{key}: every weight is 0, so no row can be drawn; raise one")
