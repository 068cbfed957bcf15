"""The baselines: criteria of a line or two, each a method that scores once, and training from scratch."""

from secateur.methods.baselines import one_shot, scratch
from secateur.methods.baselines.criteria import CRITERIA, score
from secateur.methods.baselines.gradients import accumulate_gradients
from secateur.methods.baselines.one_shot import OneShot, scoring

__all__ = ["CRITERIA", "ROWS", "OneShot", "accumulate_gradients", "score", "scoring"]

#: One row a baseline.
ROWS = (*one_shot.ROWS, scratch.ROW)
