"""The model's side of a trace: copies without storage, inputs and outputs of any shape, which module is executing."""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from threading import Lock
from types import FunctionType
from typing import Any

import torch
from torch import nn

from secateur.errors import ModelError
from secateur.graph.nests import map_tensors as map_tensors  # inputs and outputs belong to the model's side, too
from secateur.graph.nests import output_tensors as output_tensors


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile wrappers; ModelError for no module."""
    inner: Any = model
    if not isinstance(inner, nn.Module):
        remedy = "its .model" if isinstance(getattr(inner, "model", None), nn.Module) else "the model object itself"
        raise ModelError(f"A torch.nn.Module is needed, not {type(inner).__name__}; pass {remedy}.")
    while True:
        if isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = inner.module
        elif type(inner).__name__ == "OptimizedModule" and hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        else:
            unwrapped: nn.Module = inner
            return unwrapped


META = torch.device("meta")  # to read it from a string takes as long as making a tensor there
Modules = list[tuple[str, nn.Module]]  # by name, as `modules_of` gives them


def modules_of(model: nn.Module) -> Modules:
    """All of `nn.Module.named_modules`, in its order; its generators within generators take several times as long."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[nn.Module] = set()

    def visit(name: str, module: nn.Module) -> None:
        if type(module).named_modules is not nn.Module.named_modules:
            found.extend(module.named_modules(seen, name))
        elif module not in seen:
            seen.add(module)
            found.append((name, module))
            prefix = f"{name}." if name else ""
            for local, child in module._modules.items():
                if child is None:
                    continue
                if child._modules or type(child).named_modules is not nn.Module.named_modules:
                    visit(prefix + local, child)
                elif child not in seen:  # most modules have no parts: one call less for each
                    seen.add(child)
                    found.append((prefix + local, child))

    visit("", model)
    return found


def to_evaluation(model: nn.Module) -> Modules:
    """`model.eval()`, where there is anything to do: PyTorch sets the mode of each module anew, whatever it is.

    Returns all modules by name.
    """
    modules = modules_of(model)
    for _, module in modules:
        kind, own = type(module), vars(module)
        switches = (
            kind.train is not nn.Module.train or kind.eval is not nn.Module.eval or "train" in own or "eval" in own
        )
        if module.training or switches:
            model.eval()
            return modules_of(model)  # a module of its own `eval` may do what it likes
    return modules


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name; a tensor with several names appears under the first."""
    return tensors_of(modules_of(model))


def tensors_of(modules: Modules) -> dict[str, torch.Tensor]:
    """The same, where the modules are known."""
    found: dict[str, torch.Tensor] = {}
    held: list[tuple[str, Any]] = [(name, module._parameters) for name, module in modules if module._parameters]
    held += [(name, module._buffers) for name, module in modules if module._buffers]
    seen: set[int] = set()
    for name, own in held:
        prefix = f"{name}." if name else ""
        for local, tensor in own.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                found[prefix + local] = tensor
    return found


def parameter_names(model: nn.Module) -> set[str]:
    """What of a network's tensors is registered as a parameter; one with several names has them all."""
    return {
        f"{name}.{local}" if name else local
        for name, module in modules_of(model)
        for local, tensor in module._parameters.items()
        if tensor is not None
    }


def own_ancestor(model: nn.Module) -> str | None:
    """The name of a module that is among its own parts, if there is one."""
    above: set[int] = set()
    done: set[int] = set()

    def search(module: nn.Module) -> list[str] | None:
        if id(module) in above:
            return []
        if id(module) in done:
            return None
        above.add(id(module))
        for local, child in module._modules.items():
            found = search(child) if child is not None else None
            if found is not None:
                return [local, *found]
        above.discard(id(module))
        done.add(id(module))
        return None

    path = search(model)
    return None if path is None else ".".join(path)


def compiled_in_place(modules: Modules) -> list[str]:
    """Modules on which `compile()` was called, or whose forward was replaced by a compiled one, by name."""
    return [
        name
        for name, module in modules
        if type(module).__name__ != "OptimizedModule"  # a wrapper: its copy is compiled again
        and (
            module.__dict__.get(_COMPILED) is not None
            or hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")
        )
    ]


def clone_module(
    model: nn.Module, convert: Callable[[torch.Tensor], torch.Tensor], modules: Modules | None = None
) -> nn.Module:
    """A deep copy of `model` whose tensors are `convert(tensor)` instead of copies; ties between names survive.

    modules: all of `modules_of(model)`, if they are known.
    """
    copier = _Copier()
    memo = copier.memo
    for _, module in modules_of(model) if modules is None else modules:
        held: list[Any] = [*module._parameters.values(), *module._buffers.values()]
        if loose := copier.loose_tensors(module):
            # a hook that knows the network itself, and not its copy, leaves there what a trace computed
            memo.update((id(tensor), to_meta(tensor)) for tensor in loose if tensor.is_meta)
            held += loose
        for tensor in held:
            if tensor is None or id(tensor) in memo:
                continue
            fresh = convert(tensor)
            if fresh is not tensor and is_parameter(tensor) and not is_parameter(fresh):
                fresh = _parameter(fresh, tensor.requires_grad)
            if fresh is not tensor and tensor.__dict__:
                _note(fresh, tensor.__dict__)
            memo[id(tensor)] = fresh
    try:
        twin: nn.Module = copier.copy(model)
        return twin
    except Exception as error:
        if any(_is_exported(module) for module in model.modules()):
            raise ModelError(
                f"{type(model).__name__} holds what torch.export made, which cannot be copied; pass the original."
            ) from error
        raise ModelError(
            f"The model cannot be copied ({type(error).__name__}: {' '.join(str(error).split())[:200]}); give its "
            "class a __deepcopy__ or remove the attribute that cannot be copied."
        ) from error


def _note(fresh: torch.Tensor, noted: Mapping[str, Any]) -> None:
    """What a program notes on a tensor (no weight decay, say) stays noted; tensors there may be of another width."""
    for name, value in noted.items():
        if not name.startswith("_secateur_") and not output_tensors(value):
            setattr(fresh, name, value)


def _parameter(data: torch.Tensor, requires_grad: bool) -> nn.Parameter:
    """As the class of parameters makes one of an ordinary tensor, which it takes its time to recognise."""
    if type(data) is torch.Tensor:
        made: nn.Parameter = torch.Tensor._make_subclass(nn.Parameter, data, requires_grad)
        return made
    return nn.Parameter(data, requires_grad=requires_grad)


def is_parameter(tensor: torch.Tensor) -> bool:
    """`isinstance` of the class of parameters, which takes its time to say that a plain tensor is none."""
    return type(tensor) is not torch.Tensor and isinstance(tensor, nn.Parameter)


def _is_exported(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.export.") or hasattr(module, "_guards_fn")


_PLAIN = frozenset({bool, int, float, str, type(None), torch.dtype, torch.device})
_WITHOUT_TENSORS = _PLAIN | {set, OrderedDict}  # among a module's own attributes
_CONTAINERS = frozenset({list, set, dict, OrderedDict})
_OWN = ("_parameters", "_buffers", "_modules")  # looked after by name
_HOOKS = frozenset(name for name, value in vars(nn.Module()).items() if type(value) is OrderedDict)
_COMPILED = "_compiled_call_impl"  # of `module.compile()`: bound to the module it was made for, as PyTorch's own copies


class _Copier:
    """`copy.deepcopy`, with a short way for ordinary modules and containers (it is much of the time of a cut)."""

    def __init__(self) -> None:
        self.memo: dict[int, Any] = {}

    def copy(self, value: Any) -> Any:
        """A deep copy; of what is in the memo, that."""
        kind: Any = type(value)
        if kind in _PLAIN:
            return value
        if id(value) in self.memo:
            return self.memo[id(value)]
        if kind is FunctionType and hasattr(value, "_torchdynamo_orig_callable"):
            # a compiled method is that of the module it was made for
            return copy.deepcopy(value._torchdynamo_orig_callable, self.memo)
        if kind in _CONTAINERS:
            return self._container(value, kind)
        if kind is tuple and _PLAIN.issuperset(map(type, value)):
            return value
        if isinstance(value, nn.Module) and _is_ordinary(kind):
            return self._module(value, kind)
        return copy.deepcopy(value, self.memo)

    def _container(self, value: Any, kind: Any) -> Any:
        fresh = self.memo[id(value)] = kind()
        if not value:
            pass
        elif kind is list:
            fresh.extend([self.copy(item) for item in value])
        elif kind is set:
            fresh.update([self.copy(item) for item in value])
        else:
            for key, item in value.items():
                known = self.memo.get(id(item))
                fresh[key] = self.copy(item) if known is None else known
        return fresh

    def _module(self, module: nn.Module, kind: Any) -> nn.Module:
        fresh: nn.Module = kind.__new__(kind)
        self.memo[id(module)] = fresh
        own = fresh.__dict__
        own.update(module.__dict__)  # plain values, and the order of all
        own.pop(_COMPILED, None)
        for name, value in list(module.__dict__.items()):
            kind = type(value)
            if kind in _PLAIN or name == _COMPILED:
                continue
            if kind is OrderedDict and not value and name in _HOOKS:
                own[name] = OrderedDict()
            elif kind is not tuple or not _PLAIN.issuperset(map(type, value)):
                own[name] = self.copy(value)
        return fresh

    @staticmethod
    def loose_tensors(module: nn.Module) -> list[torch.Tensor]:
        """Tensors a module holds as plain attributes, in a list or a dict at most."""
        found: list[torch.Tensor] = []
        for name, value in module.__dict__.items():
            kind = type(value)
            if kind in _WITHOUT_TENSORS or name in _OWN:
                continue
            items = value if isinstance(value, list | tuple) else value.values() if kind is dict else (value,)
            # to say that something else is no tensor takes its time
            found += [item for item in items if type(item) not in _PLAIN and isinstance(item, torch.Tensor)]
        return found


@lru_cache(maxsize=4096)
def _is_ordinary(kind: Any) -> bool:
    """Whether a module class is copied by copying its attributes."""
    hooks = ("__getstate__", "__reduce__", "__reduce_ex__", "__setstate__", "__new__")
    plain: list[type] = [object, nn.Module, nn.RNNBase, nn.MultiheadAttention, nn.Transformer]
    owners = {next(c for c in kind.__mro__ if name in c.__dict__) for name in hooks if hasattr(kind, name)}
    standard = all(c in plain or c.__module__.startswith("torch.nn.modules.") for c in owners)
    return standard and not hasattr(kind, "__deepcopy__") and not hasattr(kind, "__slots__")


def to_meta(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)


class Inputs:
    """What a network is called with, positional and keyword arguments together: `Inputs(image, mask=mask)`.

    A network that takes more in training, the targets of a detector say, is traced there too if it is told what:
    `Inputs(image).in_training(image, targets)`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs
        self.training: Inputs | None = None  # what it is called with in training mode, if that is something else

    def in_training(self, *args: Any, **kwargs: Any) -> Inputs:
        """The same inputs, with those that a call in training mode takes."""
        found = Inputs(*self.args, **self.kwargs)
        found.training = Inputs(*args, **kwargs)
        return found

    def __repr__(self) -> str:
        """As it is written."""
        named = [f"{name}={value!r}" for name, value in self.kwargs.items()]
        more = "" if self.training is None else f".in_training({str(self.training)[len('Inputs(') : -1]})"
        return f"Inputs({', '.join([*map(repr, self.args), *named])}){more}"


def as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: a tensor, a tuple or list of arguments, a dict of keywords, or `Inputs`."""
    if isinstance(example_inputs, Inputs):
        return tuple(example_inputs.args), dict(example_inputs.kwargs)
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, list | tuple):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def call_with_copies(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`as_call` of copies, for inputs that are shown again: a forward may change what it is given in place."""
    return as_call(map_tensors(inputs, torch.clone))


@contextmanager
def module_stack(
    model: nn.Module,
    stack: list[str],
    on_exit: Callable[[str, Any], None] | None = None,
    modules: Modules | None = None,
) -> Iterator[None]:
    """Keep `stack` at the path of the module that is executing. modules: all of `modules_of(model)`, if known."""
    modules = modules_of(model) if modules is None else modules
    paths = {id(module): name for name, module in modules}

    def enter(module: nn.Module, _inputs: Any) -> None:
        stack.append(paths[id(module)])

    def leave(module: nn.Module, _inputs: Any, output: Any) -> None:
        name = stack.pop()
        if on_exit is not None:
            on_exit(name, output)

    # Hooks of these modules alone: what other threads run is none of our business. Thousands of them are registered
    # here without the handles of `register_forward_hook(prepend=True, always_call=True)`, which are slow to make.
    key: Any = object()
    try:
        for _, module in modules:
            module._forward_hooks_always_called[key] = True
            for hooks, hook in ((module._forward_pre_hooks, enter), (module._forward_hooks, leave)):
                ordered: Any = hooks
                ordered[key] = hook
                if len(ordered) > 1:
                    ordered.move_to_end(key, last=False)
        yield
    finally:
        for _, module in modules:
            for own in (module._forward_pre_hooks, module._forward_hooks, module._forward_hooks_always_called):
                own.pop(key, None)


class _Plainly:
    """Switches that are one for all threads, off while anybody traces: fused attention and compiled functions."""

    def __init__(self) -> None:
        self._lock, self._tracing, self._before = Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._tracing == 0:
                fast = torch.backends.mha.get_fastpath_enabled()
                self._before.callback(torch.backends.mha.set_fastpath_enabled, fast)
                torch.backends.mha.set_fastpath_enabled(False)
                if "torch._dynamo.eval_frame" in sys.modules:  # or nothing has been compiled
                    self._before.enter_context(torch.compiler.set_stance("force_eager"))
            self._tracing += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._tracing -= 1
            if self._tracing == 0:
                self._before.close()


_PLAINLY = _Plainly()


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Switch off what hides or changes the parts: fused attention, gradients, autocast, compiled functions."""
    with ExitStack() as stack:
        stack.enter_context(_PLAINLY)
        stack.enter_context(torch.no_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
