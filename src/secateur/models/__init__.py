"""The zoo: small networks on which the pruning papers report, for images of 32x32 pixels.

>>> from secateur import models
>>> model = models.create("resnet56", num_classes=100)
"""

from secateur.models.registry import MODELS, ModelRow, Published, create, list_models

__all__ = ["MODELS", "ModelRow", "Published", "create", "list_models"]
