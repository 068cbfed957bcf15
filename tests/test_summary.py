"""What print and a notebook show, and inputs that mix positional and keyword arguments."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur
from secateur._summary import ROWS, Summary
from secateur.errors import InputError

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    """One image by position, numbers and a mask by keyword."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor, *, scale: float, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.b(self.a(x) * scale).relu()
        return self.c(x if mask is None else x * mask)


def test_a_graph_and_a_result_say_what_a_person_wants_to_know() -> None:
    model = secateur.models.create("resnet20")
    image = torch.randn(1, 3, 32, 32)
    said = str(secateur.trace(model, image))
    assert said.splitlines()[0] == "ResNet: 12 groups of coupled channels, 400 channels, 40.55M MACs, 269.7K parameters"
    assert "fc (reaches the model's output)" in said
    result = secateur.prune(model, image, budget="flops=0.5", method="l1")
    said = str(result)
    assert said.splitlines()[0] == "ResNet, pruned by l1"
    assert "Verified, exact" in said
    assert max(map(len, said.splitlines())) <= 100
    for name, width in result.plan.widths.items():
        assert any(line.split()[:1] == [name] and line.split()[2] == str(width) for line in said.splitlines())


def test_html_holds_the_same_and_escapes() -> None:
    shown = Summary(("a < b",), ("name", "n"), (("<script>", "1"),), ("&",))
    assert shown.html() == (
        "<div><p>a &lt; b</p><table><thead><tr><th>name</th><th>n</th></tr></thead>"
        "<tbody><tr><td>&lt;script&gt;</td><td>1</td></tr></tbody></table><p>&amp;</p></div>"
    )
    assert shown.text().splitlines() == ["a < b", "name      n", "<script>  1", "&"]
    assert "<table>" in secateur.trace(Scaled(), secateur.Inputs(IMAGES, scale=2.0))._repr_html_()


def test_long_tables_are_cut_short() -> None:
    text = Summary((), ("name",), tuple((str(k),) for k in range(ROWS + 6)), more=": ask").text().splitlines()
    assert len(text) == ROWS + 1
    assert text[-1] == "and 7 more: ask"


@pytest.mark.parametrize("keywords", [{"scale": 2.0}, {"scale": 2.0, "mask": torch.ones(8, 1, 8, 8)}])
def test_inputs_mix_positional_and_keyword_arguments(keywords: dict[str, object]) -> None:
    inputs = secateur.Inputs(IMAGES, **keywords)
    result = secateur.prune(Scaled(), inputs, method="cp", budget="flops=0.6", data=[(inputs, 0)])
    assert result.verification is not None
    assert result.verification.exact
    assert result.model(IMAGES, **keywords).shape == (8, 4, 8, 8)


def test_constants_by_keyword_need_not_be_repeated() -> None:
    inputs = secateur.Inputs(IMAGES, scale=2.0)
    plans = [
        secateur.prune(Scaled(), inputs, method="cp", budget="flops=0.6", data=data).plan
        for data in ([(IMAGES, 0)], [IMAGES], [(inputs, 0)])
    ]
    assert plans[0] == plans[1] == plans[2]
    with pytest.raises(InputError, match=r"'mask' by keyword.*secateur\.Inputs\(\.\.\., mask=\.\.\.\)"):
        secateur.prune(
            Scaled(), secateur.Inputs(IMAGES, scale=2.0, mask=torch.ones(8, 1, 8, 8)), method="cp", budget="flops=0.6",
            data=[(IMAGES, 0)],
        )  # fmt: skip


def test_labels_come_with_mixed_inputs() -> None:
    inputs = secateur.Inputs(IMAGES, scale=2.0)
    labels = torch.zeros(8, 8, 8, dtype=torch.long)
    found = secateur.prune(Scaled(), inputs, method="taylor", budget="flops=0.6", data=[(inputs, labels)])
    assert found.verification is not None
    assert found.verification.exact
