"""The engine: devices, processes, precision, checkpoints and progress around a plain training loop.

engine = Engine(data, config, seed=0, batch_size=128, folder=run, progress=make_progress())
engine.fit("train", method, training, method=method)
engine.evaluate(model, data.test).headline
"""

from __future__ import annotations

from torch import nn

from secateur._distributed import world
from secateur.errors import ConfigError
from secateur.methods.contract import Method
from secateur.recipe import Training
from secateur.training.interface import Fitted
from secateur.training.machine import Machine, evaluating
from secateur.training.optimisers import check_optimiser
from secateur.training.schedules import learning_rate
from secateur.training.stage import Stage


class Engine(Machine):
    """Trains and evaluates networks on one data set, for one run; see `Machine` for what it is made of."""

    def fit(
        self,
        stage: str,
        module: nn.Module,
        training: Training,
        *,
        method: Method | None = None,
        teacher: nn.Module | None = None,
    ) -> Fitted:
        """Train `module` in place, on from the newest checkpoint of this stage in the folder if there is one.

        A stage that had ended is not trained again: the module gets the weights it ended with. Afterwards the module
        has the weights of the last step (their moving average, if that is on) or of the best epoch, as
        `training.select` says, and is on the engine's device. The caller's random number generators are left alone.

        Args:
            stage: its name in files and messages: lower-case letters.
            method: at work in this stage; `module` is the method itself, whose forward is the model's.
            teacher: the network to learn from, needed where `training.distill.weight` is above 0.

        Raises:
            SecateurError: one sentence: the data do not fit the model, the loss is not finite, a checkpoint is foreign.
            KeyboardInterrupt: after Ctrl-C, with a checkpoint from which the stage can go on.
        """
        self._refuse(stage, module, training, method, teacher)
        module.to(self.device)
        if teacher is not None:
            teacher.to(self.device)
        with self.together(), evaluating(teacher):
            return Stage(self, stage, module, training, method, teacher).run()

    def _refuse(
        self, stage: str, module: nn.Module, training: Training, method: Method | None, teacher: nn.Module | None
    ) -> None:
        """ConfigError for what cannot be meant."""
        if not stage.isascii() or not stage.isalpha() or not stage.islower():
            raise ConfigError(f"The stage {stage!r} is not a name in lower-case letters: use such as 'train'.")
        if method is not None and module is not method:
            raise ConfigError("fit(module, method=...) trains the method itself: pass it as the module too.")
        if training.distill.weight and teacher is None:
            raise ConfigError(f"{stage}.distill has no teacher here: set {stage}.distill.weight to 0.")
        if not self.task.adds_up and (self.config.accumulate > 1 or world() > 1):
            raise ConfigError(
                f"The loss of the task {self.task.name} compares the samples of a batch with each other, so that it "
                "cannot be computed in parts: set engine.accumulate to 1, and train with one process."
            )
        if training.select == "best" and self.validation is None:
            raise ConfigError(
                f"{stage}.select is best, but no images are held out: set data.validation above 0, or select: last."
            )
        if not len(self.data.train) or self.steps_per_epoch < 1:
            raise ConfigError(f"There are no images to train on in stage {stage}: check data.")
        check_optimiser(training, stage)
        learning_rate(training, 0, self.steps_per_epoch)  # refuses a schedule that is too short
