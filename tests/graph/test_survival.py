"""What a cut must leave as it was: modes, hooks, types, layouts, training-only heads, the model itself."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from _harness import assert_same_state, assert_sound, call, halve, randomise, state
from structures._case import Net, conv, head
from torch import nn

import secateur
from secateur import Plan, trace

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def residual() -> nn.Module:
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.head(m.drop((h := m.stem(x)) + m.norm(m.c2(m.c1(h).relu())))),
        stem=conv(3, 8), c1=conv(8, 12), c2=conv(12, 8), norm=nn.BatchNorm2d(8), drop=nn.Dropout(0.1), head=head(8),
    )  # fmt: skip
    return randomise(net)


def test_requires_grad_of_every_parameter() -> None:
    model = residual()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in ("stem.weight", "c2.bias", "head.2.weight"))
    result = halve(model, IMAGE)
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    assert {n: p.requires_grad for n, p in result.model.named_parameters()} == wanted
    assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in result.model.parameters())


@pytest.mark.parametrize("inplace", [False, True])
def test_mode_of_every_module(inplace: bool) -> None:
    model = residual().train()
    model.norm.eval()
    model.head.eval()
    modes = {n: m.training for n, m in model.named_modules()}
    result = halve(model, IMAGE, inplace=inplace)
    assert {n: m.training for n, m in result.model.named_modules()} == modes
    assert {n: m.training for n, m in model.named_modules()} == modes


def test_tracing_a_model_in_training_mode_moves_no_statistics_and_no_random_state() -> None:
    model = residual().train()
    before, dice = state(model), torch.random.get_rng_state()
    halve(model, IMAGE)
    assert_same_state(before, model)
    assert torch.equal(torch.random.get_rng_state(), dice)


def test_hooks_stay() -> None:
    model, seen = residual(), []
    model.c1.register_forward_hook(lambda m, i, o: seen.append(o.shape[1]))
    model.c2.register_forward_pre_hook(lambda m, i: (i[0] * 2,))
    result = halve(model, IMAGE)
    seen.clear()
    call(result.model, IMAGE)
    assert seen == [6]
    with torch.no_grad():  # the doubling hook is part of what the cut computes
        for hook in list(result.model.c2._forward_pre_hooks):
            del result.model.c2._forward_pre_hooks[hook]
        without = call(result.model.eval(), IMAGE)
    assert without.shape == (2, 5)


def test_hooks_on_tensors_see_gradients_of_the_new_shape() -> None:
    result = halve(residual(), IMAGE)
    call(result.model, IMAGE).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in result.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype(dtype: torch.dtype) -> None:
    model, image = residual().to(dtype), IMAGE.to(dtype)
    result = halve(model, image)
    assert result.verification.passed
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert {b.dtype for b in result.model.buffers()} == {dtype, torch.int64}
    assert call(result.model, image).dtype == dtype
    assert_sound(result, image)


def test_double_precision_is_verified_to_ten_digits() -> None:
    proof = halve(residual().double(), IMAGE.double()).verification
    assert proof.tolerance == 1e-10
    assert proof.max_relative_error <= 1e-10


def test_mixed_dtypes() -> None:
    model = residual()
    model.head.double()
    net = Net(lambda m, x: m.head(m.body(x).double()), head=model.head, body=model)
    model.head = nn.Identity()
    result = halve(net, IMAGE)
    assert result.model.head[2].weight.dtype == torch.float64
    assert result.model.body.stem.weight.dtype == torch.float32


def test_channels_last() -> None:
    model = residual().to(memory_format=torch.channels_last)
    result = halve(model, IMAGE.to(memory_format=torch.channels_last))
    for name in ("stem", "c1", "c2"):
        assert getattr(result.model, name).weight.is_contiguous(memory_format=torch.channels_last)
    assert call(result.model, IMAGE.to(memory_format=torch.channels_last)).shape == (2, 5)
    plain = halve(residual(), IMAGE)
    assert all(p.is_contiguous() for p in plain.model.parameters())


class Fake(nn.parallel.DistributedDataParallel):
    """A DistributedDataParallel without a process group."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


@pytest.mark.parametrize("wrap", [nn.DataParallel, Fake, torch.compile, lambda m: Fake(torch.compile(m))])
def test_wrappers_are_taken_off(wrap: object) -> None:
    model = residual()
    result = halve(wrap(model), IMAGE)
    assert type(result.model) is Net
    assert {g.name for g in result.graph.groups} == {"stem", "c1"}


def test_cut_models_pickle_and_copy() -> None:
    result = halve(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 6), head(6)), IMAGE)
    again = pickle.loads(pickle.dumps(result.model))
    assert torch.equal(call(again.eval(), IMAGE), call(copy.deepcopy(result.model).eval(), IMAGE))
    fresh = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 3), head(3))
    fresh.load_state_dict(result.model.state_dict())


class Auxiliary(nn.Module):
    """A classifier that runs in training mode only, as in Inception and GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.out = conv(3, 8), conv(8, 12), head(12)
        self.aux = nn.Sequential(conv(8, 6), nn.BatchNorm2d(6), nn.ReLU(), head(6))

    def forward(self, x: torch.Tensor) -> object:
        x = self.stem(x)
        extra = self.aux(x) if self.training else None
        x = self.out(self.mid(x).relu())
        return (x, extra) if self.training else x


def test_auxiliary_heads_follow() -> None:
    model = randomise(Auxiliary())
    result = halve(model, IMAGE)
    assert {g.name: g.width for g in result.graph.groups} == {"stem": 8, "mid": 12, "aux.0": 6}
    assert result.model.aux[0].weight.shape == (3, 4, 3, 3)
    first, extra = call(result.model.train(), IMAGE)
    assert first.shape == extra.shape == (2, 5)


class Sized(nn.Module):
    """Keeps its sizes in attributes of every sort."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.inner, self.parts = 12, 10, (4, 6)
        self.table = {"width": 12}
        self.c, self.d = conv(3, 12), conv(12, 10)
        self.a, self.b = conv(4, 5), conv(6, 5)
        self.out = head(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, h, w = x.shape
        x = self.c(x).view(b, self.width, h * w).view(b, self.width, h, w)
        p, q = torch.split(self.d(x).reshape(b, self.inner, h, w), self.parts, 1)
        return self.out(self.a(p) + self.b(q))


def test_sizes_in_attributes_follow() -> None:
    result = halve(randomise(Sized()), IMAGE)
    cut = result.model
    assert (cut.width, cut.inner, cut.parts) == (6, 5, (2, 3))
    assert cut.c.out_channels == cut.d.in_channels == cut.c.weight.shape[0] == 6
    assert (cut.a.in_channels, cut.b.in_channels, cut.out[2].in_features) == (2, 3, 3)
    assert {(r.module, r.attribute, r.path) for r in result.cut.repairs} >= {
        ("", "width", ()), ("", "inner", ()), ("", "parts", (0,)), ("", "parts", (1,)),
    }  # fmt: skip
    assert_sound(result, IMAGE)


def test_attributes_of_pytorchs_layers_follow() -> None:
    model = nn.Sequential(
        conv(3, 8), nn.BatchNorm2d(8), conv(8, 8, groups=8), nn.GroupNorm(8, 8), nn.PReLU(8),
        nn.ConvTranspose2d(8, 12, 2, 2, groups=4), nn.InstanceNorm2d(12, affine=True), head(12),
    )  # fmt: skip
    cut = halve(randomise(model).eval(), IMAGE).model
    assert str(cut[0]) == "Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))"
    assert cut[1].num_features == 4
    assert (cut[2].in_channels, cut[2].out_channels, cut[2].groups) == (4, 4, 4)
    assert (cut[3].num_groups, cut[3].num_channels) == (4, 4)
    assert cut[4].num_parameters == 4
    assert (cut[5].in_channels, cut[5].out_channels, cut[5].groups) == (4, 4, 4) or cut[5].groups == 4
    assert cut[6].num_features == cut[5].out_channels == cut[7][2].in_features


def test_inplace_narrows_the_object_itself() -> None:
    model = residual()
    inside = model.c1
    wanted = halve(copy.deepcopy(model), IMAGE)
    result = halve(model, IMAGE, inplace=True)
    assert result.model is model
    assert model.c1 is inside
    for (name, a), (_, b) in zip(model.named_parameters(), wanted.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_failed_prune_leaves_the_model_alone() -> None:
    model = residual()
    before = state(model)
    with pytest.raises(secateur.SecateurError):
        secateur.prune(model, IMAGE, budget="flops=1e-9", inplace=True)
    assert_same_state(before, model)


def test_the_result_does_not_share_memory_with_the_original() -> None:
    model = residual()
    result = halve(model, IMAGE)
    theirs = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    assert not theirs & {t.untyped_storage().data_ptr() for t in [*result.model.parameters(), *result.model.buffers()]}


@torch.library.custom_op("secateur_test::gate", mutates_args=())
def gate(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


@gate.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def gated() -> nn.Module:
    class Gate(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.secateur_test.gate(x)

    net = Net(
        lambda m, x: m.head(m.c(m.inner(m.stem(x)))),
        stem=conv(3, 8),
        inner=nn.Sequential(Gate()),
        c=conv(8, 6),
        head=head(6),
    )
    return randomise(net)


def test_an_operator_without_a_rule_freezes_what_it_touches_and_is_reported() -> None:
    result = halve(gated(), IMAGE)
    assert {g.name: g.width for g in result.graph.groups} == {"c": 6}
    (unknown,) = result.graph.unsupported
    assert (unknown.operator, unknown.module) == ("secateur_test::gate", "inner.0")
    assert any(f.name == "stem" and "secateur_test::gate" in f.reason for f in result.graph.frozen)
    assert_sound(result, IMAGE)


def test_a_rule_makes_it_prunable(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.graph import rule
    from secateur.graph.rules import RULES

    monkeypatch.setattr("secateur.graph.rules.registry.RULES", RULES)
    assert "secateur_test::gate" not in RULES

    @rule("secateur_test::gate")
    def rule_of_gate(op: object) -> object:
        return op.same("x")

    try:
        result = halve(gated(), IMAGE)
    finally:
        del RULES["secateur_test::gate"]
    assert {g.name: g.width for g in result.graph.groups} == {"stem": 8, "c": 6}
    assert result.graph.unsupported == ()
    assert_sound(result, IMAGE)
    assert "@secateur.graph.rule" in (rule.__doc__ or "")


def test_ignored_layers_stay_whole() -> None:
    result = halve(residual(), IMAGE, ignore=("stem",))
    assert result.plan.widths == {"stem": 8, "c1": 6}


def test_no_gradient_is_recorded_and_none_is_lost() -> None:
    model = residual()
    call(model, IMAGE).sum().backward()
    kept = {n: p.grad.clone() for n, p in model.named_parameters()}
    result = halve(model, IMAGE)
    assert all(torch.equal(p.grad, kept[n]) for n, p in model.named_parameters())
    assert all(p.grad is None for p in result.model.parameters())


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_any_gradient_mode(context: object) -> None:
    model = residual()
    with context():
        result = halve(model, IMAGE)
    assert result.plan.widths == {"stem": 4, "c1": 6}
    assert all(p.requires_grad for p in result.model.parameters())


def test_a_plan_for_everything_is_the_model() -> None:
    model = residual().eval()
    graph = trace(model, IMAGE)
    made = graph.cut(Plan.full(graph))
    assert torch.equal(call(made.model, IMAGE), call(model, IMAGE))
    assert made.slices == {}
    assert made.repairs == ()


def test_functional_modules_and_lambdas_survive() -> None:
    model = Net(lambda m, x: F.relu(m.a(x)).mean((2, 3)) @ m.w, a=conv(3, 8), w=nn.Parameter(torch.randn(8, 5)))
    result = halve(model, IMAGE)
    assert result.plan.widths == {"a": 4}
    assert result.model.w.shape == (4, 5)
    assert_sound(result, IMAGE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("inplace", [False, True])
def test_device(inplace: bool) -> None:
    model, image = residual().cuda(), IMAGE.cuda()
    result = halve(model, image, inplace=inplace)
    assert {t.device.type for t in [*result.model.parameters(), *result.model.buffers()]} == {"cuda"}
    assert call(result.model, image).device.type == "cuda"
    assert result.verification.passed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_inputs_on_another_device_are_one_sentence_or_fine() -> None:
    result = halve(residual().cuda(), IMAGE)
    assert next(result.model.parameters()).is_cuda
