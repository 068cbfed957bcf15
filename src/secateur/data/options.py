"""What `data.options` may hold for each kind of set; the fields and their descriptions are also the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from secateur._hints import nearest
from secateur.data.normalisation import checked_name
from secateur.errors import ConfigError

Positive = Annotated[int, Field(ge=1, le=1 << 20)]
Side = Annotated[int, Field(ge=1, le=4096)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Spread = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]


def _one_for_all(value: Any) -> Any:
    """A bare number stands for a list of it."""
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


Alone = BeforeValidator(_one_for_all)


class Options(BaseModel):
    """Every set takes these."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    mean: Annotated[list[Share] | str | None, AfterValidator(checked_name), Alone] = Field(
        None,
        description="mean of each colour or of all, 0 to 1, subtracted; or imagenet, half, measured; null: usual",
    )
    std: Annotated[list[Spread] | str | None, AfterValidator(checked_name), Alone] = Field(
        None,
        description="standard deviation of each colour or of all, divided by; or a name as for mean; null: usual",
    )


class Cifar100Options(Options):
    labels: Literal["fine", "coarse"] = Field("fine", description="100 classes, or the 20 superclasses")


class NpzOptions(Options):
    classes: Positive | None = Field(
        None, description="how many classes; null: as many as training labels number from 0, without a gap"
    )
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


class VisionOptions(ImageOptions):
    dataset: str | None = Field(None, description="a class of torchvision.datasets, such as FashionMNIST")
    train: str = Field("train", description="what the class calls the split to train on, where it has splits")
    test: str = Field("test", description="what the class calls the split to test on, where it has splits")
    arguments: dict[str, Any] = Field({}, description="other arguments of the class")
    download: bool = Field(False, description="let torchvision fetch the files, if they are not there")


class StreamOptions(ImageOptions):
    """Sets that may be read from beginning to end instead of in any order."""

    stream: bool = Field(False, description="read shards one after another, however many there are, even at addresses")
    images: Annotated[int, Field(ge=1)] | None = Field(
        None, description="of a stream: training images of an epoch, those for validation among them"
    )
    test_images: Annotated[int, Field(ge=1)] | None = Field(
        None, description="of a stream: how many test images it has"
    )
    buffer: Positive = Field(4096, description="of a stream: encoded images kept at a time, among which it is shuffled")
    lanes: Positive | None = Field(
        None, description="of a stream: parts read side by side, shared by processes; null: 8, or fewer with few shards"
    )

    def check_stream(self, name: str) -> None:
        """ConfigError for what goes with a stream only, or is missing for one."""
        given = {key for key in ("images", "test_images", "buffer", "lanes") if key in self.model_fields_set}
        if given and not self.stream:
            raise ConfigError(
                f"data.options.{min(given)} is of a stream: set data.options.stream: true, or leave it out."
            )
        for key, example in (("images", "1281167"), ("test_images", "50000")):
            if self.stream and getattr(self, key) is None:
                raise ConfigError(
                    f"data.options.{key} is missing: a stream of {name} is not counted, so say how many there are, "
                    f"such as {example}."
                )


class ShardOptions(StreamOptions):
    train: str = Field("train*.tar", description="pattern of the training shards; * and {000..146} are understood")
    test: str | None = Field(None, description="pattern of the test shards; null: test*.tar, or else val*.tar")
    label: str = Field("cls", description="extension of the member that holds the class number as text")
    classes: Positive | None = Field(
        None, description="how many classes; null: as many as training labels number from 0, without a gap"
    )


class HubOptions(StreamOptions):
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
        errors = error.errors()  # of all that it may be; the kind that was meant says more than the others
        first = next((each for each in errors if not each["type"].endswith("_type")), errors[0])
        place = ".".join(str(part) for part in first["loc"][:1])
        meaning = kind.model_fields[place].description
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"data.options.{place} is {given[place]!r}, which cannot be: {said} ({meaning}).") from error
