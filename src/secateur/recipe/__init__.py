"""Recipes: everything a run does, as one YAML page that is checked whole before anything happens.

    recipe = Recipe.read("recipe:cifar10-resnet56-bwcp", ["budget=flops=0.4", "finetune.epochs=20"])

The classes of this room are the schema; their descriptions are the documentation (docs/recipes.md). Paths in a recipe
are relative to the current directory.
"""

from secateur.recipe.parts import (
    DATA,
    ConstraintsConfig,
    DataConfig,
    MethodConfig,
    ModelConfig,
    RepairConfig,
    TaskConfig,
)
from secateur.recipe.running import TRACKERS, EngineConfig, ExportConfig, LatencyConfig, Runtime, SearchConfig
from secateur.recipe.training import Distil, Training
from secateur.recipe.whole import TRAINING, Recipe

__all__ = [
    "DATA",
    "TRACKERS",
    "TRAINING",
    "ConstraintsConfig",
    "DataConfig",
    "Distil",
    "EngineConfig",
    "ExportConfig",
    "LatencyConfig",
    "MethodConfig",
    "ModelConfig",
    "Recipe",
    "RepairConfig",
    "Runtime",
    "SearchConfig",
    "TaskConfig",
    "Training",
]
