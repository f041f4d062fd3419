"""A model's counts and settings for `scale.py`, without weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.pipelines.planning.communication import Hardware, Step, step_on_paper
from weighted_mtp.pipelines.planning.estimate import count, setting_of
from weighted_mtp.pipelines.planning.memory import Memory, peak_memory
from weighted_mtp.pipelines.planning.memory_inputs import Counts, Setting
from weighted_mtp.pipelines.training.objectives import make_objective

LENGTH, NODE = 8192, 8


@dataclass(frozen=True)
class Model:
    """A shape under recipe `baseline`."""

    args: ModelArgs
    counts: Counts

    def setting(self, mode: str, gpus: int, shards: int = NODE, **more: Any) -> Setting:
        """One row on each GPU; `more` replaces fields of the planner's setting."""
        recipe = load_recipe(
            "baseline",
            None,
            [
                *("model.path=unread", "data.train=unread", f"data.max_length={LENGTH + 1}"),
                *(f"training.batch_size={gpus}", "training.micro_batch_size=1"),
                *(f"runtime.parallel={mode}", "runtime.fsdp.param_dtype=bfloat16"),
                f"runtime.fsdp.shard_size={shards}",
            ],
        )
        objective = make_objective(recipe.objective, self.args.n_future_tokens)
        return replace(setting_of(recipe, self.args, objective, gpus, NODE), **more)

    def memory(self, setting: Setting) -> Memory:
        return peak_memory(self.counts, setting)

    def step(self, setting: Setting, gpus: int, hardware: Hardware) -> Step:
        return step_on_paper(self.counts, setting, gpus, NODE, 1, hardware)


def model(args: ModelArgs) -> Model:
    """Counted on the meta device."""
    recipe = load_recipe("baseline", None, ["model.path=unread", "data.train=unread"])
    objective = make_objective(recipe.objective, args.n_future_tokens)
    return Model(args, count(recipe, args, objective))
