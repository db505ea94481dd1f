"""The mistakes in a file of settings: where they stand in it, and what is said of them."""

import difflib
from collections.abc import Sequence
from typing import get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from ingestor.config.feeds import FEEDS
from ingestor.config.key import KEY_BELONGS
from ingestor.config.yaml_file import KeyPath

_KEY_WORDS = frozenset({"api_key", "apikey", "finnhub_api_key", "key", "secret", "token"})
_ONE_VALUE = "`{key}` must be one value, not a list or a mapping"
_SENTENCES = {
    "missing": "`{key}` is missing",
    "literal_error": "must be {expected}",
    "model_type": "`{key}` must be a mapping: lines of `key: value` below it",
    "tuple_type": "`{key}` must be a list",
    "string_type": _ONE_VALUE,
    "float_type": _ONE_VALUE,
    "int_type": _ONE_VALUE,
    "bool_type": _ONE_VALUE,
    "path_type": _ONE_VALUE,
}


def path_in_file(path: KeyPath) -> KeyPath:
    """The error names the venue after `feed`; the file doesn't."""
    return path[:1] + path[2:] if path[:1] == ("feed",) and path[1:2] and path[1] in FEEDS else path


def sentence(detail: ErrorDetails, settings: type[BaseModel]) -> str:
    """What pydantic found in `settings`, as a person would say it, with a hint."""
    path, context = detail["loc"], detail.get("ctx", {})
    key = str(path_in_file(path)[-1]) if path else ""
    if detail["type"] == "value_error":
        return str(context["error"])
    if detail["type"] == "extra_forbidden":
        return f"unknown key `{key}`{_hint(key, _keys_beside(path, settings))}"
    if template := _SENTENCES.get(detail["type"]):
        return template.format(key=key, **context)
    return detail["msg"]


def _keys_beside(path: KeyPath, settings: type[BaseModel]) -> list[str]:
    """The keys that `settings` knows where `path` stands; after `feed` it names the venue, as pydantic does."""
    section = settings
    for key in path[:-1]:
        if key in FEEDS:
            section = FEEDS[str(key)]
            continue
        kinds = (section.model_fields[str(key)].annotation, *get_args(section.model_fields[str(key)].annotation))
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), section)
    return list(section.model_fields)


def _hint(key: str, known: Sequence[str]) -> str:
    if key.lower() in _KEY_WORDS:
        return f": {KEY_BELONGS}"
    if near := difflib.get_close_matches(key.lower(), known, n=1):
        return f": did you mean `{near[0]}`?"
    return f": known here are {', '.join(known)}"
