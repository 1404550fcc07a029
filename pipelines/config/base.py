"""What every configuration section shares: strict, frozen, documented fields."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A configuration section: unknown keys and values of the wrong kind are refused, fields never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def output_keys(self) -> dict[str, Any]:
        """Return the values that change a stage's output (those not declared with `operational`)."""
        fields = type(self).model_fields
        hidden = {name for name, field in fields.items() if _is_operational(field)}
        values: dict[str, Any] = self.model_dump(mode="json", exclude=hidden)
        return values


def operational(default: Any, **kwargs: Any) -> Any:
    """Declare a field that never changes a table's content (workers, addresses), so no fingerprint holds it."""
    return Field(default, json_schema_extra={"operational": True}, **kwargs)


def _is_operational(field: Any) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("operational"))
