"""The training engine: one loop for all stages and methods, on one device or many, that survives being killed.

>>> from secateur.training import Engine, make_progress

Several processes are started by a launcher: `accelerate launch --multi_gpu --num_processes N` or `torchrun
--nproc_per_node N`, on CPUs too (there `accelerate launch --cpu` starts but one process, unless it is given MPI). The
batch size stays that of all of them together, so that N processes train the network that one would have trained.
"""

from secateur.training.engine import Engine
from secateur.training.interface import Data, Evaluation, Fitted, Split
from secateur.training.progress import Progress, Silent, make_progress
from secateur.training.schedules import learning_rate

__all__ = ["Data", "Engine", "Evaluation", "Fitted", "Progress", "Silent", "Split", "learning_rate", "make_progress"]
