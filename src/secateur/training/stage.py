"""One stage of training: the loop over epochs and steps, and what happens between them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Generator
from contextlib import ExitStack, closing, nullcontext
from typing import Any

import torch
from torch import nn

from secateur._distributed import rank, world
from secateur.batches import rows_of, split_rows
from secateur.errors import DataError, Diverged
from secateur.graph.modules import as_call
from secateur.methods.contract import Method
from secateur.recipe import Training
from secateur.training.averages import assign
from secateur.training.checks import check_fit
from secateur.training.devices import compiled, laid_out, lay_out
from secateur.training.gradients import add_up, any_of, take_firsts
from secateur.training.interface import Fitted
from secateur.training.interrupts import Interrupts
from secateur.training.losses import Targets, TaskLoss, blended
from secateur.training.machine import Machine
from secateur.training.optimisers import set_rate
from secateur.training.prefetch import on_device
from secateur.training.randomness import derive, preserved, seed_all
from secateur.training.schedules import learning_rate
from secateur.training.snapshot import Snapshots
from secateur.training.standing import Best, Standing
from secateur.training.sync_norm import synchronised
from secateur.training.tally import Tally

#: With a method at work the best weights are looked for in the last part of the stage only: before that the network
#: is not yet as narrow as it will be, and better for it.
_SETTLED = 0.75


class Stage(Standing):
    """One stage at work; `run` is called once."""

    def __init__(
        self,
        engine: Machine,
        name: str,
        module: nn.Module,
        training: Training,
        method: Method | None,
        teacher: nn.Module | None,
    ) -> None:
        super().__init__(engine, name, module, training, method)
        self.teacher = teacher
        self.network = compiled(module) if engine.config.compile and method is None else module
        if engine.config.compile and method is not None:
            engine.say(f"The network is not compiled in stage {name}: a method that is at work looks into it.")
        self.drop_last = engine.drops_last
        self.seed = derive(engine.seed, name)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.task = engine.task
        self.loss = TaskLoss(engine.task, training)
        self.snapshots = Snapshots(self)
        self.interrupts = Interrupts(engine.progress.say)
        self._checked = self._answered = self._has_headline = self._stop = self._due = False
        self._began = self._saved = time.monotonic()
        self._before = 0.0
        self._told: tuple[float, dict[str, float]] = (-math.inf, {})

    # ------------------------------------------------------------------------------------------------ the whole stage

    def run(self) -> Fitted:
        """Train to the end, from the newest checkpoint if there is one."""
        with ExitStack() as stack:
            stack.callback(self.module.train, self.module.training)
            stack.enter_context(preserved(self.device))
            seed_all(self.seed)  # the same in all processes: gates are drawn alike
            finished = self.snapshots.resume()
            if finished is not None:
                return finished
            stack.callback(lay_out, self.module, torch.contiguous_format)
            self._began = self._saved = time.monotonic()
            self._before = self.position.seconds
            self.engine.progress.start_stage(self.name, self.training.epochs, self.steps, self.position.step)
            stack.callback(self.engine.progress.end_stage)
            stack.enter_context(self.interrupts)
            if self.engine.config.sync_norm and world() > 1:
                stack.enter_context(synchronised(self.module))
            resumed = self.position.step or None
            while self.position.epoch < self.training.epochs:
                self._epoch()
            self.optimiser.zero_grad(set_to_none=True)
            return self._finish(resumed)

    def _epoch(self) -> None:
        began, first = time.monotonic(), self.tally.images
        self.module.train()
        with closing(self._batches()) as batches:
            for inputs, targets in batches:
                if not self._checked:
                    with preserved(self.device):
                        check_fit(self.module, inputs, targets, self.task, self.engine.in_layout)
                        self._taught(rows_of(inputs, 0, 2))  # the teacher must take images as they will lie
                    lay_out(self.module, self.engine.layout, self.optimiser)
                    self._checked = True
                rate = self._step(inputs, targets)
                self._watch(began, first)
        if self.position.batch != self.steps:
            raise DataError(
                f"The training images gave {self.position.batch} batches in an epoch and had promised {self.steps}."
            )
        self.tally.read()
        self._refuse_nonfinite()
        speed = (self.tally.images - first) / max(time.monotonic() - began, 1e-9)
        if self.method is not None:
            self.method.after_epoch()
            lay_out(self.module, self.engine.layout, self.optimiser)
        self._close_epoch(rate, speed)

    def _close_epoch(self, rate: float, speed: float) -> None:
        """Validate, write the row and the checkpoint, and move on."""
        self._one_buffers()
        loss, headline = self._validate()
        name = self.task.headline
        row = {
            "stage": self.name,
            "epoch": self.position.epoch + 1,
            "step": self.position.step,
            "seconds": round(self.engine.seconds, 3),
            "train_loss": self.tally.mean_loss,
            f"train_{name}": self.tally.mean_loss if name == "loss" else self._watched,
            "validation_loss": loss,
            f"validation_{name}": headline,
            "headline": name,
            "unit": self.task.unit,
            "learning_rate": rate,
            "images_per_second": round(speed, 1),
            "method": self._said(),
        }
        self.position.epoch, self.position.batch = self.position.epoch + 1, 0
        self.tally = Tally(self.device)
        self._judge(loss, headline)
        self.engine.record(row)
        self._save()
        self.engine.progress.epoch(row)
        self._stop = any_of(self.interrupts.requested, self.device)
        if self._stop and self.position.epoch < self.training.epochs:
            raise KeyboardInterrupt

    def _finish(self, resumed: int | None) -> Fitted:
        """Give the module the weights that the stage hands on."""
        selected = "last"
        if self.training.select == "best" and self.best is not None:
            self.module.load_state_dict(self.best.weights)  # a method may have narrowed the module since
            if self.method is not None and self.best.method is not None:
                self.method.load_state(self.best.method)
            selected = "best"
        elif self.average is not None:
            assign(self.module, self.average.tensors)
        best = self.best
        fitted = Fitted(
            self.name,
            self.training.epochs,
            self.position.step,
            self.seconds,
            selected,
            best.epoch if best else None,
            best.headline if best else None,
            resumed,
            tuple(self.engine.notes),
        )
        self.snapshots.save(fitted)
        if self._stop:
            raise KeyboardInterrupt
        return fitted

    # ------------------------------------------------------------------------------------------------------- one step

    def _step(self, inputs: Any, targets: Any) -> float:
        """One optimiser step on this process's part of a batch; gradients are those of the whole batch's mean loss."""
        position = self.position
        rate = learning_rate(self.training, position.step, self.steps)
        set_rate(self.optimiser, rate)
        own = self.task.samples(targets)
        whole = self._global_size(own)
        inputs, aims, own = self._mixed(inputs, targets, own)
        inputs = laid_out(inputs, self.engine.layout)
        parts = min(self.engine.config.accumulate, max(whole // (2 * world()), 1))  # norms need two images
        self.optimiser.zero_grad(set_to_none=True)
        if parts == 1:
            numbers = self._backward(inputs, aims, own, whole)
        else:
            sizes = [own // parts + (number < own % parts) for number in range(parts)]
            pieces = zip(split_rows(inputs, own, parts), aims.split(own, parts), sizes, strict=True)
            numbers = torch.stack([self._backward(*piece, whole) for piece in pieces]).sum(0)
        numbers = self._agreed(numbers)
        self._update()
        if self.method is not None:
            self.method.after_step()
            lay_out(self.module, self.engine.layout, self.optimiser)  # a method may have narrowed them
        if self.average is not None:
            self.average.update(position.step)
        position.step, position.batch = position.step + 1, position.batch + 1
        self.tally.add(numbers[:2], whole, position.step)
        return rate

    def _backward(self, inputs: Any, targets: Targets, samples: int, whole: int) -> torch.Tensor:
        """Add a micro-batch's share of the gradients; [task loss, headline], both sums over its samples."""
        if self.method is not None:
            self.method.before_forward(targets.as_one(self.task, self.engine.data.classes, torch.float32))
        with self.engine.autocast():
            answer = self.task.answer(self.network, inputs, targets.own)
        if samples and not self._answered:
            self.task.check(answer, targets.own)
            self._answered = True
        if self.method is not None:
            outputs = answer.shape[1] if isinstance(answer, torch.Tensor) and answer.dim() > 1 else None
            kind = answer.dtype if isinstance(answer, torch.Tensor) else torch.float32
            self.method.after_forward(answer, targets.as_one(self.task, outputs, kind))
        task = self.loss(answer, targets, samples, self._taught(inputs))
        total = task / whole
        if self.method is not None:
            total = total + self.method.loss() * (samples / whole)
        scaler = self.engine.scaler
        (total if scaler is None else scaler.scale(total)).backward()
        if self.method is not None:
            self.method.loss_scale = 1.0 if scaler is None else scaler.scale(torch.ones_like(task.detach()))
            self.method.after_backward()
        headline = self.loss.headline(answer, targets) if samples else None
        self._has_headline = self._has_headline or headline is not None
        task = task.detach()
        return torch.stack([task, task.new_zeros(()) if headline is None else headline.to(task.dtype)])

    def _update(self) -> None:
        """Let the optimiser follow the gradients."""
        scaler = self.engine.scaler
        if scaler is not None:
            scaler.unscale_(self.optimiser)
        if self.training.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.training.clip)
        if scaler is None:
            self.optimiser.step()
        else:
            scaler.step(self.optimiser)
            scaler.update()

    def _taught(self, inputs: Any) -> Any:
        if self.teacher is None or not self.training.distill.weight:
            return None
        with torch.no_grad():
            return self.engine.in_layout(self.teacher, inputs, self._teach)

    def _teach(self, inputs: Any) -> Any:
        assert self.teacher is not None
        args, keywords = as_call(inputs)
        return self.teacher(*args, **keywords)

    def _mixed(self, inputs: Any, targets: Any, own: int) -> tuple[Any, Targets, int]:
        """Inputs, targets and how many samples to train on; with mixup `inputs` is the whole batch, shared out here."""
        if not self.training.blends:
            return inputs, Targets(targets), own
        if not isinstance(inputs, torch.Tensor) or not isinstance(targets, torch.Tensor):
            key = "mixup" if self.training.mixup else "cutmix"
            raise DataError(f"{key} blends batches of two tensors, and these are others: set {self.name}.{key} to 0.")
        position = self.position
        mixed, aims = blended(
            inputs, targets, self.training, seed=self.seed, epoch=position.epoch, batch=position.batch
        )
        part = split_rows(mixed, own, world())[rank()]
        return part, aims.split(own, world())[rank()], len(part)

    @property
    def _watched(self) -> float | None:
        """The task's headline over the epoch so far, where it shows in training."""
        return self.tally.mean_headline if self._has_headline else None

    def _agreed(self, numbers: torch.Tensor) -> torch.Tensor:
        """Gradients and numbers of all processes, and whether one of them wants to stop or the first to save."""
        due = time.monotonic() - self._saved > 60 * self.engine.config.checkpoint_minutes
        wishes = [self.interrupts.requested, due and rank() == 0]
        if world() == 1:
            self._stop, self._due = wishes
            return numbers
        flags = torch.tensor(wishes, dtype=numbers.dtype).to(self.device)
        numbers = add_up(self.parameters, torch.cat([numbers, flags]))
        if self.tally.due(self.position.step + 1):  # reading waits for a GPU
            self._stop, self._due = (value > 0 for value in numbers[2:].tolist())
        else:
            self._stop = self._due = False
        return numbers

    def _global_size(self, own: int) -> int:
        """Images in this batch over all processes."""
        if world() == 1 or self.training.blends:
            return own
        size, images = self.engine.batch_size, len(self.engine.data.train)
        return min(size, images - self.position.batch * size)

    def _batches(self) -> Generator[tuple[Any, Any], None, None]:
        """The rest of this epoch's batches on the device: this process's part of each, or with mixup the whole."""
        alone = self.training.blends
        batches = self.engine.data.train.batches(
            self.engine.batch_size,
            epoch=self.position.epoch,
            shuffle=True,
            augment=True,
            seed=self.seed,
            start=self.position.batch,
            rank=0 if alone else rank(),
            world=1 if alone else world(),
            drop_last=self.drop_last,
        )
        here = getattr(self.engine.data.train, "draws_here", False)
        with closing(on_device(batches, self.device, ahead=self.engine.workers > 0, here=here)) as ready:
            with preserved(self.device):  # a loader may draw a number when it starts, wherever in the epoch that is
                first = next(ready, None)
            if first is not None:
                yield first
                yield from ready

    # -------------------------------------------------------------------------------------------------- between steps

    def _watch(self, began: float, first: float) -> None:
        """After a step: progress, a loss that is not finite, a checkpoint that is due, a wish to stop."""
        position = self.position
        if not (self.tally.due(position.step) or self._stop or self._due):
            return
        self.tally.read()
        self._refuse_nonfinite()
        speed = (self.tally.images - first) / max(time.monotonic() - began, 1e-9)
        extra = {"step": position.step, "epoch": position.epoch + 1, **self._now_and_then()}
        watched = self._watched
        said = f"{self.task.headline} {self.task.shown(watched)}" if watched is not None else ""
        self.engine.progress.step(self.tally.mean_loss, said, speed, extra)
        if position.batch < self.steps and (self._stop or self._due):
            self._save()
            if self._stop:
                raise KeyboardInterrupt

    def _save(self) -> None:
        norms = torch._foreach_norm([parameter.detach() for parameter in self.parameters])
        if not bool(torch.isfinite(torch.stack([norm.float() for norm in norms])).all()):
            self._diverged("the weights are", self.position.step)
        self.position.seconds = self.seconds
        self.snapshots.save()
        self._saved = time.monotonic()

    def _refuse_nonfinite(self) -> None:
        if self.tally.bad_step is not None:
            self._diverged("the loss is", self.tally.bad_step)

    def _diverged(self, what: str, step: int) -> None:
        epoch = -(-step // self.steps)
        raise Diverged(
            f"In stage {self.name}, epoch {epoch}, step {step}, {what} not finite: lower {self.name}.lr "
            f"(it is {self.training.lr:g}), or set {self.name}.warmup or {self.name}.clip."
        )

    def _validate(self) -> tuple[float | None, float | None]:
        split = self.engine.validation
        if split is None:
            return None, None
        with self.average.in_place() if self.average is not None else nullcontext():
            found = self.engine.evaluate(self.module, split)
        return found.loss, found.headline

    def _judge(self, loss: float | None, headline: float | None) -> None:
        """Remember the best epoch so far: of the best headline, then of least loss."""
        epoch = self.position.epoch
        if loss is None or headline is None or not math.isfinite(loss) or math.isnan(headline):
            return
        if self.method is not None and epoch < self.training.epochs and epoch <= _SETTLED * self.training.epochs:
            return
        if (best := self.best) is not None:
            tied = headline == best.headline and loss < best.loss
            if not tied and not self.task.better(headline, best.headline):
                return
        weights = {}
        if self.training.select == "best":
            held = self.average.tensors if self.average is not None else self.module.state_dict()
            weights = {name: tensor.detach().clone() for name, tensor in held.items()}
        state = copy.deepcopy(self.method.state()) if self.method is not None else None
        self.best = Best(epoch, headline, loss, self.snapshots.name, weights, state)

    def _one_buffers(self) -> None:
        """Without synchronised norms every process has statistics of its own: the first one's are taken."""
        if world() > 1:
            take_firsts(self.module.buffers())

    def _said(self) -> dict[str, float]:
        if self.method is None:
            return {}
        with preserved(self.device):  # asking changes nothing
            return {name: float(value) for name, value in self.method.metrics().items()}

    def _now_and_then(self) -> dict[str, Any]:
        """What the method says of itself, asked at most once a second."""
        if self.method is not None and time.monotonic() - self._told[0] > 1.0:
            self._told = (time.monotonic(), self._said())
        return self._told[1]

    @property
    def seconds(self) -> float:
        """Spent in this stage, earlier calls included."""
        return self._before + time.monotonic() - self._began
