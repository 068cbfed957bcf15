"""The yardsticks: criteria of a line or two, each a method that scores once, and training from scratch."""

from secateur.methods.baselines import one_shot, scratch
from secateur.methods.baselines.criteria import CRITERIA, Criterion, criteria, score
from secateur.methods.baselines.gradients import accumulate_gradients

__all__ = ["CRITERIA", "ROWS", "Criterion", "accumulate_gradients", "criteria", "score"]

#: One row a yardstick.
ROWS = (*one_shot.ROWS, scratch.ROW)
