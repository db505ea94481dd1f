"""Settings: one YAML file and the environment, read once, frozen; every mistake named with its place.

Every default is in this room and nowhere else; `config/ingestor.yaml` is the manual; a test holds it to them. The
sections are in `feeds` and `sections`; here they come together and are read. Secrets are in `key`.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from ingestor.config import feeds, sections
from ingestor.config.key import KEY_BELONGS
from ingestor.config.types import Duration, Section, Switch, lasting, null_as_none
from ingestor.config.yaml_file import KeyPath, Mistake, YamlFile, read_yaml
from ingestor.errors import ConfigError

DEFAULT_PATH = Path("config/ingestor.yaml")


def _with_files(schema: dict[str, Any]) -> None:
    """What an editor may see instead of a list of tickers."""
    listed = {key: schema.pop(key) for key in ("type", "items")}
    schema["anyOf"] = [listed | {"minItems": 1}, sections.TickerFiles.model_json_schema()]


class Settings(Section):
    """All of one recorder's settings. Durations are seconds, sizes bytes."""

    feed: feeds.FeedSettings = Field(default=feeds.FinnhubSettings(), description="the venue and its language")
    tickers: sections.Tickers = Field(
        description="the symbols to record, as the venue names them: a list, or {files: [sp500.txt]}",
        json_schema_extra=_with_files,
    )
    tickers_watch: Switch = Field(
        default=False, description="apply a change of tickers as soon as the file is saved; else on `ingestor reload`"
    )
    shard: Annotated[sections.ShardSettings | None, BeforeValidator(null_as_none)] = Field(
        default=None, description="record only this recorder's part of the tickers; null records all"
    )
    storage: sections.StorageSettings = sections.StorageSettings()
    journal: sections.JournalSettings = sections.JournalSettings()
    connection: sections.ConnectionSettings = sections.ConnectionSettings()
    health: sections.HealthSettings = sections.HealthSettings()
    sinks: sections.SinkSettings = sections.SinkSettings()
    alerts: Annotated[sections.AlertSettings | None, BeforeValidator(sections.null_section)] = Field(
        default=None, description="messages to people, by Apprise; null is none"
    )
    backfill: Annotated[sections.BackfillSettings | None, BeforeValidator(sections.null_section)] = Field(
        default=None, description="fill gaps from a history while recording; null doesn't"
    )
    logging: sections.LoggingSettings = sections.LoggingSettings()
    stop_timeout: Annotated[Duration, lasting("0s", "1h")] = Field(
        default=60.0, description="how long an orderly stop may wait for files to be complete"
    )

    @property
    def symbols(self) -> tuple[str, ...]:
        """What this recorder asks for: the tickers, or its shard of them."""
        if self.shard is None:
            return self.tickers
        return sections.symbols_of_shard(self.tickers, self.shard.index, self.shard.count)

    @property
    def groups(self) -> int:
        """Into so many the symbols are divided, as a connection does not take more; each has connections of its own."""
        most = self.feed.symbols_per_connection
        return -(-len(self.symbols) // most) if most else 1

    @property
    def history(self) -> str | None:
        """Whose history fills gaps: the source that is named, else the venue's own where it is known."""
        stream = self.feed.stream if isinstance(self.feed, feeds.BinanceSettings) else ""
        named = self.backfill.source if self.backfill else None
        return named or feeds.find_history(self.feed.type, self.feed.venue, stream)

    @model_validator(mode="after")
    def _recordable(self) -> Self:
        """What the sections say of one another."""
        if self.shard and isinstance(self.feed, feeds.JsonSettings) and self.feed.subscribe is None:
            raise ValueError("`shard` needs `feed.subscribe`: without it every shard is sent every symbol")
        if self.alerts and self.health.listen is None:
            raise ValueError("`alerts` need `health.listen`: they ask there how the recorder is")
        if self.backfill and self.history is None:
            raise ValueError(f"`backfill` needs `source`: no history of {self.feed.venue} is known")
        if self.sinks.kafka is not None:
            trades, coverage = self.sinks.kafka.topics(self.feed.type)
            if trades == coverage:
                raise ValueError(
                    f"`sinks.kafka.coverage_topic` is the topic of the trades, {trades}: a compacted topic would lose"
                    " trades; name another, or `none`"
                )
        if self.connection.redundant > 1 and (why := self.feed.only_one_connection):
            raise ValueError(f"`connection.redundant: {self.connection.redundant}` needs several connections: {why}")
        if not self.symbols:
            raise ValueError("this shard gets none of the tickers: there are too few of them for so many shards")
        self.feed.check_symbols(self.symbols, self.groups * self.connection.redundant)
        return self


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line says; each stands above the file. None leaves the file's word."""

    symbols: Sequence[str] | None = None
    root: Path | None = None
    url: str | None = None

    PLACES: ClassVar[dict[str, KeyPath]] = {
        "symbols": ("tickers",),
        "root": ("storage", "root"),
        "url": ("feed", "url"),
    }

    def given(self) -> Iterator[tuple[str, KeyPath, object]]:
        """(`--flag`, the setting it stands for, its value) of each that was given."""
        for name, path in self.PLACES.items():
            value = getattr(self, name)
            if value is not None:
                yield f"--{name}", path, value


ENVIRONMENT: dict[str, KeyPath] = {"INGESTOR_HEALTH_LISTEN": ("health", "listen")}
"""Variables that override the file, for containers. The text `null` means null; an empty one means nothing."""


def load_settings(path: Path, flags: Flags = Flags()) -> Settings:
    """The settings in this file, under these flags. Raises ConfigError: one line a mistake, all of them."""
    return _validate(read_yaml(path), flags)


def settings_from_flags(flags: Flags) -> Settings:
    """Settings without a file: the defaults under these flags. Raises ConfigError."""
    return _validate(YamlFile(Path("command line"), {}, {}, []), flags)


@dataclass(frozen=True, slots=True)
class Source:
    """Where settings come from, so that they can be read again."""

    path: Path | None
    """None: from the flags alone."""
    flags: Flags = Flags()

    def read(self) -> Settings:
        """Raises ConfigError: one line a mistake, all of them."""
        return settings_from_flags(self.flags) if self.path is None else load_settings(self.path, self.flags)

    def files(self) -> list[Path]:
        """The files that say which symbols to record: the settings, and those that they name. What can't be read names
        none.
        """
        if self.path is None:
            return []
        try:
            tickers = read_yaml(self.path).data.get("tickers")
            return [self.path, *sections.TickerFiles.model_validate(tickers).paths(self.path.parent)]
        except (ConfigError, ValidationError):
            return [self.path]


def _validate(file: YamlFile, flags: Flags) -> Settings:
    mistakes = list(file.mistakes)
    complaints: list[str] = []
    environ = [(name, path, os.environ[name]) for name, path in ENVIRONMENT.items() if os.environ.get(name)]
    above_file = [*((name, path, None if text == "null" else text) for name, path, text in environ), *flags.given()]
    name_of = {path: name for name, path, _ in above_file}
    merged = dict(file.data)
    for _, path, value in above_file:
        *above, last = (str(key) for key in path)
        at = merged
        for key in above:
            section = at.get(key) or {}
            if not isinstance(section, Mapping):
                break  # it is refused below
            at[key] = at = dict(section)
        else:
            at[last] = value
    try:
        if isinstance(tickers := merged.get("tickers"), Mapping) and "files" in tickers:
            merged["tickers"] = _read_tickers(file, tickers)
    except ConfigError as error:
        complaints.append(str(error))
        merged["tickers"] = ["-"]  # what else is wrong is told as well
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            place = _path_in_file(detail["loc"])
            name = next((name for path, name in name_of.items() if place[: len(path)] == path), None)
            if name:
                complaints.append(f"{name}: {_sentence(detail, Settings)}")
            else:
                mistakes.append(Mistake(file.place(place), _sentence(detail, Settings)))
    complaints += [file.complaint(mistake) for mistake in sorted(mistakes)]
    if complaints:
        raise ConfigError("\n".join(complaints))
    return settings


def _read_tickers(file: YamlFile, tickers: Mapping[str, object]) -> list[str]:
    """The symbols of `tickers: {files: …}`. Raises ConfigError."""
    try:
        found = sections.TickerFiles.model_validate(tickers).read(file.path.parent)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        place = file.place(("tickers", *detail["loc"]))
        raise ConfigError(file.complaint(Mistake(place, _sentence(detail, sections.TickerFiles)))) from None
    if not found:
        place = file.place(("tickers",))
        raise ConfigError(file.complaint(Mistake(place, "these files name no symbol, or all are dropped")))
    return found


# What is said of a mistake

_KEY_WORDS = frozenset({"api_key", "apikey", "finnhub_api_key", "key", "secret", "token"})
_GONE: Mapping[KeyPath, str] = {
    (
        "connection",
        "fast_frames",
    ): "`fast_frames` no longer exists: frames are always read in bulk; delete this line",
    ("storage", "csv_gzip"): "`csv_gzip` no longer exists: the recorder leaves CSV files as they are; delete this line",
}
"""Settings of earlier versions, and what to do about each."""
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


def _path_in_file(path: KeyPath) -> KeyPath:
    """The error names the venue after `feed`; the file doesn't."""
    return path[:1] + path[2:] if path[:1] == ("feed",) and path[1:2] and path[1] in feeds.FEEDS else path


_MEANT = {"symbol": "tickers", "symbols": "tickers"}
"""Words of the commands for what the settings call otherwise."""


def _sentence(detail: ErrorDetails, settings: type[BaseModel]) -> str:
    """What pydantic found in `settings`, as a person would say it, with a hint."""
    path, context = detail["loc"], detail.get("ctx", {})
    key = str(_path_in_file(path)[-1]) if path else ""
    if detail["type"] == "value_error":
        return str(context["error"])
    if detail["type"] == "extra_forbidden":
        # The keys that are known where `path` stands; after `feed` it names the venue, as pydantic does.
        section = settings
        for step in path[:-1]:
            if step in feeds.FEEDS:
                section = feeds.FEEDS[str(step)]
                continue
            kinds = (section.model_fields[str(step)].annotation, *get_args(section.model_fields[str(step)].annotation))
            section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), section)
        known = list(section.model_fields)
        near = [_MEANT[key]] if _MEANT.get(key) in known else difflib.get_close_matches(key.lower(), known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known here are {', '.join(known)}"
        return _GONE.get(path) or f"unknown key `{key}`: {KEY_BELONGS if key.lower() in _KEY_WORDS else hint}"
    if template := _SENTENCES.get(detail["type"]):
        return template.format(key=key, **context)
    return detail["msg"]
