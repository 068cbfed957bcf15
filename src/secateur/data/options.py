"""What `data.options` may hold for each kind of set; the fields and their descriptions are also the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secateur._hints import nearest
from secateur.errors import ConfigError

Positive = Annotated[int, Field(ge=1, le=1 << 20)]
Side = Annotated[int, Field(ge=1, le=4096)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Spread = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]


class Options(BaseModel):
    """Every set takes these."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    mean: list[Share] | None = Field(None, description="mean of each colour, 0 to 1, subtracted; null: the set's")
    std: list[Spread] | None = Field(None, description="standard deviation of each colour, divided by; null: the set's")


class Cifar100Options(Options):
    labels: Literal["fine", "coarse"] = Field("fine", description="100 classes, or the 20 superclasses")


class NpzOptions(Options):
    classes: Positive | None = Field(None, description="how many classes; null: the largest training label + 1")
    layout: Literal["auto", "nchw", "nhwc"] = Field("auto", description="the order of the axes, if sizes leave doubt")


class ImageOptions(Options):
    """Sets whose images are decoded when they are needed."""

    size: Side = Field(224, description="side of the square the network sees")
    resize: Side | None = Field(None, description="shorter side before the middle is cut out; null: size / 0.875")
    channels: Literal[1, 3] = Field(3, description="3 colours, or 1 for grey")
    check: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        2000, description="how many images of each split to decode at the start, evenly spread, or all"
    )


class FolderOptions(ImageOptions):
    test: str | None = Field(None, description="the folder of test images; null: test, or else val")


class ShardOptions(ImageOptions):
    train: str = Field("train*.tar", description="pattern of the training shards; * and {000..146} are understood")
    test: str | None = Field(None, description="pattern of the test shards; null: test*.tar, or else val*.tar")
    label: str = Field("cls", description="extension of the member that holds the class number as text")
    classes: Positive | None = Field(None, description="how many classes; null: the largest training label + 1")


class HubOptions(ImageOptions):
    config: str | None = Field(None, description="the configuration, for sets that have several")
    revision: str | None = Field(None, description="branch, tag or commit; give one to get the same data always")
    train: str = Field("train", description="the split to train on")
    test: str | None = Field(None, description="the split to test on; null: test, or else validation")
    image: str | None = Field(None, description="the column of images; null: the only one there is")
    label: str | None = Field(None, description="the column of labels; null: the only one of classes, or label")


def parse(kind: type[Options], given: Mapping[str, Any], name: str) -> Options:
    """The options of the set `name`, checked.

    Raises:
        ConfigError: the first thing wrong with them, in one sentence.
    """
    for key in given:
        if key not in kind.model_fields:
            close = nearest(str(key), kind.model_fields)
            hint = f"did you mean {close[0]!r}? " if close else ""
            known = ", ".join(kind.model_fields)
            raise ConfigError(f"The data set {name} takes no option {key!r}: {hint}It takes {known}.")
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][:1])
        meaning = kind.model_fields[place].description
        raise ConfigError(
            f"data.options.{place} is {given[place]!r}, which cannot be: {first['msg']} ({meaning})."
        ) from error
