"""Numbers and names as the report writes them: a figure looks the same everywhere, and nothing is ever "None"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MINUS = "\N{MINUS SIGN}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
UNKNOWN = "not measured"
_LONGEST = 1_200  # characters of one free-form value (a setting, a description) that are shown

_DATA = {
    "digits": "the scikit-learn digits",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "fashion_mnist": "Fashion-MNIST",
    "imagenet": "ImageNet",
}
_FAMILIES = {
    "resnet": "ResNet",
    "preresnet": "PreResNet",
    "resnext": "ResNeXt",
    "densenet": "DenseNet",
    "vgg": "VGG",
    "mobilenet": "MobileNet",
    "lenet": "LeNet",
}


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.498 as "49.8%"."""
    return UNKNOWN if fraction is None else f"{100 * fraction:.{digits}f}%"


def points(difference: float, digits: int = 2) -> str:
    """A difference of two fractions, signed, in percentage points."""
    said = f"{abs(100 * difference):.{digits}f}"
    sign = PLUS_MINUS if not float(said) else "+" if difference > 0 else MINUS
    return f"{sign}{said} points"


def count(number: float | None) -> str:
    """125485706 as "125.5M"."""
    if number is None:
        return "not known"
    if abs(number) >= 1e15:
        return f"{number:.3g}"
    for factor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(number) >= 0.99995 * factor:  # 999,999 is 1M, not 1000K
            return _digits(round(number / factor, 4)) + suffix
    return _digits(number)


def exactly(number: int | None) -> str:
    """All digits, in threes."""
    return "" if number is None else f"{number:,}"


def size(number: int | None) -> str:
    """Bytes in the unit a person would use (1 MB is a million bytes)."""
    if number is None:
        return "not known"
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= factor:
            return f"{_digits(number / factor)} {unit}"
    return f"{number} bytes"


def milliseconds(number: float | None) -> str:
    """Three significant digits and the unit."""
    return UNKNOWN if number is None else f"{_digits(number, 3)} ms"


def seconds(number: float | None) -> str:
    """A time as a person says it."""
    if number is None:
        return UNKNOWN
    if number < 60:
        return f"{_digits(number, 3)} s"
    minutes, rest = divmod(round(number), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def ratio(number: float) -> str:
    """A factor: "1.62×"."""
    return f"{number:.2f}{TIMES}" if 0.01 <= number < 100 else f"{number:.3g}{TIMES}"


def error(number: float | None) -> str:
    """A relative error: "3.1e-07"."""
    return "not finite" if number is None else "0" if number == 0 else f"{number:.1e}"


def figure(number: float | None) -> str:
    """Any measured value, four significant digits."""
    if number is None:
        return UNKNOWN
    return count(number) if abs(number) >= 1e4 else _digits(number)


def network(reference: str | None, kind: str | None = None) -> str:
    """The network's name for people: "zoo:resnet56" is ResNet-56; of a file's path the last part, else as it is."""
    if not reference:
        return kind or "A network"
    reference = _bare(reference)
    name = reference.partition(":")[2] if reference.startswith(("zoo:", "torchvision:", "timm:")) else reference
    family = re.fullmatch(r"([a-z]+?)(\d+)((?:_[a-z0-9]+)*)", name)
    if family is None or family[1] not in _FAMILIES:
        return shortened(name or reference, 60)
    return f"{_FAMILIES[family[1]]}-{family[2]}{family[3].upper().replace('_', '-')}"


def moment(value: Any) -> str:
    """A date and time as written in JSON, without its seconds."""
    known = (
        re.fullmatch(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?", value)
        if isinstance(value, str)
        else None
    )
    if known is None:
        return plain(value)
    zone = "" if known[5] is None else " UTC" if known[5] in ("Z", "+00:00", "-00:00") else f" UTC{known[5]}"
    return f"{known[1]} {known[2]}{zone}"


def data_set(name: str | None) -> str:
    """The data set's name for people."""
    return _DATA.get(name.lower(), shortened(_bare(name), 40)) if name else "unnamed data"


def _bare(reference: str) -> str:
    """A reference to a file or module of Python without the folders or packages it lies in."""
    if ".py:" in reference:
        return reference.rpartition("/")[2]
    module, colon, name = reference.partition(":")
    return f"{module.rpartition('.')[2]}{colon}{name}" if colon else reference


def plain(value: Any) -> str:
    """Any value out of a JSON file as text for people; what is null is said to be so."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = ", ".join(_items(value)) or "none" if isinstance(value, dict | list) else str(value)
    return brief(text, _LONGEST)


def brief(text: str, length: int = 600) -> str:
    """The beginning of a text that is longer than anyone would read."""
    return text if len(text) <= length else f"{text[:length]} … ({len(text):,} characters)"


def shortened(name: str, length: int = 30) -> str:
    """A long name without its middle."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[len(name) - (length - 1 - head) :]}"


def several(names: Sequence[str], most: int = 6) -> str:
    """Up to `most` names, and how many more there are."""
    shown = [shortened(name, 60) for name in names[:most]]
    more = len(names) - len(shown)
    if more:
        return f"{', '.join(shown)} and {more:,} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def number_of(amount: int, one: str, many: str | None = None) -> str:
    """ "1 layer", "3 layers"."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


def _items(value: dict[str, Any] | list[Any]) -> list[str]:
    """The entries of a list or an object; what is nested stands in brackets."""
    inner = value.values() if isinstance(value, dict) else value
    said = [f"({plain(item)})" if isinstance(item, dict | list) else plain(item) for item in inner]
    return [f"{key}: {text}" for key, text in zip(value, said, strict=True)] if isinstance(value, dict) else said


def _digits(number: float, digits: int = 4) -> str:
    """Significant digits without an exponent where that is readable."""
    if number == int(number) and abs(number) < 10**digits:
        return str(int(number))
    if 10**digits <= abs(number) < 1e9:
        return f"{number:,.0f}"
    if 1e-3 <= abs(number) < 10**digits:
        return f"{number:#.{digits}g}".rstrip(".")
    return f"{number:.{digits - 1}g}"
