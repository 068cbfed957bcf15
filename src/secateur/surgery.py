"""Surgery: a plan applied to a model, with the proof; what every way of pruning ends in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from secateur._defaults import own_defaults
from secateur._hints import readable
from secateur._summary import Summary
from secateur.budget import KEYS, Budget
from secateur.errors import BudgetError, CutError, PlanError, WeightsError
from secateur.forms import FORMS, Expected, FormsProof, build_into, cost, expected, prove
from secateur.graph import Cost, Cut, Graph, SizeConflict, Timing, Verification, trace
from secateur.graph.settled import find_settled, keep_settled
from secateur.graph.stale import Stale
from secateur.history import carry, rest, whole
from secateur.plan import Plan, check_plan


@dataclass(frozen=True)
class Result:
    """A smaller model, how it was found, what it saves, and the proof."""

    model: nn.Module
    plan: Plan
    before: Cost
    after: Cost
    verification: Verification | None  # None with verify=False
    graph: Graph
    cut: Cut
    settled: tuple[str, ...]  # sizes written in the model's code that kept channels from being cut freely
    remarks: tuple[str, ...] = ()  # sentences about what the method and its repairs did
    forms: FormsProof | None = None  # the proof of layers that are computed another way, where there are any
    #: MACs on average over images, where layers compute what the image asks for; `after` is then the most there can be.
    expected: Expected | None = None

    @property
    def whole_plan(self) -> Plan:
        """The plan from the network that was never pruned: this one, joined to those of earlier cuts."""
        return whole(self.model, self.plan)

    @property
    def averaged(self) -> Cost:
        """What one forward pass costs on average over images; `after`, unless it depends on them."""
        return self.after if self.expected is None else replace(self.after, macs=self.expected.macs)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences to read: what was done, what the trace could not see, attributes that may hold an old width."""
        stale = (f"{stale}." for stale in self.cut.stale)
        return (*self.remarks, *formed_notes(self.plan), *self.graph.notes, *stale)

    @property
    def stale(self) -> tuple[Stale, ...]:
        """Attributes of modules that still equal a width that was cut, and could not safely follow it."""
        return self.cut.stale

    def __str__(self) -> str:
        """What was cut, what it saves and the proof, at a glance."""
        return self._summary().text()

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        return self._summary().html()

    def _summary(self) -> Summary:
        head = [f"{type(self.model).__name__}, pruned by {self.plan.provenance.get('method', 'a plan')}"]
        for bound, what in (("flops", "MACs"), ("params", "parameters")):
            before, after = (getattr(cost, KEYS.get(bound, bound)) for cost in (self.before, self.averaged))
            head.append(f"{what}: {readable(before)} to {readable(after)} ({self.reached(bound):.1%})")
        if self.expected is not None:
            head.append(f"MACs are {self.expected}.")
        rows = [
            (name, str(len(mask)), str(int(mask.sum())), f"{mask.mean():.0%}") for name, mask in self.plan.masks.items()
        ]
        proof = self.verification
        foot = ["Not verified: verify=False." if proof is None else _said(proof), *self.settled, *self.notes]
        columns = ("group", "before", "after", "remains")
        return Summary(tuple(head), columns, tuple(rows), tuple(foot), ": result.plan.widths has them all")

    def reached(self, bound: str) -> float:
        """The fraction of the original that remains: of "flops", "params", "activations", "peak" or "latency".

        Where MACs depend on the image, their mean over images counts.
        """
        key = KEYS.get(bound, bound)
        whole = getattr(self.before, key)
        return getattr(self.averaged, key) / whole if whole else 1.0


def _said(proof: Verification) -> str:
    """The proof in a sentence."""
    if proof.exact:
        return f"Verified, exact: it computes what the masked original computes (error {proof.max_relative_error:.1e})."
    return f"Verified; not exactly the masked original, because of {'; '.join(proof.reasons) or 'no known reason'}."


def untouched(result: Result, budget: Budget | None) -> tuple[str, ...]:
    """That nothing was removed, where the budget asks for nothing."""
    whole = not result.plan.forms and all(bool(mask.all()) for mask in result.plan.masks.values())
    before = result.before.as_dict()
    if budget is None or not whole or not all(KEYS[key] in before for key, _ in budget.bounds):
        return ()
    within = all(before[key] <= limit for key, limit in budget.limits(result.before).items())
    return ("Nothing was removed: the network is within the budget as it is.",) if within else ()


def formed_notes(plan: Plan) -> tuple[str, ...]:
    """One sentence for each kind of form in a plan."""
    kinds = [form.kind for form in plan.forms.values()]
    return tuple(
        f"{kinds.count(kind)} layers are computed another way (form {kind!r}): each {FORMS[kind].summary}."
        for kind in dict.fromkeys(kinds)
    )


@own_defaults
def apply(
    model: nn.Module,
    example_inputs: Any,
    plan: Plan,
    *,
    verify: bool = True,
    inplace: bool = False,
    timing: Timing | None = None,
) -> Result:
    """Cut `model` as a (loaded) plan says; the model must have the architecture the plan was made for.

    Cut, proof, then the layers that the plan has computed another way, with a proof of their own.

    timing: predicts latencies, which then are among the costs before and after.

    Args:
        model: the whole network. example_inputs: as in `secateur.trace`. plan: which channels stay.
        verify: compare the cut with the masked original, and refuse a cut that is not the same; so with forms.
        inplace: cut `model` itself; else it stays as it is.

    Raises:
        PlanError: the plan does not fit this network.
    """
    check_plan(plan)
    attention = plan.provenance.get("attention", "heads")
    graph = trace(model, example_inputs, attention=attention if attention == "head_dim" else "heads")
    check_weights(graph)
    given, plan = plan, rest(plan, graph, graph.model)
    try:
        for conflict in find_settled(plan.provenance.get("settled", []), graph.recording.calls):
            graph.settle(conflict)
    except CutError as error:
        raise PlanError("The plan was made around sizes in code of another network: make it again for this.") from error
    plan.check(graph)
    if timing is not None:
        graph.attach(timing)
    before, made = graph.cost(), graph.cut(plan)
    noted = plan.provenance.get("seed")
    seed = noted if isinstance(noted, int) else 0
    proof = graph.verify(made, plan, seed=seed) if verify else None
    second = prove(made.model, plan.forms, example_inputs, seed=seed) if verify and plan.forms else None
    build_into(made.model, plan.forms)
    after, mean = cost(graph, plan), expected(plan, example_inputs)
    if inplace:
        made = graph.cut(plan, inplace=True)
        build_into(made.model, plan.forms)
    said = tuple(str(conflict) for conflict in graph.settled)
    told = carry(graph.model, made.model, plan)
    remarks = tuple(each for each in (None if plan is given else _done_before(plan), told) if each)
    return Result(made.model, plan, before, after, proof, graph, made, said, remarks, second, mean)


def _done_before(rest_of_it: Plan) -> str:
    """What is said where a network had been cut by a part of the plan, or by all of it."""
    if all(mask.all() for mask in rest_of_it.masks.values()):
        return "The network was cut by this plan before: nothing was left to do."
    return "The network was cut by the first part of this plan before: the rest was done."


def settled_plan(
    graph: Graph, make_plan: Callable[[Graph], Plan], *, inplace: bool = False, notes: list[str] | None = None
) -> tuple[Plan, Cut]:
    """The plan that `make_plan` makes of a graph, and its cut; sizes in the model's code that stand against it settle.

    A plan meets such a size only at some widths. The graph then ties or freezes channels, its groups are others, and
    the plan is made again, until one can be cut; every time fewer channels are free, so there is an end.

    Args:
        graph: of the network; it is solved again where something settles.
        make_plan: called once, and again each time something has settled.
        inplace: narrow the network itself.
        notes: takes one sentence for each size that settled.

    Raises:
        BudgetError: nothing is left that can be pruned. Whatever `make_plan` raises: a budget may be out of reach now.
    """
    while True:
        plan = make_plan(graph)
        try:
            return plan, graph.cut(plan, inplace=inplace)
        except SizeConflict as conflict:
            said = graph.settle(conflict)
        if notes is not None:
            notes.append(said)
        if not graph.groups:
            raise BudgetError(nothing_to_prune(graph))


def remember(graph: Graph, plan: Plan) -> list[str]:
    """Note in the plan what a fresh trace must be told to have the same groups, and what its latency was taken for.

    Returns:
        sentences to tell the user.
    """
    plan.provenance["attention"] = graph.attention
    plan.provenance["settled"] = keep_settled(graph.settled, graph.recording.calls)
    notes: list[str] = list(plan.provenance.get("notes", ()))
    if graph.timing is not None:
        said = plan.provenance["latency"] = graph.timing.about(graph, plan)
        notes += [said["note"]] if "note" in said else []
    return notes


def check_weights(graph: Graph) -> None:
    """Refuse weights that are not numbers."""
    numbers = {name: t.detach() for name, t in graph.tensors().items() if t.is_floating_point() and t.numel()}
    numbers = {name: t if t.element_size() > 1 else t.float() for name, t in numbers.items()}  # 8 bits compute nothing
    largest = nn.utils.get_total_norm(list(numbers.values()), norm_type=float("inf"))
    if bool(torch.isfinite(largest)):
        return
    for name, tensor in numbers.items():
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{name} holds NaN or infinite values; load sound weights before pruning.")


def nothing_to_prune(graph: Graph) -> str:
    """The sentence for a network without a single group."""
    told = [f"{f.name or 'the model'}: {f.reason}" for f in graph.frozen]
    told += [
        f"operator {u.operator} has no rule (in {u.module or 'the model'})"
        for u in graph.unsupported
        if not any(f"operator {u.operator} has no rule" in line for line in told)
    ]
    why = "; ".join(sorted(told, key=lambda line: "has no rule" not in line)[:3])
    return f"Nothing in {type(graph.model).__name__} can be pruned ({why or 'it has no layer with channels'})."
