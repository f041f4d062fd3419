"""Recipes: the sections of a recipe as models that reject unknown keys, and how files and
settings are merged into one."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.core.config.data import DataConfig as DataConfig
    from weighted_mtp.core.config.data import MicroConfig as MicroConfig
    from weighted_mtp.core.config.recipe import Recipe as Recipe
    from weighted_mtp.core.config.recipe import load_recipe as load_recipe
    from weighted_mtp.core.config.recipe import load_recipe_file as load_recipe_file
    from weighted_mtp.core.config.recipe import setting as setting
    from weighted_mtp.core.config.runtime import RuntimeConfig as RuntimeConfig
    from weighted_mtp.core.config.section import Section as Section
    from weighted_mtp.core.config.sections import CriticStage as CriticStage
    from weighted_mtp.core.config.sections import ModelConfig as ModelConfig
    from weighted_mtp.core.config.sections import ObjectiveConfig as ObjectiveConfig
    from weighted_mtp.core.config.sections import PipelineName as PipelineName
    from weighted_mtp.core.config.sections import TokenizerConfig as TokenizerConfig
    from weighted_mtp.core.config.sections import TrainingConfig as TrainingConfig
    from weighted_mtp.core.config.shipped import RECIPES as RECIPES
    from weighted_mtp.core.config.shipped import available as available
else:
    __all__, __getattr__, __dir__ = exports(
        __name__,
        {
            "data": "DataConfig MicroConfig",
            "recipe": "Recipe load_recipe load_recipe_file setting",
            "runtime": "RuntimeConfig",
            "section": "Section",
            "shipped": "RECIPES available",
            "sections": "CriticStage ModelConfig ObjectiveConfig PipelineName "
            "TokenizerConfig TrainingConfig",
        },
    )
