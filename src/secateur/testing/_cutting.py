"""What holds of the result: an ordinary, narrower network of the same class, proven, saved, exported, trained on."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from pathlib import Path
from unittest import SkipTest

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from secateur import runtime
from secateur.forms import touched
from secateur.testing._promises import require, require_finite
from secateur.testing._snapshots import Snapshot, first_difference, same
from secateur.testing._subject import RATE, STEPS, Moment, Subject, output, planned, require_same_plan, train

#: How far the narrow network may be from the masked one, relative to the largest output.
AGREEMENT = 1e-3
#: How far an image alone may be from the same in a batch, relative to the largest output.
SINGLE = 1e-5


def result_is_ordinary(subject: Subject) -> None:
    """finish() gives a network of the same class in which nothing of the method is left but the forms of its plan"""
    small, plain = subject.narrow, subject.network.make()
    require(
        type(small) is type(plain), f"finish() gives {type(small).__name__}, and the model is {type(plain).__name__}"
    )
    require(small is not subject.trained.model, "finish() gives the model itself and not a copy")
    shared = {id(p) for p in subject.trained.parameters()} & {id(p) for p in small.parameters()}
    require(not shared, "the narrow network shares parameters with the method")
    forms = subject.result.plan.forms
    outcome = subject.row.result if subject.row is not None else "forms"
    require(not forms or outcome != "ordinary", "layers are computed another way, and the row's result is 'ordinary'")
    others = touched(forms)
    names, wanted = (
        [n for n in m.state_dict() if not any(n.startswith(f"{f}.") for f in others)] for m in (small, plain)
    )
    other = sorted(set(names) ^ set(wanted))
    require(names == wanted, f"the narrow network's state_dict has other names: {other[0] if other else 'their order'}")
    difference = Snapshot.of(plain).other_parts(small.train(plain.training), besides=others)
    require(difference is None, f"finish() leaves something in the narrow network: {difference}")
    for name, tensor in small.state_dict().items():
        require_finite(f"{name} of the narrow network", tensor)


def result_is_narrower(subject: Subject) -> None:
    """The result is narrower, proven, within the budget, and costs what it says"""
    small, result = subject.narrow, subject.result
    require(result.model is small, "`result.model` is not what finish() gave")
    proof = result.verification
    require(proof is not None and proof.passed, "the cut was not verified: leave verification on")
    require(not result.plan.forms or result.forms is not None, "its forms were not verified: leave verification on")
    zeros = "sparse" in result.plan.provenance  # single weights: the network keeps its shape
    require(zeros or result.averaged.macs < result.before.macs, "finish() removes nothing")
    depends = result.expected is not None
    outcome = subject.row.result if subject.row is not None else "per input"
    require(not depends or outcome == "per input", f"costs depend on the image, and the row's result is {outcome!r}")
    twin = copy.deepcopy(small).requires_grad_(False).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(subject.network.inputs())
    macs, params = counter.get_total_flops() // 2, sum(p.numel() for p in small.parameters())
    require(result.after.macs == macs, f"`result` says {result.after.macs} MACs, and PyTorch counts {macs}")
    require(result.after.params == params, f"`result` says {result.after.params} parameters, and there are {params}")
    limits = {} if zeros else subject.trained.budget.limits(result.before)
    for key, limit in limits.items():
        found = getattr(result.averaged, key)
        require(found <= limit, f"the narrow network has {found} {key}, and the budget allows {limit:.0f}")
    for name, value in {"method": subject.trained.name, "seed": subject.trained.seed}.items():
        require(result.plan.provenance.get(name) == value, f"the plan's provenance does not name the {name}")
    images, _ = next(subject.network.batches(1))
    wanted, given = output(subject.network.make(), images), output(small, images)
    require(
        given.shape == wanted.shape and given.dtype == wanted.dtype, "the narrow network's output is of another shape"
    )
    require_finite("the narrow network's output", given)


def result_follows_its_images(subject: Subject) -> None:
    """Where costs depend on the image, their mean is what it says, and images alone give what they give in any batch"""
    said = subject.result.expected
    if said is None:
        return
    twin, network = copy.deepcopy(subject.narrow).requires_grad_(False).eval(), subject.network
    shown = torch.cat([images for images, _ in network.batches(2, seed=5)])  # those of `Subject.collect`
    counts = []
    for image in shown.split(1):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            twin(image)
        counts.append(counter.get_total_flops() // 2)
    mean, rows = sum(counts) / len(counts), len(network.inputs())
    require(
        abs(rows * mean - said.macs) <= 1e-3 * said.macs,
        f"`result.expected` says {said.macs} MACs on average, and PyTorch counts {rows * mean:.0f}",
    )
    require(said.images == len(shown), f"`result.expected` is of {said.images} images, and {len(shown)} were shown")
    require(max(counts) * rows <= subject.result.after.macs, "an image costs more than `result.after` says")
    images = torch.cat([shown[:3], torch.zeros_like(shown[:1])])  # the last one opens whatever gates open for nothing
    whole, order = output(twin, images), torch.tensor([2, 0, 3, 1])
    for what, given, wanted in (
        ("alone", torch.cat([output(twin, image) for image in images.split(1)]), whole),
        ("in another order", output(twin, images[order]), whole[order]),
    ):
        error = float((given - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
        require(error <= SINGLE, f"images {what} give outputs that are {error:.1e} from those of the batch")


def weights_meet_the_budget(subject: Subject) -> None:
    """Where single weights are set to zero, as many stay as the budget allows, to 1%"""
    said = subject.result.plan.provenance.get("sparse")
    if said is None:
        return
    weights = [subject.narrow.get_parameter(name) for name in said["names"]]
    total, left = sum(w.numel() for w in weights), sum(int(w.count_nonzero()) for w in weights)
    bound = dict(subject.trained.budget.bounds)["params"]
    allowed = bound if bound > 1 else bound * total
    require(left == said["nonzero"], f"the plan says that {said['nonzero']} weights are not zero, and {left} are not")
    require(left <= allowed + 0.5, f"{left} of {total} weights are not zero, and the budget allows {allowed:.0f}")
    require(left >= 0.99 * allowed, f"{left} of {total} weights are not zero, 99% of the budget would be {allowed:.0f}")


def finish_can_be_repeated(subject: Subject) -> None:
    """finish() leaves the method as it was, gives the same again, and training goes on as if nobody had asked"""
    method, other = subject.make(), subject.make()
    batches = list(subject.network.batches(STEPS))
    half = STEPS // 2
    optimisers = [torch.optim.SGD(m.parameters(), RATE, momentum=0.9) for m in (method, other)]
    for each, optimiser in zip((method, other), optimisers, strict=True):
        train(each, batches[:half], optimiser)
        subject.collect(each)
    before = Moment(method)
    first = method.finish()
    plan = method.result.plan if method.result is not None else planned(method)[0]
    before.require_unchanged("finish() changes")
    second = method.finish()
    require(second is not first, "finish() gives the same object twice")
    difference = first_difference(first, second)
    require(difference is None, f"finish() gives another network the second time: {difference}")
    require_same_plan("finish() gives another plan the second time", plan, planned(method)[0])
    for each, optimiser in zip((method, other), optimisers, strict=True):
        train(each, batches[half:], optimiser)
    difference = first_difference(method, other)
    require(difference is None, f"after finish() in between training goes another way: {difference}")


def result_is_the_masked_network(subject: Subject) -> None:
    """Where the method can be evaluated with "hard" masks, the narrow network computes the same"""
    method = subject.trained
    mode = method.evaluation_modes().get("hard")
    if mode is None:
        return
    images, _ = next(subject.network.batches(1, seed=4))
    with mode:
        wanted = output(method, images)
    given = output(subject.narrow, images)
    error = float((wanted - given).abs().max() / wanted.abs().max().clamp_min(1e-12))
    require(error <= AGREEMENT, f"the narrow network is {error:.1e} from the one with hard masks")


def result_can_be_trained(subject: Subject) -> None:
    """The narrow network can be trained on"""
    small = copy.deepcopy(subject.narrow).train()
    before = Snapshot.of(small)
    optimiser = torch.optim.SGD(small.parameters(), RATE)
    for images, labels in subject.network.batches(2):
        optimiser.zero_grad()
        loss = F.cross_entropy(small(images), labels)
        require(loss.requires_grad, "no parameter of the narrow network requires a gradient")
        loss.backward()
        optimiser.step()
        require_finite("the loss of the narrow network", loss)
    still = [name for name, p in small.named_parameters() if p.requires_grad and p.grad is None]
    require(not still, f"training does not reach {still[0] if still else ''} of the narrow network")
    require(before.other_tensors(small) is not None, "training does not change the narrow network")


def result_is_saved(subject: Subject) -> None:
    """The narrow network is saved as data, and comes back as it was"""
    small, result, network = subject.narrow.eval(), subject.result, subject.network
    with tempfile.TemporaryDirectory() as folder:
        reference = f"secateur.testing:{network.name}"
        runtime.save_model(folder, small, reference=reference, inputs=network.inputs(), plan=result.plan)
        again = runtime.load(folder, model=network.make(seed=9))
    require(type(again) is type(small), f"the saved network comes back as {type(again).__name__}")
    difference = first_difference(small, again)
    require(difference is None, f"the saved network comes back with other values: {difference}")
    images, _ = next(network.batches(1))
    require(same(output(small, images), output(again, images)), "the saved network comes back and computes otherwise")


def result_is_exported(subject: Subject) -> None:
    """The narrow network goes to ONNX and computes the same there"""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise SkipTest(f"{package} is not installed")
    with tempfile.TemporaryDirectory() as folder:  # it compares what the file computes with the network
        runtime.export_onnx(subject.narrow.eval(), subject.network.inputs(), Path(folder, "model.onnx"))


def structure_is_cut(subject: Subject) -> None:
    """A network of this structure is refused in one sentence, or trained, cut and proven"""
    if subject.refused:
        return
    result_is_ordinary(subject)
    result_is_narrower(subject)
    result_follows_its_images(subject)
    weights_meet_the_budget(subject)
    result_is_the_masked_network(subject)
