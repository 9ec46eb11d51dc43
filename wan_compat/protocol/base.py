"""What every value is made of: a frozen, closed, strict pydantic model, and the bounded types that several share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
Seconds = Annotated[float, Field(ge=0, lt=float("inf"))]
Count = Annotated[int, Field(ge=0, le=2**62)]


class Value(BaseModel):
    """Frozen, closed, strict: no unknown keys, no coercion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)
