"""What every document that the report reads is made of: strict fields, and lists that may be null."""

from __future__ import annotations

from typing import Annotated, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Count = Annotated[int, Field(ge=0, le=1 << 62)]
Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0)]


def _empty_list(value: object) -> object:
    return [] if value is None else value


def _empty_dict(value: object) -> object:
    return {} if value is None else value


T = TypeVar("T")
Rows = Annotated[list[T], BeforeValidator(_empty_list)]
Table = Annotated[dict[str, T], BeforeValidator(_empty_dict)]


class Document(BaseModel):
    """What a file says; keys this report does not know are another reader's."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)
    wanted: ClassVar[str | None] = None  # what its 'format' must be
