"""The training engine: one loop for all stages and methods, on one device or many, that survives being killed.

>>> from secateur.training import Engine, make_progress
"""

from secateur.training.engine import Engine
from secateur.training.interface import Data, Evaluation, Fitted, Split
from secateur.training.progress import Progress, Silent, make_progress
from secateur.training.schedules import learning_rate

__all__ = ["Data", "Engine", "Evaluation", "Fitted", "Progress", "Silent", "Split", "learning_rate", "make_progress"]
