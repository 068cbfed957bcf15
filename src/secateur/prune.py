"""`prune`: the whole way from a model and a budget to a smaller, verified model, in one call."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn import functional as F

from secateur._alone import alone
from secateur._defaults import own_defaults
from secateur._hints import checked_seed, choose
from secateur._settings import validated
from secateur.allocate import ALLOCATORS, MEASURED, Constraints, allocate
from secateur.batches import Batches
from secateur.budget import Budget
from secateur.errors import BudgetError, ConfigError, InputError, ModelError
from secateur.graph import Graph, trace
from secateur.graph.modules import clone_module, named_tensors
from secateur.history import carry
from secateur.latency import Watcher, align_of, price
from secateur.methods import Method, MethodRow, method, row_of
from secateur.methods.baselines import OneShot, accumulate_gradients
from secateur.methods.hands import check_loss, computed
from secateur.methods.kit.measured import Measured
from secateur.plan import Plan
from secateur.repair import Repair, mend, repairs
from secateur.surgery import Result, apply, check_weights, nothing_to_prune, remember, settled_plan, untouched
from secateur.tasks import Task, create

__all__ = ["Result", "apply", "prune"]

Loss = Callable[[Any, Any], torch.Tensor]


@alone
@own_defaults
def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    method: str | MethodRow | type[Method] | Callable[[Graph], Mapping[str, Any]] = "l1",
    budget: str | Mapping[str, float | str] | Budget | None = None,
    data: Iterable[Any] | None = None,
    task: str | Task | None = None,
    loss: Loss | None = None,
    repair: str | Repair | Iterable[str | Repair] = (),
    allocator: str | Measured | None = None,
    normalise: str | None = None,
    ratios: Mapping[str, float] | None = None,
    align: int | str = 1,
    ignore: Iterable[str] | str = (),
    min_channels: int = 1,
    max_ratio: float = 1.0,
    attention: Literal["heads", "head_dim"] = "heads",
    verify: bool = True,
    seed: int = 0,
    inplace: bool = False,
    watch: Watcher | None = None,
    **settings: Any,
) -> Result:
    """Choose channels by a method, remove the others until the budget is met, and prove the result.

    Args:
        model: any `torch.nn.Module`; DataParallel, DistributedDataParallel and compiled wrappers are taken off.
        example_inputs: a tensor, a tuple of arguments or a dict of keywords with which `model` runs.
        method: a name of `secateur methods` that needs no training loop, a `MethodRow`, a subclass of `Method`, or a
            function from the graph to scores {group: [width]}, higher = keep.
        budget: what may remain, such as "flops=0.5", "params=2e6", {"flops": 0.5, "peak": 0.8} or
            "latency=0.6@onnxruntime"; see `Budget`.
        data: batches for methods and repairs that learn from images, in any form that `secateur.batches.Batches`
            reads: a DataLoader, pairs (inputs, target), bare inputs, dicts. Labels are asked for where they are looked
            at only.
        task: what the network is for, a name of `secateur.tasks.TASKS` or a `Task`: methods get its loss, and those
            that cannot serve it are refused. loss: loss(output, target) in its place; neither: cross entropy.
        repair: names of `secateur repairs`, or such objects: what is done to the surviving weights.
        allocator: "global", "uniform", "per_cost" or "ratios" (with `ratios`: {layer pattern: share removed}, which
            alone asks for it, too); or "measured", for cap and methods that only score: groups are narrowed one at a
            time, and widths follow from how much that changes the network's answers to `data`; a
            `secateur.methods.kit.measured.Measured` has data of its own, and remembers. normalise: how scores become
            comparable between groups; None: as the method has it.
        align: kept widths are multiples of this, or of what suits a processor: a name of
            `secateur.latency.PRESETS`, or "auto" for this one. ignore: patterns of layers whose outputs stay whole.
        min_channels: channels that stay in every group. max_ratio: largest share of a group that may go.
        attention: prune whole "heads" or the features of every head ("head_dim").
        verify: compare the result with the masked original. seed: of everything random.
        inplace: narrow `model` itself instead of a copy.
        watch: told (done, total, runtime) while layer shapes are measured for a latency budget.
        settings: the method's own, as `secateur methods NAME` lists them.

    Raises:
        SecateurError: one sentence that names the cause and the remedy; `model` is then as it was.
    """
    row = _row(_renamed(method, settings), settings)
    wanted = create(task) if task is not None else None
    if wanted is not None:
        row.check_task(wanted, example_inputs)
    usual = cross_entropy if wanted is None else _loss_of(wanted)
    given = None if loss is None else _Given(loss)
    mending = repairs(repair)
    _check_data(row, data)
    seed = checked_seed(seed)
    constraints = Constraints(cast(Any, ignore), min_channels, max_ratio, align_of(align))  # checked there
    bounds = None if budget is None else Budget.parse(budget)
    batches = None if data is None else Batches(data, example_inputs)
    measured = allocator if isinstance(allocator, Measured) else None
    allocator = MEASURED if isinstance(allocator, Measured) else allocator or ("ratios" if ratios else None)
    _check_allocator(allocator, bounds, measured or data, normalise=normalise, ratios=ratios)
    if measured is None and allocator == MEASURED:
        measured = Measured(batches or (), seed)
    factory: Any = row.factory
    if isinstance(factory, type) and issubclass(factory, OneShot):
        graph = _traced(model, example_inputs, attention)
        constraints = price(graph, bounds, constraints, watch)
        gradients = _Gradients(row.name, batches, given or usual)
        score = factory.scorer(validated(row.config, settings, "method"), seed, gradients)

        def planned(graph: Graph) -> Plan:
            scores = score(graph)
            if measured is not None:
                return measured.plan(graph, scores, bounds, constraints)
            return allocate(
                scores, graph, bounds, constraints,
                allocator=allocator or "global", normalise=normalise or "mean", ratios=ratios,
            )  # fmt: skip

        found = _scored(row, graph, planned, batches, mending, seed=seed, verify=verify, inplace=inplace)
        unused = None if measured is not None else data
        said = (*_unasked(row, unused, mending, given), *untouched(found, bounds))
        return replace(found, remarks=(*said, *found.remarks))
    if ratios or allocator == "ratios" or bounds is None:
        raise ConfigError(
            f'The method {row.name!r} finds its widths from a budget, such as budget="flops=0.5", and takes no ratios: '
            "give a budget, or use ratios with a method that only scores, such as l1."
        )
    if "steps" in settings:  # which every constructor takes
        close = [name for name in row.config.model_fields if "steps" in name]
        raise ConfigError(
            "steps= is how long a training with the method at work is, and prune has none: leave it out"
            + (f", or did you mean {close[0]}=?" if close else ".")
        )
    chosen: dict[str, Any] = {"allocator": measured or allocator} if allocator is not None else {}
    made = factory(
        model, example_inputs,
        budget=bounds, constraints=constraints, normalise=normalise, attention=attention, seed=seed, watch=watch,
        **chosen, **settings,
    )  # fmt: skip
    made.verify_cut = verify
    if row.needs == "calibration":
        assert batches is not None
        made.collect(batches, given or usual)
    made.finish(mending, batches or ())
    assert made.result is not None
    said = (*_unasked(row, data, mending, given), *untouched(made.result, bounds))
    result = replace(made.result, remarks=(*said, *made.notes))
    return _inplace(result, made) if inplace else result


def cross_entropy(output: Any, target: Any) -> torch.Tensor:
    """The usual loss of class scores; ConfigError where output and target are no such thing.

    Class numbers are integers of any size; -100 stands for none. InputError where others are beyond the scores.
    """
    scores = isinstance(output, torch.Tensor) and output.is_floating_point() and output.ndim >= 2
    shares = isinstance(target, torch.Tensor) and scores and target.shape == output.shape and target.is_floating_point()
    numbers = isinstance(target, torch.Tensor) and not target.is_floating_point() and target.ndim == output.ndim - 1
    if not scores or not (shares or numbers) or output.shape[1] < 2:
        raise ConfigError(
            "Without loss= the loss is cross entropy of class scores and class numbers, and these outputs and targets "
            "are of another kind: pass loss=(a function of output and target)."
        )
    if not numbers:
        return F.cross_entropy(output, target)
    known, most = target[target != -100], output.shape[1] - 1
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) <= most:
        raise InputError(
            f"Class numbers go from {int(known.min())} to {int(known.max())}, and the network tells {most + 1} classes "
            f"apart: they must go from 0 to {most}."
        )
    return F.cross_entropy(output, target.long())


def _loss_of(task: Task) -> Loss:
    """A task's loss, which says what is wrong with answers and targets that it cannot take."""

    def loss(output: Any, target: Any) -> torch.Tensor:
        try:
            return task.loss(output, target)
        except (IndexError, RuntimeError, TypeError, ValueError):
            task.check(output, target)
            raise

    return loss


def _renamed(given: Any, settings: dict[str, Any]) -> Any:
    """The method, also where it comes under its former name, which is taken out of `settings`; that is told."""
    if "criterion" not in settings:
        return given
    former = settings.pop("criterion")
    told = f"criterion= is now called method=: write method={former!r}"
    if given != "l1":
        raise ConfigError(f"{told}, and not method={given!r} as well.")
    warnings.warn(f"{told}.", FutureWarning, stacklevel=5)
    return former


def _row(given: Any, settings: Mapping[str, Any]) -> MethodRow:
    """The row of what was given as `method`; ConfigError where that is no method for one call."""
    row = method(given) if isinstance(given, str) else row_of(given)
    taken = row.config.model_fields.keys() & inspect.signature(prune).parameters
    if taken:
        raise ConfigError(
            f"The setting {min(taken)!r} of the method {row.name!r} is named like an argument of prune, which takes it "
            f'for itself: give it another name, or use secateur.methods.create("{row.name}", ...).'
        )
    if row.acts == "while training":
        raise ConfigError(
            f"The method {row.name!r} acts while the network is trained, which one call cannot do: drive it in a "
            f'training loop with secateur.methods.create("{row.name}", model, inputs, budget=..., steps=...), or write '
            f"a recipe with method: {row.name} for secateur run."
        )
    return row


def _check_allocator(allocator: str | None, bounds: Budget | None, data: Any, **unused: Any) -> None:
    """ConfigError for one that is unknown, or lacks what it needs; unused: what "measured" has no use for."""
    if allocator is not None:
        choose(allocator, (*ALLOCATORS, MEASURED), "allocator")
    if allocator != MEASURED:
        return
    for name, value in unused.items():
        if value is not None:
            raise ConfigError(
                f'{name}={value!r} is of no use with allocator="measured", which measures how groups compare: leave '
                "one of them out."
            )
    if bounds is None:
        raise BudgetError('allocator="measured" needs a budget: give one such as "flops=0.5".')
    if data is None:
        raise ConfigError(
            'allocator="measured" looks at images and none are given: pass data=(batches), or on the command line '
            "--data KIND:PATH."
        )


def _check_data(row: MethodRow, data: Any) -> None:
    if row.needs == "calibration" and data is None:
        what = "images and labels" if row.labels else "images"
        raise ConfigError(
            f"The method {row.name!r} learns from {what} and none are given: pass data=(batches), or "
            "on the command line --data KIND:PATH."
        )


class _Given:
    """A loss of the user's, and whether anybody has asked for it."""

    def __init__(self, loss: Loss) -> None:
        check_loss(loss)
        self._loss, self.asked = loss, False

    def __call__(self, output: Any, target: Any) -> torch.Tensor:
        self.asked = True
        found: torch.Tensor = computed(self._loss, output, target)
        return found


def _unasked(row: MethodRow, data: Any, mending: list[Repair], loss: _Given | None) -> Iterator[str]:
    """What was given and made no difference, in sentences."""
    if data is not None and row.needs == "nothing" and not mending:
        yield f"The data were not used: {row.name} needs none, and no repair is given."
    if loss is not None and not loss.asked:
        yield f"The loss function was not used: {row.name} does not need it."


def _traced(model: nn.Module, example_inputs: Any, attention: Literal["heads", "head_dim"]) -> Graph:
    """The graph of a model that can be pruned."""
    graph = trace(model, example_inputs, attention=attention)
    check_weights(graph)
    if not graph.groups:
        raise ModelError(nothing_to_prune(graph))
    return graph


class _Gradients:
    """Gradients of the loss, gathered once, when they are first asked for."""

    def __init__(self, name: str, batches: Batches | None, loss: Loss) -> None:
        self._name, self._batches, self._loss = name, batches, loss
        self._found: dict[str, torch.Tensor] = {}

    def __call__(self, graph: Graph) -> dict[str, torch.Tensor]:
        if not self._found:
            assert self._batches is not None
            shown = self._batches.labelled(f"The method {self._name!r}")
            self._found = accumulate_gradients(graph.model, shown, self._loss)
        return self._found


def _scored(
    row: MethodRow,
    graph: Graph,
    planned: Callable[[Graph], Plan],
    batches: Batches | None,
    mending: list[Repair],
    *,
    seed: int,
    verify: bool,
    inplace: bool,
) -> Result:
    """Plan and cut, around every size that is written in the model's code."""
    before = graph.cost()
    plan, made = settled_plan(graph, planned, inplace=inplace and not verify and not mending)
    plan.provenance.update({"method": row.name, "seed": seed})
    notes = tuple(remember(graph, plan))
    if mending:
        result = _mended(graph, plan, mending, batches or (), verify=verify, inplace=inplace)
        return replace(result, remarks=(*notes, *result.remarks))
    proof = graph.verify(made, plan, seed=seed) if verify else None
    after = graph.cost(plan)
    if inplace and verify:  # only now that everything has worked out
        made = graph.cut(plan, inplace=True)
    settled = tuple(str(conflict) for conflict in graph.settled)
    if (remark := carry(graph.model, made.model, plan)) is not None:
        notes = (*notes, remark)
    return Result(made.model, plan, before, after, proof, graph, made, settled, notes)


def _mended(
    graph: Graph, plan: Plan, mending: list[Repair], batches: Iterable[Any], *, verify: bool, inplace: bool
) -> Result:
    """Cut a copy whose surviving weights have been repaired."""

    def copied() -> nn.Module:
        return clone_module(graph.model, lambda tensor: tensor.detach().clone())

    plain = copied()
    notes = mend(plain, copied, graph, plan, mending, batches)
    result = apply(plain, graph.example_inputs, plan, verify=verify, timing=graph.timing)
    if notes:
        plan.provenance["notes"] = [*plan.provenance.get("notes", ()), *notes]
    result = replace(result, remarks=tuple(notes))
    if not inplace:
        return result
    repaired = named_tensors(plain)
    with torch.no_grad():
        for name, tensor in graph.tensors().items():
            tensor.copy_(repaired[name])
    made = graph.cut(plan, inplace=True)
    carry(graph.model, made.model, plan)
    return replace(result, model=made.model, cut=made)


def _inplace(result: Result, made: Method) -> Result:
    """The user's own model narrowed, with the weights that the method gave the narrow copy.

    A fresh trace cuts it: the plan may have been made around sizes that the method's own graph does not know of.
    """
    found = named_tensors(result.model)
    here = apply(made.model, made.example_inputs, result.plan, verify=False, inplace=True)
    with torch.no_grad():
        for name, tensor in named_tensors(here.model).items():
            tensor.copy_(found[name])
    return replace(result, model=here.model, cut=here.cut, graph=here.graph)
