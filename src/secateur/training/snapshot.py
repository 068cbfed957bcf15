"""A stage as a checkpoint, and a checkpoint as a stage: everything that decides how training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import distributed

from secateur._distributed import rank, world
from secateur._files import said
from secateur.errors import ConfigError, ModelError, RunError
from secateur.training.checkpoints import Checkpoint
from secateur.training.gradients import take_firsts
from secateur.training.interface import Fitted
from secateur.training.packing import pack, unpack
from secateur.training.randomness import capture, restore
from secateur.training.standing import Best, Position, Standing
from secateur.training.tally import Tally


class Snapshots:
    """The checkpoints of one stage."""

    def __init__(self, stage: Standing) -> None:
        self.stage, self.engine, self.store = stage, stage.engine, stage.engine.store

    @property
    def name(self) -> str:
        """What a checkpoint written now would be called."""
        return f"{self.stage.name}-{self.stage.position.step:09d}"

    # ---------------------------------------------------------------------------------------------------------- write

    def save(self, fitted: Fitted | None = None) -> None:
        """Write the stage as it stands, or as it ended; all processes take part, the first one writes."""
        if self.store is None:
            return
        stage = self.stage
        generators = _gathered(capture(stage.device), stage.device)
        if rank() > 0:
            return
        tensors = {f"module.{name}": tensor for name, tensor in module_state(stage.module).items()}
        state: dict[str, Any] = {
            "position": asdict(stage.position),
            "seconds": self.engine.seconds,
            "settings": self._settings(),
            "best": stage.best.to_dict() if stage.best is not None else None,
            "method": pack(stage.method.state(), "method", tensors) if stage.method is not None else None,
        }
        if fitted is not None:
            state["fitted"] = fitted.to_dict()
        else:
            if stage.average is not None:
                tensors.update({f"average.{name}": tensor for name, tensor in stage.average.tensors.items()})
            state["optimiser"] = pack(stage.optimiser.state_dict(), "optimiser", tensors)
            scaler = None if self.engine.scaler is None else self.engine.scaler.state_dict()
            state["scaler"] = pack(scaler, "scaler", tensors)
            state["tally"] = stage.tally.values
            tensors["generators"] = generators
        self.engine.begin()
        self.store.write(stage.name, stage.position.step, tensors, state, done=fitted is not None)
        self.store.tidy(stage.name, stage.best.checkpoint if stage.best is not None else None)

    # ----------------------------------------------------------------------------------------------------------- read

    def resume(self) -> Fitted | None:
        """Bring the stage to where its newest checkpoint left it; what is given back if it had ended there."""
        if self.store is None:
            self._alike()
            return None
        stage, found = self.stage, self._found()
        if found is not None:
            self._compare(found)
            try:
                self._load(found)
            except (ConfigError, KeyError, TypeError, ValueError) as problem:
                raise RunError(
                    f"The checkpoint {found.name} is not one of this stage ({said(problem)}): resume with the recipe "
                    "the run began with, or begin in another folder."
                ) from problem
        self._alike()
        if found is not None and found.state["done"]:
            notes = tuple(self.engine.notes)
            return Fitted(stage.name, **found.state["fitted"], resumed=stage.position.step, notes=notes)
        if rank() == 0:
            self.store.forget(stage.name, stage.position.step if found is not None else -1)
            self.engine.metrics.rewind(stage.name, stage.position.step)
        if found is not None:
            self.engine.say(f"The stage {stage.name} goes on from step {stage.position.step}.", note=False)
        return None

    def _load(self, found: Checkpoint) -> None:
        stage, state, tensors = self.stage, found.state, found.tensors()
        _fill(stage.module, _under(tensors, "module."), found.name)
        stage.position = Position(**state["position"])
        self.engine.wind(state["seconds"])
        if stage.method is not None:
            stage.method.load_state(unpack(state["method"], tensors))
        if state["done"]:
            return
        stage.optimiser.load_state_dict(unpack(state["optimiser"], tensors))
        if self.engine.scaler is not None and state["scaler"] is not None:
            self.engine.scaler.load_state_dict(unpack(state["scaler"], tensors))
        if stage.average is not None:
            for name, tensor in _under(tensors, "average.").items():
                stage.average.tensors[name].copy_(tensor)
        stage.tally = Tally(stage.device, state["tally"])
        self._load_best(state["best"])
        generators = tensors["generators"]
        if rank() < len(generators) and generators.shape[1] == capture(stage.device).numel():
            restore(generators[rank()], stage.device)
        if len(generators) != world():
            self.engine.say(
                f"The checkpoint {found.name} is of {len(generators)} processes and goes on with {world()}: random "
                "numbers of the network itself (dropout) will be others."
            )

    def _load_best(self, best: Mapping[str, Any] | None) -> None:
        """The best epoch so far; its weights lie in its own checkpoint."""
        stage = self.stage
        if best is None or self.store is None:
            return
        weights: dict[str, torch.Tensor] = {}
        method = None
        if stage.training.select == "best":
            try:
                kept = self.store.open(best["checkpoint"])
                tensors = kept.tensors()
            except RunError as problem:
                self.engine.say(f"{problem} The best weights are looked for among the epochs from here on.")
                return
            weights = _under(tensors, "average." if stage.average is not None else "module.")
            weights = {name: tensor.to(stage.device) for name, tensor in weights.items()}
            method = unpack(kept.state["method"], tensors)
        stage.best = Best(**best, weights=weights, method=method)

    def _found(self) -> Checkpoint | None:
        """The newest whole checkpoint, the same one in all processes (which must see the same folder)."""
        assert self.store is not None
        if world() == 1:
            return self.store.newest(self.stage.name)
        number = torch.zeros(1, dtype=torch.int64, device=self.stage.device)  # 0: none, 1: done, else step + 2
        if rank() == 0:
            found = self.store.newest(self.stage.name)
            if found is not None:
                number += 1 if found.state["done"] else 2 + int(found.state["position"]["step"])
        distributed.broadcast(number, 0)
        chosen = int(number)
        if chosen == 0:
            return None
        made = self.store.open(f"{self.stage.name}-" + ("done" if chosen == 1 else f"{chosen - 2:09d}"))
        distributed.barrier()  # before the first process removes anything
        return made

    def _alike(self) -> None:
        """All processes start from the first one's weights."""
        if world() > 1:
            take_firsts(self.stage.module.state_dict().values())
            if self.stage.average is not None:
                take_firsts(self.stage.average.tensors.values())

    def _settings(self) -> dict[str, Any]:
        """What a run cannot change on the way."""
        stage, engine = self.stage, self.engine
        return {
            **{f"{stage.name}.{k}": v for k, v in stage.training.model_dump(mode="json").items()},
            "seed": engine.seed,
            "data.batch_size": engine.batch_size,
            "the number of steps in an epoch": stage.steps,
        }

    def _compare(self, found: Checkpoint) -> None:
        then, now = found.state["settings"], self._settings()
        for name in then:  # a key that is not among them is of a later release, and did nothing before
            if then[name] != now.get(name):
                raise RunError(
                    f"The checkpoint {found.name} was made with {name} {then.get(name)!r}, and now it is "
                    f"{now.get(name)!r}: resume with the recipe the run began with, or begin in another folder."
                )


def module_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict, which must hold nothing but tensors."""
    state: dict[str, Any] = dict(module.state_dict())
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"{name} in the model's state dict is a {type(value).__name__}, which a checkpoint cannot hold: "
                "keep it in a buffer."
            )
    return state


def _fill(module: torch.nn.Module, values: Mapping[str, torch.Tensor], name: str) -> None:
    try:
        module.load_state_dict(values)  # a method that narrows its model first takes on the widths of these
    except RuntimeError as problem:
        own = module_state(module)
        differ = [k for k in [*own, *values] if k not in own or k not in values or own[k].shape != values[k].shape]
        raise RunError(
            f"The checkpoint {name} is of another network, as {differ[0] if differ else said(problem)} differs: resume "
            "with the recipe the run began with, or begin in another folder."
        ) from None


def _under(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _gathered(state: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Generator states of all processes, a row each."""
    if world() == 1:
        return state[None]
    own = state.to(device)
    rows = [torch.empty_like(own) for _ in range(world())]
    distributed.all_gather(rows, own)
    return torch.stack(rows).cpu()
