"""The base of all configuration sections: strict, frozen, documented fields."""

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A configuration section; unknown keys and values of the wrong type are refused, and fields never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    def output_keys(self) -> dict[str, Any]:
        """Return the values that change a stage's output (those not declared with `operational`)."""
        fields = type(self).model_fields
        hidden = {name for name, field in fields.items() if _is_operational(field)}
        values: dict[str, Any] = self.model_dump(mode="json", exclude=hidden)
        return values


def _refuse_number(value: object) -> object:
    if isinstance(value, int | float) or (isinstance(value, str) and re.fullmatch(r"\s*[-+]?[\d.]+\s*", value)):
        # Pydantic would take it for seconds since 1970.
        raise ValueError(f"{value} is a number; write a time such as 2022-01-01 or 2022-01-01T06:00:00Z")
    return value


Instant = Annotated[datetime, BeforeValidator(_refuse_number)]
"""A date or a time, never a number."""


def operational(default: Any, **kwargs: Any) -> Any:
    """Declare a field that never changes the content of a table (workers, addresses), and so is in no fingerprint."""
    return Field(default, json_schema_extra={"operational": True}, **kwargs)


def _is_operational(field: Any) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("operational"))
