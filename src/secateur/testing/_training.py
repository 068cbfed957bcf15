"""What holds while a model is trained with a method at work, and when training is interrupted."""

from __future__ import annotations

import copy
import json
from typing import Any
from unittest import SkipTest

import torch
from torch.nn import functional as F

from secateur.methods.contract import Method
from secateur.testing._construction import require_outputs
from secateur.testing._promises import Broken, require, require_finite, require_number
from secateur.testing._snapshots import Snapshot, first_difference, named_tensors, same
from secateur.testing._subject import RATE, STEPS, Moment, Subject, output, require_same_plan, train

_HALF = STEPS // 2


def loss_is_a_number(subject: Subject) -> None:
    """loss() is a finite number that can be differentiated wherever it depends on parameters"""
    method = subject.make()
    for step, (images, labels) in enumerate(subject.network.batches(STEPS)):
        method.train()
        method(images)
        loss = method.loss()
        where = f"loss() before step {step + 1}"
        require(isinstance(loss, torch.Tensor), f"{where} is {type(loss).__name__} and not a tensor")
        require(loss.shape == (), f"{where} has the shape {tuple(loss.shape)} and is not a scalar")
        require(loss.is_floating_point(), f"{where} is of type {loss.dtype}")
        require_finite(where, loss)
        if loss.requires_grad:
            parameters = [p for p in method.parameters() if p.requires_grad]
            for gradient in torch.autograd.grad(loss, parameters, allow_unused=True):
                if gradient is not None:
                    require_finite(f"the gradient of {where}", gradient)
        train(method, [(images, labels)])


def training_works(subject: Subject) -> None:
    """A few steps of training, with gradients accumulated over two parts, move the model and give no NaN"""
    method = subject.make()
    before = Snapshot.of(method.model)
    optimiser = torch.optim.SGD(method.parameters(), RATE)
    for number, (images, labels) in enumerate(subject.network.batches(STEPS), 1):
        method.train()
        optimiser.zero_grad()
        for part, aims in zip(images.chunk(2), labels.chunk(2), strict=True):
            method.before_forward(aims)
            output = method(part)
            method.after_forward(output, aims)
            loss = (F.cross_entropy(output, aims) + method.loss()) / 2
            require_finite(f"the loss in step {number}", loss)
            loss.backward()
            method.after_backward()
        optimiser.step()
        method.after_step()
        require(method.step == number, f"its `step` is {method.step} after step {number}: call super().after_step()")
        if number in (_HALF, STEPS):
            method.after_epoch()
    for name, tensor in named_tensors(method).items():
        require_finite(f"{name} after training", tensor)
    require(method.progress == 1.0, f"after all steps its `progress` is {method.progress}")
    moved = [name for name, p in method.model.named_parameters() if not same(p.detach(), before.tensors[name])]
    require(moved, "training with the method at work changes nothing in the model")
    require_outputs(subject, method, "after training")


def mixed_precision_works(subject: Subject) -> None:
    """Training goes well under autocast"""
    method = subject.make()
    optimiser = torch.optim.SGD(method.parameters(), RATE)
    method.train()
    for images, labels in subject.network.batches(_HALF):
        method.before_forward(labels)
        with torch.autocast("cpu", torch.bfloat16):
            output = method(images)
            method.after_forward(output, labels)
            task = F.cross_entropy(output, labels)
        loss = task + method.loss()
        require_finite("the loss under autocast", loss)
        optimiser.zero_grad()
        loss.backward()
        method.after_backward()
        optimiser.step()
        method.after_step()
    for name, tensor in named_tensors(method.model).items():
        require_finite(f"{name} after training under autocast", tensor)


def gpu_works(subject: Subject) -> None:
    """The method follows its model to a GPU, and back for the cut"""
    if not torch.cuda.is_available():
        raise SkipTest("there is no GPU")
    method = subject.make().to("cuda")
    train(method, [(images.cuda(), labels.cuda()) for images, labels in subject.network.batches(_HALF)])
    if subject.needs_data(method):
        method.collect([(x.cuda(), y.cuda()) for x, y in subject.network.batches(2)], F.cross_entropy)
    _metrics(method)
    narrow = method.finish()
    require(next(narrow.parameters()).is_cuda, "of a model on the GPU finish() gives a network on the CPU")
    method.to("cpu").finish()


# ------------------------------------------------------------------------------------------------------------- looking


def metrics_are_numbers(subject: Subject) -> None:
    """metrics() gives finite floats by name at any moment, and asking changes nothing"""
    method = subject.make()
    _metrics(method)
    train(method, subject.network.batches(_HALF))
    before = Moment(method)
    _metrics(method)
    before.require_unchanged("metrics() changes")
    _metrics(subject.trained)


def _metrics(method: Method) -> None:
    found = method.metrics()
    require(isinstance(found, dict), f"metrics() gives {type(found).__name__} and not a dict")
    for name, value in found.items():
        require(isinstance(name, str), f"metrics() has a name that is no text, {name!r}")
        require_number(f"the metric {name!r}", value)


def evaluating_leaves_no_trace(subject: Subject) -> None:
    """Evaluation, in every one of evaluation_modes() as well, changes nothing and gives the same again"""
    method = subject.make()
    train(method, subject.network.batches(_HALF))
    images, _ = next(subject.network.batches(1, seed=3))
    method.eval()
    before = Moment(method)
    plain = output(method, images)
    before.require_unchanged("a forward pass in evaluation changes")
    for name, mode in method.evaluation_modes().items():
        require(isinstance(name, str), f"evaluation_modes() has a name that is no text, {name!r}")
        with mode:
            found = output(method, images)
        require(found.shape == plain.shape, f"in the evaluation mode {name!r} the output has another shape")
        require_finite(f"in the evaluation mode {name!r} the output", found)
        before.require_unchanged(f"the evaluation mode {name!r} changes")
        require(
            same(output(method, images), plain), f"after the evaluation mode {name!r} the method evaluates otherwise"
        )
    for name, mode in method.evaluation_modes().items():
        try:
            with mode:
                raise _Passing
        except _Passing:
            pass
        require(
            same(output(method, images), plain), f"an error inside the evaluation mode {name!r} leaves it switched on"
        )


class _Passing(Exception):
    """Raised on purpose."""


# --------------------------------------------------------------------------------------------------------- going on


def seed_decides_everything(subject: Subject) -> None:
    """The same seed gives the same weights and the same plan, whatever PyTorch's own generator holds"""
    found = []
    for noise in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(noise)
            method = subject.make()
            train(method, subject.network.batches(STEPS))
            subject.collect(method)
            found.append((method, method.plan(), method.finish()))
    difference = first_difference(found[0][0], found[1][0])
    require(difference is None, f"the same seed gives other weights after training: {difference}")
    require_same_plan("the same seed gives another plan", found[0][1], found[1][1])
    difference = first_difference(found[0][2], found[1][2])
    require(difference is None, f"the same seed gives another narrow network: {difference}")


def state_is_data(subject: Subject) -> None:
    """state() is strict JSON at any moment; tensors belong into buffers"""
    method = subject.make()
    _as_json(method)
    train(method, subject.network.batches(_HALF))
    _as_json(method)
    _as_json(subject.trained)


def training_goes_on(subject: Subject) -> None:
    """State and tensors of one moment, loaded into a new method, continue the training bit for bit"""
    batches = list(subject.network.batches(STEPS))
    first = subject.make()
    optimiser = torch.optim.SGD(first.parameters(), RATE, momentum=0.9)
    train(first, batches[:_HALF], optimiser)
    tensors = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    state, momentum = _as_json(first), copy.deepcopy(optimiser.state_dict())

    second = subject.make(subject.network.make(seed=9))
    second.load_state_dict(tensors)
    second.load_state(state)
    require(second.state() == first.state(), "load_state() does not bring back what state() gave")
    other = torch.optim.SGD(second.parameters(), RATE, momentum=0.9)
    other.load_state_dict(momentum)

    losses = train(first, batches[_HALF:], optimiser), train(second, batches[_HALF:], other)
    require(
        losses[0] == losses[1], f"after load_state() training takes another way: losses {losses[1]}, not {losses[0]}"
    )
    difference = first_difference(first, second)
    require(difference is None, f"after load_state() training ends in other weights: {difference}")
    require(first.state() == second.state(), "after load_state() training ends in another state()")
    for method in (first, second):
        subject.collect(method)
    require_same_plan("after load_state() training ends in another plan", first.plan(), second.plan())


def _as_json(method: Method) -> dict[str, Any]:
    state = method.state()
    require(isinstance(state, dict), f"state() gives {type(state).__name__} and not a dict")
    try:
        text = json.dumps(state, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Broken(f"state() is not JSON ({error}); tensors belong into buffers") from error
    read: dict[str, Any] = json.loads(text)
    other = [key for key in state if read.get(key) != state[key]]
    require(not other, f"state() holds something at {other[0] if other else ''!r} that JSON gives back otherwise")
    return read
