"""Network automatic pruning: NAP.

Zeng, Xiong, Urtasun: Network Automatic Pruning: Start NAP and Take a Nap, 2021 (arXiv:2101.06608); the fine-grained
part is their MLPrune (ICLR 2019 submission). The loss a removal costs is that of the optimal brain surgeon, with the
Fisher matrix in its K-FAC form for the Hessian; A, G are the factors of a layer, A' and G' their inverses:

    weight (i, j)      dL = W_ij² / (2 G'_ii A'_jj)
    output channel i   dL = W_i A W_iᵀ / (2 G'_ii)                    side: producer
    input channel C    dL = ½ tr(G W_C ([A']_CC)⁻¹ W_Cᵀ)              side: consumer

Layers are independent, so a channel's dL is the sum over the layers of its group. All scores, unnormalised, meet one
threshold, and the ratio of each layer follows. Rounds of pruning alternate with fine-tuning.

Where this differs from the paper, and why:
    The full text could not be obtained. Recalled, unverified, or advice of our own: the structured score (rows of the
    producers), the rounds (10, each removing the same fraction of what is left, and of no group more than half), the
    running averages (0.95 a statistics pass, one every 10 steps, oftener where a round is short), and the damping
    (a thousandth of the mean eigenvalue). The rounds end after 40% of the training: later ones would meet learning
    rates too small to recover from them. What follows them is the fine-tuning, in the same training: a comparison adds
    none after the cut, which would begin with a high rate anew. Ranking by dL per cost is ours: the paper's threshold
    is on the weights that stay, and so is the default here where the budget bounds parameters alone; under any other
    budget a channel's dL is divided by what it saves
    (`allocator: global` is the paper's way). Where the last round would leave more than 1% of the budget, channels stay
    in place of others, those whose exchange loses the least. Mean responses of removed channels move into the bias or
    the running mean of the layers that read them. Batch norms follow in training, so there is no separate pass to
    recalibrate them.
    Targets are drawn from softmax scores in the paper. Here `answers` says what the output is, or the first batch of
    targets does: scores of yes or no have Bernoulli targets, numbers have normal ones of unit variance.
    With `mode: weight` the budget's `params` is the share of weights of linear and convolution layers that stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur._protocols import BoolArray, FloatArray
from secateur.allocate.ties import undecided
from secateur.errors import BudgetError, ConfigError, ModelError
from secateur.graph.modules import Inputs, call_with_copies, map_tensors
from secateur.graph.norms import sources
from secateur.methods.contract import Loss, Method
from secateur.methods.kit.aim import CLOSE, Aim, counts
from secateur.methods.kit.answers import AGREED, agreement, kind_of
from secateur.methods.kit.holding import hold, stop_gradients
from secateur.methods.kit.ranking import Goal, Limits, lower
from secateur.methods.kit.rounds import Rounds
from secateur.methods.kit.sparse import WeightMasks, check_constraints, share_of
from secateur.methods.nap.importance import Importance
from secateur.methods.nap.kfac import Batch, Factors
from secateur.methods.nap.removal import remove
from secateur.methods.nap.settings import NAPSettings
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.repair import Repair
from secateur.repair.masking import alive, apply_masks

Masks = dict[str, BoolArray]

_TINY = float(np.finfo(np.float64).tiny)


class NAP(Method):
    """Prune in rounds while training, by the curvature of the loss."""

    name = "nap"
    Config = NAPSettings
    settings: NAPSettings
    comparable = "none"

    def prepare(self) -> None:
        """Make room for the factors, and see what can be scored."""
        s = self.settings
        self._round, self._calls = 0, list[Batch]()
        self.rounds = Rounds(s.rounds, s.start, s.end, self.steps, s.stat_every, s.batches)
        self.importance = Importance(
            self.graph,
            map_tensors(self.example_inputs, lambda tensor: tensor.to(self.device)),
            side=s.side,
            form=s.form,
            damping=s.damping,
            kind=s.damping_kind,
            per_layer=s.normalize == "layer_sum",
            seed=self.seed,
            positions=s.positions,
            largest=s.largest,
        )
        if s.fisher == "sampled" and not self.factors.draws:
            raise ModelError(
                f"NAP draws targets from the network's own answers, and {type(self.model).__name__} does not give one "
                "tensor [samples, ...]: choose another method."
            )
        self.factors.answers = None if s.answers == "auto" else s.answers
        self._first: tuple[torch.Tensor, torch.Tensor] | None = None  # output and target by which `answers` is judged
        self._kept: Masks = {g.name: np.ones(g.width, dtype=np.bool_) for g in self.graph.groups}
        self._held: dict[str, torch.Tensor] = {}  # masks of parameters by name, to be multiplied with
        if s.mode == "weight":
            self.weight_masks = WeightMasks(self.graph, self.importance.weights, self.constraints)
            return
        if self.normalise != "none":
            self.notes.append(f"NAP ranks unnormalised scores, so normalise={self.normalise!r} was not applied.")
        scored = self.importance.scored
        unscored = [g.name for g in self.graph.groups if g.name not in scored]
        if not scored:
            raise ModelError(f"NAP has no score for any channel of {type(self.model).__name__}: choose another method.")
        if unscored:
            self.notes.append(f"Groups that NAP has no score for stay whole: {', '.join(unscored[:3])}.")
            self.constraints = self.constraints.keeping(unscored)
        self._cap()
        self.aim = Aim(self.graph, self.budget)
        norms = sources(self.graph).of
        self._norms = {layer: norm for norm, layer in norms.items() if layer is not None}

    def _cap(self) -> None:
        """At most `max_prune_ratio` of a group goes, unless the budget cannot be met so."""
        given = self.constraints
        self.constraints = replace(given, max_ratio=min(given.max_ratio, self.settings.max_prune_ratio))
        try:
            self._check_reach()
        except BudgetError:
            self.constraints = given
            self.notes.append("The budget cannot be met with max_prune_ratio, so it does not hold.")

    # ------------------------------------------------------------------------------------------------- training

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """The model's output; in training, inputs are remembered for a pass of statistics that is due."""
        if self.training and torch.is_grad_enabled() and self.rounds.looks(self.step + 1, self._round):
            self._calls.append(Batch.of(Inputs(*args, **keywords)))  # copies: a forward may write over its inputs
        return self.model(*args, **keywords)

    def after_forward(self, output: Any, target: Any) -> None:
        """See what kind of answer the output is; remember labels for the empirical Fisher."""
        if self._calls and self.factors.answers is None:
            self._judge(output, target)
        if self._calls and self.settings.fisher == "empirical":
            self._calls[-1] = replace(self._calls[-1], target=target)

    def _judge(self, output: Any, target: Any) -> None:
        """Take the kind of answer that a batch shows, the first that shows one."""
        kind = kind_of(output, target) if isinstance(output, torch.Tensor) else None
        self.factors.answers = kind
        if kind == "classes" and output.requires_grad:
            output.retain_grad()
            self._first = output, target

    def _confirm(self) -> None:
        """Class labels do not make class scores of embeddings: the training's own gradient tells."""
        if self._first is not None and agreement(*self._first, "classes") < AGREED:
            self.factors.answers = "numbers"
            self.notes.append(
                "The training's loss does not take the outputs for class scores, so NAP takes them for numbers: set "
                "answers if that is wrong."
            )
        self._first = None

    def after_backward(self) -> None:
        """What is masked gets no gradient, so that momentum does not gather."""
        self._confirm()
        stop_gradients(self._holding())

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep masks; gather statistics; prune when a round is over."""
        super().after_step()
        hold(self._holding())
        s, calls = self.settings, self._calls
        self._calls = []
        if calls:
            if s.fisher == "empirical" and any(call.target is None for call in calls):
                raise ConfigError("fisher: empirical needs labels: call after_forward(output, target) in the loop.")
            self.factors.update(self.model, calls, decay=s.decay)
        reached = self.rounds.over(self.step)
        if reached > self._round and self.factors.weight:
            self._round = reached
            self.factors.synchronise()
            if s.mode == "weight":
                masks = self._thinner(reached / s.rounds)
                apply_masks(self.model, masks, self._updated(masks) if s.weight_update else {})
                self.weight_masks.set(masks)
            else:
                self._kept = self._choose(reached / s.rounds).masks
                self._remove(self.model, self._kept)
            self._follow()

    @property
    def factors(self) -> Factors:
        """The running averages."""
        return self.importance.factors

    def _holding(self) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        for name, mask in self._held.items():
            parameter = self.model.get_parameter(name)
            yield parameter, mask.to(parameter.device)

    def collect(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
        """Factors as plain means over at most `batches` batches, for pruning in one shot."""
        self.factors.reset()
        for number, batch in enumerate(batches):
            if number == self.settings.batches:
                break
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ConfigError(f"A batch is {type(batch).__name__}: every batch must be a pair (inputs, target).")
            inputs, target = map_tensors(tuple(batch), lambda tensor: tensor.to(self.device))
            if self.factors.answers is None:
                self._learn(inputs, target, loss)
            known = self.settings.fisher == "empirical"
            self.factors.update(self.model, [Batch.of(inputs, target if known else None)], loss)

    def _learn(self, inputs: Any, target: Any, loss: Loss) -> None:
        """See from a batch, as in training, what kind of answer the output is."""
        args, keywords = call_with_copies(inputs)
        modes = [(module, module.training) for module in self.model.modules()]
        try:
            with torch.no_grad():
                output = self.model.eval()(*args, **keywords)
        finally:
            for module, mode in modes:
                module.training = mode
        self._judge(output.requires_grad_() if self.factors.draws else output, target)
        if self._first is not None:
            with torch.enable_grad():
                loss(output, target).backward()
        self._confirm()

    def score(self) -> dict[str, FloatArray]:
        """dL of every channel, at least 0; what is removed costs nothing any more, and less than all that is left."""
        return {n: np.where(self._kept[n], values, -_TINY) for n, values in self.importance.of_channels().items()}

    def _check_scores(self) -> None:
        """ConfigError where removing anything would cost nothing; in training that shows at the first round."""
        if self.factors.weight and self.importance.blind:
            raise ConfigError(
                "NAP finds that no gradient reaches the layers it scores, as with outputs that are the same for every "
                "image, or a last layer of zeros: check the network and its data, or choose another method."
            )

    # ------------------------------------------------------------------------------------------------ the result

    def plan(self) -> Plan:
        """The channels that stay: those of the last round, or what one threshold says now if rounds are left."""
        if self.settings.mode == "weight":
            masks = {g.name: np.ones(g.width, dtype=np.bool_) for g in self.graph.groups}
            return self._noted(Plan(masks, {"budget": self.budget.as_dict(), "mode": "weight"}))
        if self._round >= self.settings.rounds:
            return self._noted(Plan(dict(self._kept), {"budget": self.budget.as_dict(), "allocator": self.allocator}))
        return self._choose(1.0)

    def _choose(self, part: float) -> Plan:
        """One ranking of all channels that are left; after `part` of the rounds, target^part of the cost stays.

        Scores are losses, in one unit for all layers: normalising them would undo the automatic ratios.
        """
        self._check_scores()
        full, last, scores = self.aim.full, part == 1.0, self.score()
        # every round removes the same fraction of what is left
        limits = {key: full[key] * min(1.0, limit / full[key]) ** part for key, limit in self.aim.limits.items()}
        floors = [int(floor) for floor in self.constraints.floors(self.graph)]
        rules = Limits(
            dict(zip(self._kept, floors, strict=True)),
            cap=1.0 if last else self.settings.round_ratio,
            steps=self.constraints.steps(self.graph),
            close=CLOSE if last else 0.0,
            exchange=True,
            spare=False,
        )
        masks = lower(self.graph, self._kept, scores, [Goal(self.graph.costs, full, limits)], rules, self.allocator)
        provenance: dict[str, Any] = {"budget": self.budget.as_dict(), "allocator": self.allocator}
        if said := undecided(scores, masks):
            provenance["undecided"] = said
        return self._noted(Plan(masks, provenance))

    def usual_allocator(self) -> str:
        """By loss per cost, unless parameters are what the budget bounds, as in the paper."""
        return "global" if set(dict(self.budget.bounds)) == {"params"} else "per_cost"

    def _noted(self, plan: Plan) -> Plan:
        plan.provenance.update(criterion="nap", rounds=self._round)
        return plan

    def _check_reach(self) -> None:
        if self.settings.mode == "channel":
            super()._check_reach()
        else:
            check_constraints(self.constraints)
            share_of(self.budget, self.weight_masks if hasattr(self, "weight_masks") else None)

    def repair(self, model: nn.Module, plan: Plan) -> None:
        """What the rounds have left to do, all at once."""
        s = self.settings
        if s.mode == "channel":
            self._remove(model, plan.masks)
        elif self._round < s.rounds:
            masks = self._thinner(1.0)
            apply_masks(model, masks, self._updated(masks) if s.weight_update else {})

    def _remove(self, model: nn.Module, masks: Masks) -> None:
        s, rows, columns = self.settings, self.settings.side != "consumer", self.settings.side != "producer"
        curvature = self.importance.curvature if self.factors.weight else None
        update = (rows and s.weight_update, columns and s.weight_update)
        norms = self._norms if s.compensate else None
        remove(model, self.graph.slices(Plan(masks)), self.factors, curvature, update=update, norms=norms)

    def _thinner(self, part: float) -> dict[str, torch.Tensor]:
        """Masks of single weights after `part` of the rounds."""
        self._check_scores()
        share = share_of(self.budget, self.weight_masks)
        return self.weight_masks.threshold(self.importance.of_weights(), share**part)

    def _updated(self, masks: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights and biases after the surgeon's update for what the masks remove, row by row."""
        found: dict[str, torch.Tensor] = {}
        for name, layer in self.factors.layers.items():
            curve = self.importance.curvature(name)
            found |= layer.named(*curve.split(curve.without(~masks[layer.weight].flatten(1))))
        return found

    def _follow(self) -> None:
        """Hold from now on what the masks say."""
        if self.settings.mode == "weight":
            self._held = self.weight_masks.by_name() if self._round else {}
        else:
            self._held = alive(self.graph.slices(Plan(self._kept)), dict(self.model.named_parameters()))

    def plain(self) -> nn.Module:
        """A copy with zeros where the masks say (an average over many steps need not have them)."""
        twin = super().plain()
        apply_masks(twin, self._held)
        return twin

    def check_repairs(self, repairs: Sequence[Repair]) -> None:
        """Single weights that are zero stay zero."""
        if repairs and self.settings.mode == "weight":
            raise ConfigError(
                f"The repair {repairs[0].name!r} would fill zeros that mode=weight has made: leave it out, or set "
                "mode: channel."
            )

    def finish(self, repairs: Sequence[Repair] = (), batches: Iterable[tuple[Any, Any]] = ()) -> nn.Module:
        """The narrow network; with `mode: weight` the same network with zeros, and how many as a note."""
        model = super().finish(repairs, batches)
        if self.settings.mode == "weight" and self.result is not None:
            note, said = self.weight_masks.describe(model)
            self.result.plan.provenance["sparse"] = said
            self.notes = [*(n for n in self.notes if not n.startswith(note.split(":")[0])), note]
        return model

    def metrics(self) -> dict[str, float]:
        """Rounds so far, and what is left."""
        if self.settings.mode == "weight":
            return {"round": float(self._round), "weights": self.weight_masks.kept / self.weight_masks.total}
        widths = counts(self._kept)
        left = self.aim.cost(widths)["macs"] / max(self.aim.full["macs"], 1.0)
        share = sum(widths.values()) / sum(self.aim.groups.values())
        return {"round": float(self._round), "flops": left, "channels": share}

    def evaluation_modes(self) -> dict[str, AbstractContextManager[None]]:
        """The network with all that goes set to zero."""
        return {"hard": self._finished()}

    @contextmanager
    def _finished(self) -> Iterator[None]:
        tensors = self.graph.tensors()
        with torch.no_grad():
            before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            try:
                apply_masks(self.model, self._held)
                self.repair(self.model, self.plan())
                yield
            finally:
                for name, tensor in tensors.items():
                    tensor.copy_(before[name])

    def state(self) -> dict[str, Any]:
        """The step, the round, how much was drawn, and which channels stay."""
        kept = {name: np.flatnonzero(mask).tolist() for name, mask in self._kept.items()}
        own = {"round": self._round, "kept": kept, "factors": self.factors.state()}
        return super().state() | own | {"notes": list(self.notes)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state(state)
        self._round = int(state["round"])
        self._kept = {g.name: np.isin(np.arange(g.width), state["kept"][g.name]) for g in self.graph.groups}
        self.factors.load_state(state["factors"])
        self.notes = list(state["notes"])
        self._follow()


ROW = MethodRow(
    name="nap",
    summary="channels, or single weights, by the loss their removal costs under a K-FAC Fisher matrix",
    paper="Network Automatic Pruning: Start NAP and Take a Nap",
    year=2021,
    arxiv="2101.06608",
    needs="training",
    acts="while training",
    asks="loss",
    granularity="channel or weight",
    fidelity="the full text was not available: factors, single-weight and row scores from public code of related "
    "methods; column and joint formulas derived and checked numerically; the paper's structured score, schedule and "
    "weight update from memory, unverified",
    factory=NAP,
    settings=NAPSettings,
    finetunes=False,
    variants=({"mode": "weight", "budget": "params=0.3"},),
)
