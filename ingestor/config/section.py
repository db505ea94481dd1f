"""What every section of the settings is made of: its base, and the values that stand in many of them."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator


def _defaults_as_written(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """A JSON Schema for editors shows a default as the file would write it: `15m`, not 900.0."""
    for key, default in model.model_construct().model_dump(mode="json").items():
        schema["properties"][key]["default"] = default


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, json_schema_extra=_defaults_as_written
    )

    @model_validator(mode="before")
    @classmethod
    def _all_commented_out(cls, value: object) -> object:
        """A section of which every line is a comment has no value: it is all defaults."""
        return {} if value == "" else value


def _parse_switch(value: object) -> object:
    """YAML 1.1's `yes`, `on` and `off` are refused: the same words are tickers."""
    if isinstance(value, str):
        if value not in {"true", "false"}:
            raise ValueError(f"must be true or false, not `{value}`")
        return value == "true"
    return value


def _parse_path(value: object) -> object:
    if isinstance(value, str):
        if value in {"", "~", "null"} or not value.isprintable():
            raise ValueError("must be a path")
        try:
            return Path(value).expanduser()
        except RuntimeError:
            raise ValueError(f"`{value}` names a home that doesn't exist") from None
    return value


def null_as_none(value: object) -> object:
    return None if value in ("", "~", "null") else value


Switch = Annotated[bool, BeforeValidator(_parse_switch)]
PathText = Annotated[Path, BeforeValidator(_parse_path)]
