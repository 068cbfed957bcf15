"""Methods that narrow their model while it is trained, so that training gets faster as it goes.

The model stays the same object, and so do its parameters: only their `data` gets smaller, and what optimisers keep for
them. Plans, costs and proofs are of the original all the same, of which the shapes and the masks so far are kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from secateur._hints import few
from secateur._protocols import BoolArray, IntArray
from secateur.errors import ModelError
from secateur.graph import SizeConflict
from secateur.graph.cut import Slices, put, take
from secateur.graph.following import narrow_state
from secateur.graph.modules import clone_module, named_tensors, to_meta
from secateur.methods.contract import Method
from secateur.plan import Plan

#: Optimisers of a method's parameters, found when they take a step; neither holds the other.
_OPTIMISERS: weakref.WeakKeyDictionary[NarrowingMethod, weakref.WeakSet[torch.optim.Optimizer]] = (
    weakref.WeakKeyDictionary()
)


#: Whose hooks stand in PyTorch's list; those of methods that are gone do nothing.
_HOOKS: list[tuple[weakref.ref[NarrowingMethod], RemovableHandle]] = []


class NarrowingMethod(Method):
    """A method that calls `narrow` in `after_step` or `after_epoch`.

    Its state_dict tells the masks, so that `load_state_dict` brings the model to the right widths before it loads.
    The state of optimisers that hold the model's parameters follows by itself, from their first step on; whoever else
    holds tensors of the parameters' shapes (a moving average) adds a function to `followers`.
    """

    narrows: ClassVar[bool] = True
    over = False  # whether it will narrow no more
    alive: torch.Tensor  # of every channel of every group of the original, in order: not removed yet

    def prepare(self) -> None:
        """Keep the original's shapes; a subclass that overrides this calls it first."""
        own = {id(tensor) for tensor in named_tensors(self.model).values()} if self.graph.recording.on_meta else set()
        # from here on the graph cuts this twin without storage: the model itself will no longer be the original
        self.graph.model = clone_module(self.model, lambda t: to_meta(t) if id(t) in own else t.detach().clone())
        self.masks = {group.name: np.ones(group.width, dtype=np.bool_) for group in self.graph.groups}
        channels = sum(group.width for group in self.graph.groups)
        self.register_buffer("alive", torch.ones(channels, dtype=torch.bool, device=self.device))
        self._slices: Slices = {}
        self._repaired: set[tuple[str, str]] = set()

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """The model's output; from the first pass in training on, optimisers of its parameters are noticed."""
        if self.training:
            self._refuse_reducer()
            if self not in _OPTIMISERS:
                _watch(self)
        return super().forward(*args, **keywords)

    def _refuse_reducer(self) -> None:
        """ModelError inside a wrapper that has laid out its buckets for parameters of the shapes they had."""
        if DistributedDataParallel._active_ddp_module is not None and not self.over:
            raise ModelError(
                f"{self.name} narrows the network while it trains, which DistributedDataParallel around it does not "
                "notice: train the pruner itself, and after backward() let every process do all_reduce(p.grad) for its "
                "parameters p, or train with `secateur run` under torchrun, which does that."
            )

    @torch.no_grad()
    def narrow(self, masks: Mapping[str, BoolArray]) -> None:
        """Leave the model only the channels of these masks, one for every group of the original.

        Raises SizeConflict, and changes nothing, where a size in the model's code cannot follow.
        """
        if all(np.array_equal(masks[name], mask) for name, mask in self.masks.items()):
            return
        if self._steps_seen and not self._forwards:
            self._check_loop()  # optimisers, and reducers of gradients, would meet parameters of other shapes
        made = self.graph.cut(Plan(dict(masks)))
        if any((masks[name] & ~mask).any() for name, mask in self.masks.items()):
            self._widen()
        kept: dict[int, tuple[tuple[int, ...], tuple[IntArray | None, ...]]] = {}
        for name, tensor in named_tensors(self.model).items():
            before, after = (slices.get(name, (None,) * tensor.dim()) for slices in (self._slices, made.slices))
            rows = tuple(_among(b, a) for b, a in zip(before, after, strict=True))
            if any(row is not None for row in rows):
                kept[id(tensor)] = (tuple(tensor.shape), rows)
                put(tensor, take(tensor, rows))
        self._resize(made.model, {(repair.module, repair.attribute) for repair in made.repairs})
        self._slices = made.slices
        self.masks = {name: masks[name].copy() for name in self.masks}
        self.alive.copy_(torch.from_numpy(np.concatenate(list(self.masks.values()))))
        self._tell(kept)

    def narrow_around(self, masks: Mapping[str, BoolArray]) -> set[str]:
        """The same, save for groups that a size in the model's code does not let follow: their names, told in a note.

        `finish` settles such sizes; while training their channels stay, for the model keeps its parameters.
        """
        try:
            self.narrow(masks)
            return set()
        except SizeConflict as conflict:
            why = conflict
        possible, kept = dict(self.masks), []
        for name in [name for name, mask in self.masks.items() if not np.array_equal(masks[name], mask)]:
            found = self._conflict(possible | {name: masks[name]})
            if found is None:
                possible[name] = masks[name]
            else:
                why = found
                kept.append(name)
        self.narrow(possible)
        self.notes.append(f"While training {few(kept)} stay as wide as they are now: {why}")
        return set(kept)

    def _conflict(self, masks: Mapping[str, BoolArray]) -> SizeConflict | None:
        """The size in code, if any, that does not follow a cut of the original to these masks."""
        try:
            self.graph.cut(Plan(dict(masks)))
            return None
        except SizeConflict as conflict:
            return conflict

    def _widen(self) -> None:
        """Give the model the original's shapes again, with zeros: what is loaded next was saved before the cut."""
        whole = self.graph.tensors()
        for name, tensor in named_tensors(self.model).items():
            if name in self._slices:
                put(tensor, tensor.detach().new_zeros(whole[name].shape))
        self._slices = {}

    def _resize(self, twin: nn.Module, repaired: set[tuple[str, str]]) -> None:
        """Take over the attributes that hold sizes from a cut of the original."""
        self._repaired |= repaired
        modules, twins = dict(self.model.named_modules()), dict(twin.named_modules())
        for module, attribute in sorted(self._repaired):
            setattr(modules[module], attribute, getattr(twins[module], attribute))

    def _tell(self, kept: Mapping[int, tuple[tuple[int, ...], tuple[IntArray | None, ...]]]) -> None:
        """Let optimisers and followers do the same."""
        for optimiser in list(_OPTIMISERS.get(self, ())):
            for parameter in [p for group in optimiser.param_groups for p in group["params"] if id(p) in kept]:
                narrow_state(optimiser.state.get(parameter, {}), *kept[id(parameter)])
        named = [*self.named_parameters(remove_duplicate=False), *self.named_buffers(remove_duplicate=False)]
        rows = {name: kept[id(tensor)][1] for name, tensor in named if id(tensor) in kept}
        for follower in self.followers:
            follower(rows)

    @torch.no_grad()
    def plain(self) -> nn.Module:
        """A copy as wide as the original, with zeros where the model has nothing any more."""
        names = {id(tensor): name for name, tensor in self.graph.tensors().items()}
        live = named_tensors(self.model)

        def whole(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in names:
                return tensor.detach().clone()
            name = names[id(tensor)]
            values = live[name].detach().clone()
            for dim, row in enumerate(self._slices.get(name, ())):
                if row is not None:
                    shape = [*values.shape[:dim], tensor.shape[dim], *values.shape[dim + 1 :]]
                    values = values.new_zeros(shape).index_copy_(dim, torch.from_numpy(row).to(values.device), values)
            return values

        twin = clone_module(self.graph.model, whole)
        modes = {name: module.training for name, module in self.model.named_modules()}
        for name, module in twin.named_modules():
            module.training = modes[name]
        return twin

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """First bring the model, whose turn comes next, to the widths that are loaded."""
        alive = state_dict.get(f"{prefix}alive")
        if isinstance(alive, torch.Tensor) and alive.shape == self.alive.shape:
            ends = np.cumsum([len(mask) for mask in self.masks.values()])[:-1]
            parts = np.split(alive.detach().cpu().numpy().astype(np.bool_), ends)
            if all(part.any() for part in parts):
                self.narrow(dict(zip(self.masks, parts, strict=True)))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _among(before: IntArray | None, after: IntArray | None) -> IntArray | None:
    """Where the indices `after` are among those `before` (None: all)."""
    if before is None or after is None:
        return after
    return None if len(before) == len(after) else np.searchsorted(before, after)


def _watch(method: NarrowingMethod) -> None:
    """Notice every optimiser of the method's parameters that takes a step, for as long as the method lives.

    What earlier methods left behind is taken out here: a method may end while an optimiser goes through its hooks.
    """
    for watch in [watch for watch in _HOOKS if watch[0]() is None]:
        watch[1].remove()
        _HOOKS.remove(watch)
    _OPTIMISERS[method] = found = weakref.WeakSet[torch.optim.Optimizer]()
    own = weakref.ref(method)

    def notice(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        this = own()
        if this is not None and optimiser not in found:
            held = {id(parameter) for parameter in this.parameters()}
            if any(id(parameter) in held for group in optimiser.param_groups for parameter in group["params"]):
                found.add(optimiser)

    _HOOKS.append((own, register_optimizer_step_post_hook(notice)))
