"""Kronecker factors of the Fisher matrix (K-FAC), gathered by hooks in one pass forward and one back.

For a layer with input patches a and gradients g = d(-log p(y|x)) / d(output), of single samples, at T positions:

    A = (1/N) Σ_s Σ_t a aᵀ        G = (1/(N T)) Σ_s Σ_t g gᵀ        Fisher of the layer ≈ A ⊗ G

after Grosse and Martens (arXiv:1602.01407). Weights are left out of the graph, so the way back costs what gradients
of activations cost. Layers that read the same tensor in the same way have one A.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur._distributed import rank, world
from secateur.errors import ConfigError, ModelError
from secateur.graph.modules import call_with_copies
from secateur.methods.kit.answers import Kind, losses, sample_count, sampled_loss
from secateur.statistics.gather import count
from secateur.statistics.patches import Lattice, add_square, mirrored, patches, slopes

#: Columns beyond which an A is kept as blocks on its diagonal.
LARGEST = 8192

Loss = Callable[[Any, Any], torch.Tensor]


@dataclass(frozen=True)
class Batch:
    """What a model is called with, and the target; None: targets are drawn from the model's own output."""

    args: tuple[Any, ...]
    keywords: Mapping[str, Any]
    target: Any = None

    @classmethod
    def of(cls, inputs: Any, target: Any = None) -> Batch:
        """Inputs as a data loader gives them: a tensor, a tuple of arguments or a dict of keywords."""
        return cls(*call_with_copies(inputs), target)

    @property
    def images(self) -> int:
        """Samples in it; InputError if it holds neither a tensor nor a list of them."""
        return count((*self.args, *self.keywords.values()))


@dataclass(frozen=True)
class Layer:
    """One linear or convolution layer with `weight` [groups · outputs, ...]; its columns as `weight.flatten(1)`."""

    name: str
    weight: str  # name of the parameter
    bias: str | None
    groups: int
    outputs: int  # of one group
    columns: int  # of one group
    kernel: int  # columns of one input channel
    splits: int  # blocks on the diagonal of A
    source: str  # the layer whose A is this one's too; usually itself

    @property
    def width(self) -> int:
        """Columns of one block of A, the one for the bias not counted."""
        return self.columns // self.splits

    def named(self, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:
        """Weight and bias by the names of their parameters; a layer without bias has one."""
        return {self.weight: weight} | ({self.bias: bias} if self.bias is not None else {})


class Factors(nn.Module):
    """Running averages of A and G of all layers of a model; buffers, so that checkpoints hold them.

    Args:
        model: run once, in evaluation mode, to see which layers run and which read the same tensor.
        example_inputs: what it runs with. seed: of the targets that are drawn.
        positions: output positions of an image looked at, at most; None: all. largest: see LARGEST.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        seed: int = 0,
        positions: int | None = None,
        largest: int = LARGEST,
    ) -> None:
        super().__init__()
        self.seed, self.positions = seed, positions
        self.layers: dict[str, Layer] = {}
        self._layer_of: dict[str, str] = {}  # module -> layer; two modules may share a weight
        self.draws = False  # whether the output is one tensor with samples in front, of which targets can be drawn
        self.answers: Kind | None = None  # what the output is; None: class scores, where it has several channels
        self.weight = 0.0  # of all that was seen: images, discounted
        self.drawn = self.updates = 0
        self._discover(model, example_inputs, largest)
        for number, layer in enumerate(self.layers.values()):
            like = model.get_parameter(layer.weight)
            kind = torch.promote_types(like.dtype, torch.float32)
            if layer.source == layer.name:
                shape = (layer.groups * layer.splits, layer.width + 1, layer.width + 1)
                self.register_buffer(f"A{number}", like.new_zeros(shape, dtype=kind))
            shape = (layer.groups, layer.outputs, layer.outputs)
            self.register_buffer(f"G{number}", like.new_zeros(shape, dtype=kind))
        self.spots: torch.Tensor
        self.register_buffer("spots", torch.zeros(len(self.layers), device=like.device))
        self._number = {name: number for number, name in enumerate(self.layers)}

    # ------------------------------------------------------------------------------------------------- what was seen

    def inputs(self, name: str) -> torch.Tensor:
        """A of a layer [groups · splits, width + 1, width + 1]: second moments of patches with a one behind them."""
        return mirrored(self._upper("A", self.layers[name].source))

    def gradients(self, name: str) -> torch.Tensor:
        """G of a layer [groups, outputs, outputs]."""
        return mirrored(self._upper("G", name)) / self._spots(name)

    def means(self, name: str) -> torch.Tensor:
        """The mean patch [groups, columns]."""
        layer = self.layers[name]
        sums = self._upper("A", layer.source)[:, :-1, -1]
        return sums.reshape(layer.groups, layer.columns) / self._spots(name)

    def state(self) -> dict[str, Any]:
        """What is not a tensor."""
        return {"weight": self.weight, "drawn": self.drawn, "updates": self.updates, "answers": self.answers}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.weight = float(state["weight"])
        self.drawn, self.updates = int(state["drawn"]), int(state["updates"])
        self.answers = state["answers"]

    @torch.no_grad()
    def reset(self) -> None:
        """Forget all averages."""
        self.weight = 0.0
        for buffer in self.buffers():
            buffer.zero_()

    @torch.no_grad()
    def synchronise(self) -> None:
        """The mean over all processes, in each of them."""
        if world() > 1:
            for buffer in self.buffers():
                distributed.all_reduce(buffer)
                buffer /= world()

    # ----------------------------------------------------------------------------------------------------- one update

    def update(self, model: nn.Module, batches: Sequence[Batch], loss: Loss | None = None, decay: float = 1.0) -> None:
        """One step of the running averages, with batches that count as one.

        With decay 1 the averages are those over all images; below, older ones count less: after t steps an average is
        Σ_i decay^(t-i) A_i / Σ_i decay^(t-i), which is the moving average from zero with its bias corrected.

        loss: mean over a batch, for targets that are given. Parameters, buffers, gradients, modes and random number
        generators of the model are left as they were.
        """
        images = sum(batch.images for batch in batches)
        if not images:
            return
        self.weight = decay * self.weight + images
        with torch.no_grad():
            for buffer in self.buffers():
                buffer.mul_(1.0 - images / self.weight)
        self.updates += 1
        draw = np.random.default_rng((self.seed, 1 + rank(), self.updates)).random(3).tolist()
        with _undisturbed(model) as tensors:
            for batch in batches:
                self._pass(model, tensors(), batch, loss, draw)

    def _pass(
        self, model: nn.Module, tensors: Mapping[str, Any], batch: Batch, loss: Loss | None, draw: list[float]
    ) -> None:
        watch = _Watch(self, draw)
        with torch.enable_grad(), watch.on(model):
            output = torch.func.functional_call(model, dict(tensors), batch.args, dict(batch.keywords))
            if batch.target is None:
                value = self._sampled(output)
            elif loss is None:
                value = losses(_answer(output), batch.target, self._kind(output)).mean() * batch.images
            else:
                value = loss(output, batch.target) * batch.images  # per sample, not per batch
            if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
                raise ConfigError("The loss does not give one number that depends on the model's layers: return one.")
            if not bool(torch.isfinite(value)):
                raise ConfigError(f"The loss is {value.item()}: check the data and the weights.")
            value.reshape(()).backward()

    def _sampled(self, output: Any) -> torch.Tensor:
        """Σ_s -log p(y_s|x_s) with y_s drawn from p(·|x_s), the same for every division into batches."""
        answer, kind = _answer(output), self._kind(output)
        count = sample_count(answer, kind)
        seed = np.random.SeedSequence((self.seed, rank())).generate_state(2, np.uint64)
        bits = np.random.PCG64(int(seed[0]))
        bits.advance(self.drawn)
        chance = torch.from_numpy(np.random.Generator(bits).random(count))
        self.drawn += count
        return sampled_loss(answer, kind, chance)

    def _kind(self, output: Any) -> Kind:
        """What the output is; ConfigError for a single number that nobody has told the meaning of."""
        if self.answers is not None:
            return self.answers
        if output.ndim < 2 or output.shape[1] < 2:
            raise ConfigError(
                "The network gives one number a sample, which may be a score for yes or no or a quantity: call "
                "after_forward(output, target) in the loop, or set answers to binary or numbers."
            )
        return "classes"

    def _spots(self, name: str) -> float:
        """Output positions T of a layer in one image."""
        return max(float(self.spots[self._number[name]]), 1e-30)

    def _upper(self, which: str, name: str) -> torch.Tensor:
        found: torch.Tensor = getattr(self, f"{which}{self._number[name]}")
        return found

    # --------------------------------------------------------------------------------------------------- which layers

    @torch.no_grad()
    def _discover(self, model: nn.Module, example_inputs: Any, largest: int) -> None:
        """Run the model once and note its layers in order, and who reads what another has read."""
        weights: dict[int, str] = {}
        names = {id(m): name for name, m in model.named_modules()}
        first: dict[int, str] = {}  # weight -> layer
        read: list[tuple[torch.Tensor, int, nn.Module, str]] = []

        def note(module: Any, args: tuple[Any, ...], output: Any) -> None:
            weight, bias = module.weight, module.bias
            if id(weight) not in weights or not args or not isinstance(args[0], torch.Tensor):
                return
            name, x = names[id(module)], args[0]
            again = id(weight) in first
            layer = first.setdefault(id(weight), name)
            self._layer_of[name] = layer
            if again:  # its A is a sum over several calls, so it is nobody else's
                self.layers[layer] = replace(self.layers[layer], source=layer)
                for other, row in self.layers.items():
                    if row.source == layer:
                        self.layers[other] = replace(row, source=other)
                read[:] = [entry for entry in read if entry[3] != layer]
                return
            found = _describe(module, name, weights[id(weight)], weights.get(id(bias)), largest)
            for tensor, version, reader, source in read:
                if tensor is x and version == x._version and _alike(reader, module):
                    found = replace(found, source=source)
                    break
            else:
                read.append((x, x._version, module, name))
            self.layers[name] = found

        args, keywords = call_with_copies(example_inputs)
        with _undisturbed(model) as tensors, _hooked(model, _watched(model), note):
            values = dict(tensors())
            weights.update((id(tensor), name) for name, tensor in values.items())
            self.draws = _answers(torch.func.functional_call(model, values, args, dict(keywords)))
        if not self.layers:
            raise ModelError(
                f"{type(model).__name__} runs no linear or convolution layer, so its curvature cannot be had: choose "
                "another method."
            )


def _answers(output: Any) -> bool:
    return isinstance(output, torch.Tensor) and output.ndim >= 1 and output.is_floating_point()


def _answer(output: Any) -> torch.Tensor:
    """One tensor with samples in dimension 0; ConfigError if the output is something else."""
    if not _answers(output):
        raise ConfigError(
            f"Targets cannot be drawn from a {type(output).__name__}, nor can it be held against labels: one tensor "
            "[samples, ...] is needed; choose a method that asks for none."
        )
    answer: torch.Tensor = output
    return answer


class _Watch:
    """The hooks of one pass."""

    def __init__(self, factors: Factors, draw: list[float]) -> None:
        self.factors, self.draw = factors, draw

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Inside, what layers read and the gradients of what they give are added to the factors."""
        names = {id(m): name for name, m in model.named_modules()}
        modules = [m for m in model.modules() if names[id(m)] in self.factors._layer_of]

        def see(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            return self._see(module, self.factors._layer_of[names[id(module)]], args[0], output)

        with _hooked(model, modules, see):
            yield

    def _see(self, module: Any, name: str, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        factors, layer = self.factors, self.factors.layers[name]
        scale = 1.0 / factors.weight
        conv = isinstance(module, _ConvNd)
        if conv and output.ndim == len(module.kernel_size) + 1:  # a single image without a batch
            x, shape = x[None], output[None].shape
        else:
            shape = output.shape
        sizes = shape[2:] if conv else shape[1:-1]
        lattice = Lattice(sizes, factors.positions, self.draw)
        with torch.no_grad():
            factors.spots[factors._number[name]] += scale * shape[0] * lattice.total
            if layer.source == name:
                total = factors._upper("A", name)
                for block in patches(module, x.detach(), lattice, layer.groups):
                    _add_inputs(total, block.to(total.dtype), layer, scale * lattice.scale)

        def learn(gradient: torch.Tensor) -> None:
            total = factors._upper("G", name)
            for block in slopes(gradient.reshape(shape), lattice, layer.groups, conv=conv):
                add_square(total, block.to(total.dtype), scale * lattice.scale)

        if not output.requires_grad:  # the first layer: no weight before it asks for gradients
            output = output.requires_grad_().clone()  # not a leaf, for what follows may change it in place
        output.register_hook(learn)  # on the tensor: sees the layer's own output also if that is overwritten
        return output


def _add_inputs(total: torch.Tensor, block: torch.Tensor, layer: Layer, scale: float) -> None:
    if layer.splits == 1:
        add_square(total, block, scale)
        return
    for k in range(layer.splits):  # each block on the diagonal has the one behind it
        columns = [*range(k * layer.width, (k + 1) * layer.width), layer.columns]
        for group in range(layer.groups):
            unit = group * layer.splits + k
            add_square(total[unit : unit + 1], block[group : group + 1, columns], scale)


def _watched(model: nn.Module) -> list[Any]:
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, _ConvTransposeNd)
    ]


def _describe(module: Any, name: str, weight: str, bias: str | None, largest: int) -> Layer:
    groups = module.groups if isinstance(module, _ConvNd) else 1
    rows, columns = len(module.weight), module.weight[0].numel()
    kernel = math.prod(module.kernel_size) if isinstance(module, _ConvNd) else 1
    channels = columns // kernel
    splits = next(k for k in range(-(-columns // largest), channels + 1) if channels % k == 0 or k == channels)
    return Layer(name, weight, bias, groups, rows // groups, columns, kernel, splits, name)


def _alike(a: Any, b: Any) -> bool:
    """Whether two layers see the same patches of the same tensor."""
    if isinstance(a, nn.Linear) or isinstance(b, nn.Linear):
        return isinstance(a, nn.Linear) and isinstance(b, nn.Linear)
    keys = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return type(a) is type(b) and all(getattr(a, key) == getattr(b, key) for key in keys)


@contextmanager
def _hooked(model: nn.Module, modules: Iterable[Any], hook: Callable[..., Any]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[Callable[[], Mapping[str, torch.Tensor]]]:
    """Evaluation mode inside; gives what makes tensors to run with: the parameters without gradients, buffers' copies.

    In training mode a batch norm makes the loss blind to the scale of the rows before it, and their curvature vanish.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    model.eval()
    try:
        yield lambda: parameters | {name: b.detach().clone() for name, b in model.named_buffers()}
    finally:
        for module, mode in modes:
            module.training = mode
