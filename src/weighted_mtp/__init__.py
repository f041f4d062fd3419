"""Train, weight, decode and evaluate multi-token-prediction LLaMA models in pure PyTorch.

    import weighted_mtp as wm

    recipe = wm.load_recipe("baseline", "micro", ["training.steps=100"])
    wm.train(recipe, output_dir="runs/first")
    print(wm.evaluate("runs/first", n_problems=50).pass_at_1)

Names are imported when they are first used: `import weighted_mtp` itself loads no PyTorch.
"""

from typing import TYPE_CHECKING

from weighted_mtp import _moved
from weighted_mtp._lazy import exports

__version__ = "0.2.0"

if TYPE_CHECKING:
    from weighted_mtp.api import evaluate as evaluate
    from weighted_mtp.api import load as load
    from weighted_mtp.api import plan as plan
    from weighted_mtp.api import save as save
    from weighted_mtp.core.config.recipe import Recipe as Recipe
    from weighted_mtp.core.config.recipe import load_recipe as load_recipe
    from weighted_mtp.core.errors import UserError as UserError
    from weighted_mtp.data.tokens.tokenizers import load_tokenizer as load_tokenizer
    from weighted_mtp.data.tokens.tokenizers import make_tokenizer as make_tokenizer
    from weighted_mtp.decoding import Decoder as Decoder
    from weighted_mtp.decoding import Sampling as Sampling
    from weighted_mtp.decoding import Speculation as Speculation
    from weighted_mtp.decoding import Stopping as Stopping
    from weighted_mtp.decoding import Stream as Stream
    from weighted_mtp.decoding import complete as complete
    from weighted_mtp.evaluation.sandbox.host import Sandbox as Sandbox
    from weighted_mtp.losses import LossTerms as LossTerms
    from weighted_mtp.losses import MTPLoss as MTPLoss
    from weighted_mtp.losses import count_targets as count_targets
    from weighted_mtp.losses import mtp_loss as mtp_loss
    from weighted_mtp.losses import shift_labels as shift_labels
    from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter as MetaLlamaMTPAdapter
    from weighted_mtp.models.meta_mtp.args import ModelArgs as ModelArgs
    from weighted_mtp.models.meta_mtp.kv_cache import KVCache as KVCache
    from weighted_mtp.models.meta_mtp.transformer import Transformer as Transformer
    from weighted_mtp.models.meta_mtp.value_head import ValueHead as ValueHead
    from weighted_mtp.pipelines.planning.estimate import estimate as estimate
    from weighted_mtp.pipelines.train import train as train
    from weighted_mtp.pipelines.training.objectives import Objective as Objective
    from weighted_mtp.pipelines.training.objectives import (
        register_objective as register_objective,
    )
    from weighted_mtp.value_weighting.rho1_weighting import (
        compute_mtp_selective_weights as compute_mtp_selective_weights,
    )
    from weighted_mtp.value_weighting.td_weighting import build_weights as build_weights
    from weighted_mtp.value_weighting.td_weighting import compute_advantages as compute_advantages
    from weighted_mtp.value_weighting.td_weighting import compute_td_errors as compute_td_errors
    from weighted_mtp.value_weighting.td_weighting import compute_td_targets as compute_td_targets
else:
    __all__, __getattr__, __dir__ = exports(
        __name__,
        {
            "api": "evaluate load plan save",
            "core.config.recipe": "Recipe load_recipe",
            "core.errors": "UserError",
            "data.tokens.tokenizers": "load_tokenizer make_tokenizer",
            "decoding": "Decoder Sampling Speculation Stopping Stream complete",
            "evaluation.sandbox.host": "Sandbox",
            "losses": "LossTerms MTPLoss count_targets mtp_loss shift_labels",
            "models.meta_mtp.adapter": "MetaLlamaMTPAdapter",
            "models.meta_mtp.args": "ModelArgs",
            "models.meta_mtp.kv_cache": "KVCache",
            "models.meta_mtp.transformer": "Transformer",
            "models.meta_mtp.value_head": "ValueHead",
            "pipelines.planning.estimate": "estimate",
            "pipelines.train": "train",
            "pipelines.training.objectives": "Objective register_objective",
            "value_weighting.rho1_weighting": "compute_mtp_selective_weights",
            "value_weighting.td_weighting": (
                "build_weights compute_advantages compute_td_errors compute_td_targets"
            ),
        },
    )

_moved.install()
