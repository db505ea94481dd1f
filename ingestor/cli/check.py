"""`ingestor check`: everything that can be known before a recording starts, and what would run."""

import os
import shutil
import ssl
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ingestor.cli.check_online import Finding, find_online
from ingestor.cli.options import (
    config_dir,
    config_option,
    example,
    json_option,
    root_option,
    settings_from,
    symbols_option,
)
from ingestor.cli.printing import format_bytes, format_json, format_seconds, format_table
from ingestor.config import DEFAULT_PATH, Flags, Settings
from ingestor.config.addresses import find_unused_proxy, is_loopback, split_address
from ingestor.config.feeds import FREE_PLAN_SYMBOLS, FeedSettings, FinnhubSettings
from ingestor.config.key import load_key
from ingestor.config.types import format_size
from ingestor.config.yaml_file import read_yaml
from ingestor.errors import ConfigError
from ingestor.texts import escape

_NAMED = 5


@click.command(epilog=example("ingestor check --online"))
@config_option
@root_option
@symbols_option
@json_option
@click.option("--online", is_flag=True, help="Ask the venue and try the machine, too; opens no stream.")
@click.option("--schema", is_flag=True, help="Print the settings' JSON Schema for editors, and check nothing.")
def check(
    config: Path | None, root: Path | None, symbols: tuple[str, ...] | None, as_json: bool, online: bool, schema: bool
) -> None:
    """Check settings, key and disk, and print each finding and what would run, without the key. Exit 2 on any error.

    With --online also: the key and the symbols at the venue's REST API, the clock, the disk's speed, permissions, and
    the service.
    """
    if schema:
        click.echo(format_json(Settings.model_json_schema()))
        return
    settings, findings = _settings_found(config, Flags(symbols=symbols, root=root))
    if settings.feed.needs_key if settings else _speaks_finnhub(config):
        findings += _key_found(config_dir(config), settings.feed if settings else FinnhubSettings())
    if settings:
        findings += [*_settings_findings(settings), *_sink_findings(settings, config_dir(config))]
        findings += _disk_findings(settings)
        if online:
            findings += find_online(settings, load_key(config_dir(config)) if settings.feed.type == "finnhub" else None)
    resolved = settings.model_dump(mode="json") if settings else None
    if as_json:
        click.echo(format_json({"findings": [asdict(finding) for finding in findings], "settings": resolved}))
    else:
        _print(findings, resolved)
    sys.exit(2 if any(finding.verdict == "error" for finding in findings) else 0)


def _settings_found(config: Path | None, flags: Flags) -> tuple[Settings | None, list[Finding]]:
    try:
        settings = settings_from(config, flags)
    except ConfigError as error:
        return None, [Finding("error", "settings", line) for line in str(error).splitlines()]
    source = config or (DEFAULT_PATH if DEFAULT_PATH.exists() else "the defaults")
    return settings, [Finding("ok", "settings", f"{source}: {len(settings.tickers)} tickers")]


def _speaks_finnhub(config: Path | None) -> bool:
    """Whether settings that hold a mistake are at least Finnhub's: of another venue nothing is known of its key."""
    try:
        feed = read_yaml(config or DEFAULT_PATH).data.get("feed")
    except ConfigError:
        return True
    return not isinstance(feed, dict) or feed.get("type", "finnhub") == "finnhub"


def _key_found(directory: Path, feed: FeedSettings) -> list[Finding]:
    variable = feed.key_variable
    try:
        key = load_key(directory, variable=variable)
    except ConfigError as error:
        return [Finding("error", "key", str(error))]
    if key is None:
        where = f"set {variable}, or write {variable}=… into {directory / '.env'}"
        free = " (free at https://finnhub.io)" if feed.type == "finnhub" else ""
        return [Finding("error", "key", f"none found: {where}{free}")]
    found = [Finding("ok", "key", f"from {key.source}")]
    return [*found, Finding("warning", "key", key.warning)] if key.warning else found


def _settings_findings(settings: Settings) -> Iterator[Finding]:
    """What is allowed and still worth a word."""
    if settings.shard:
        ours = f"{len(settings.symbols)} of {len(settings.tickers)} tickers: {', '.join(settings.symbols)}"
        yield Finding("ok", "shard", f"{settings.shard.index} of {settings.shard.count} records {ours}")
    if settings.feed.type == "finnhub" and (count := len(settings.symbols)) > FREE_PLAN_SYMBOLS:
        text = f"{count}: Finnhub's free plan refuses those after {FREE_PLAN_SYMBOLS}; fewer, or a paid plan"
        yield Finding("warning", "tickers", text)
    if settings.feed.type == "finnhub" and (
        lower := [one for one in settings.symbols if ":" not in one and one.upper() != one]
    ):
        named = ", ".join(lower[:_NAMED]) + (f" and {len(lower) - _NAMED} more" if len(lower) > _NAMED else "")
        yield Finding("warning", "tickers", f"{named}: Finnhub's US symbols are upper case: write {lower[0].upper()}")
    if (proxy := find_unused_proxy(settings.feed.url)) is not None:
        yield Finding("warning", "proxy", f"{proxy} is set and not used: the recorder connects to the venue directly")
    if settings.feed.allow_plaintext and settings.feed.url.startswith("ws://"):
        what = "the key travels" if settings.feed.needs_key else "trades travel"
        yield Finding("warning", "feed", f"{what} in clear; use wss:// where the venue has it")
    if (ca_file := settings.connection.ca_file) is not None:
        try:
            ssl.create_default_context(cafile=ca_file)
        except OSError as error:
            yield Finding("error", "ca_file", f"{ca_file} holds no certificate to trust: {error.strerror or error}")
    listen = settings.health.listen
    if listen is not None and not is_loopback(split_address(listen)[0]):
        yield Finding("warning", "health", f"{listen} can be asked by other machines, and asks nobody who they are")
    killed = settings.journal.linger
    unpowered = killed + settings.journal.sync_interval
    bound = f"kill -9 loses {format_seconds(killed)} + lag, a power cut {format_seconds(unpowered)} + lag"
    yield Finding("ok", "loss bound", bound)


def _sink_findings(settings: Settings, directory: Path) -> Iterator[Finding]:
    from ingestor.layout import Layout
    from ingestor.recording import make_sink_process

    try:
        make_sink_process(settings, Layout(settings.storage.root), directory)
    except ConfigError as error:
        yield Finding("error", "sinks", str(error))


def _disk_findings(settings: Settings) -> Iterator[Finding]:
    root = settings.storage.root.absolute()
    base = next(path for path in (root, *root.parents) if path.exists())
    fault = _fault_of_writing(base)
    if fault:
        yield Finding("error", "root", f"{root} can't be written: {fault} ({base}): mend that, or set storage.root")
        return
    yield Finding("ok", "root", f"{root}{'' if base == root else ' (will be made)'}")
    free, floor = shutil.disk_usage(base).free, settings.storage.min_free
    if free < floor:
        text = f"{format_bytes(free)} is less than storage.min_free ({format_size(floor)}): make room, or lower it"
        yield Finding("error", "free space", text)
    else:
        yield Finding("ok", "free space", f"{format_bytes(free)}; {format_size(floor)} of it stays free")


def _fault_of_writing(directory: Path) -> str | None:
    """Why no file can be made here, by making one that has no name and is gone at once."""
    if not directory.is_dir():
        return "not a directory"
    if not os.access(directory, os.X_OK):
        return "not accessible"
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"x")
    except OSError as error:
        return error.strerror or str(error)
    return None


def _print(findings: list[Finding], resolved: dict[str, Any] | None) -> None:
    for finding in findings:
        click.echo(f"{finding.verdict:<7}  {finding.subject:<10}  {escape(finding.text)}")
    if resolved is not None:
        click.echo("\nWhat would run:\n")
        click.echo(format_table(("setting", "value"), _flat(resolved)))


def _flat(section: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """(`storage.rotate.age`, `15m`) of each setting, as the file would write it."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", ", ".join(value) if isinstance(value, list) else _as_yaml(value)


def _as_yaml(value: object) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
