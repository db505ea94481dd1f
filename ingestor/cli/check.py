"""`ingestor check`: all that can be checked before a recording starts, and the settings that would run.

With --online also the preflight: the venue's REST API, the clock, the disk, permissions, the service.
"""

import json
import os
import shutil
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click

from ingestor.capture.market_calendar import find_rest_base
from ingestor.cli.options import config_dir, example, json_option, reading_options, settings_from
from ingestor.cli.printing import format_bytes, format_json, format_seconds, wrap_text
from ingestor.config import DEFAULT_PATH, Flags, Settings
from ingestor.config.addresses import choose_proxy, find_proxy_variable, is_loopback, split_address
from ingestor.config.feeds import FREE_PLAN_SYMBOLS, FeedSettings, FinnhubSettings
from ingestor.config.key import SECRET_VARIABLE, Key, describe_missing, load_key, load_secret
from ingestor.config.yaml_file import read_yaml
from ingestor.errors import ConfigError
from ingestor.layout import Layout, read_holder
from ingestor.operations.alerts import load_receivers
from ingestor.operations.preflight import Rest, VenueUnreachable, find_unknown, measure_disk
from ingestor.store import require_folder
from ingestor.texts import escape, format_size

_LOWER_NAMED, _UNKNOWN_NAMED = 5, 8
_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}
_CLOCK_S = 2.0
_SLOW_S = 0.25


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    verdict: Literal["ok", "warning", "error"]
    subject: str
    text: str
    """The result; for a warning or an error also what to do."""


@click.command(epilog=example("ingestor check --online"))
@reading_options
@json_option
@click.option("--online", is_flag=True, help="Ask the venue and try the machine, too; opens no stream.")
@click.option("--all", "all_settings", is_flag=True, help="Show every setting, not only those that are no default.")
@click.option("--schema", is_flag=True, help="Print the settings' JSON Schema for editors, and check nothing.")
def check(
    config: Path | None,
    root: Path | None,
    symbols: tuple[str, ...] | None,
    as_json: bool,
    online: bool,
    all_settings: bool,
    schema: bool,
) -> None:
    """Check settings, key and disk, and print what would run, without the key, and each finding. Exit 2 on any error.

    With --online also: the key and the symbols at the venue's REST API, the clock, the disk's speed, permissions, and
    the service.
    """
    if schema:
        click.echo(format_json(Settings.model_json_schema()))
        return
    directory = config_dir(config)
    settings, findings = None, []
    try:
        found = settings_from(config, Flags(symbols=symbols, root=root))
        require_folder(found.storage.root)
    except ConfigError as error:
        findings += [Finding("error", "settings", line) for line in str(error).splitlines()]
    else:
        settings = found
        source = config or (DEFAULT_PATH if DEFAULT_PATH.exists() else "the defaults")
        count = len(settings.tickers)
        findings.append(Finding("ok", "settings", f"{source}: {count} ticker{'s' if count != 1 else ''}"))
    findings += find_key(directory, settings.feed if settings else _guess_feed(config))
    if settings:
        for find in (find_oddities, find_sink_faults, find_alert_faults, find_disk_faults):
            findings += find(settings, directory)
        if online:
            findings += find_online(settings, load_key(directory) if settings.feed.type == "finnhub" else None)
    if as_json:
        resolved = settings.model_dump(mode="json") if settings else None
        click.echo(format_json({"findings": [asdict(finding) for finding in findings], "settings": resolved}))
    else:
        if settings is not None:
            _print_settings(settings, every=all_settings)
        # Last, where they stay in sight, and in a terminal with colour.
        coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        for finding in findings:
            text = wrap_text(f"{finding.verdict:<7}  {finding.subject:<10}  ", escape(finding.text))
            verdict = click.style(finding.verdict, _COLOURS[finding.verdict], bold=finding.verdict != "ok")
            click.echo(verdict + text[len(finding.verdict) :], color=coloured)
    sys.exit(2 if any(finding.verdict == "error" for finding in findings) else 0)


def _print_settings(settings: Settings, *, every: bool) -> None:
    """What would run: `every` setting, or those that nobody has without asking for them."""
    defaults = dict(_flat(Settings(tickers=("-",)).model_dump(mode="json")))
    rows = list(_flat(settings.model_dump(mode="json")))
    shown = [(name, value) for name, value in rows if every or defaults.get(name) != value]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        click.echo(wrap_text(f"{name:<{width}}  ", escape(value)))
    if len(shown) < len(rows):
        click.echo(f"\n{len(rows) - len(shown)} more settings have their defaults: --all shows them")
    click.echo()


def _guess_feed(config: Path | None) -> FeedSettings | None:
    """The feed of settings that hold a mistake, where it is Finnhub: of another venue nothing is known of its key."""
    try:
        feed = read_yaml(config or DEFAULT_PATH).data.get("feed")
    except ConfigError:
        return FinnhubSettings()
    other = isinstance(feed, dict) and feed.get("type", "finnhub") != "finnhub"
    return None if other else FinnhubSettings()


def find_key(directory: Path, feed: FeedSettings | None) -> list[Finding]:
    """The key's source, or that there is none; nothing if the venue needs none."""
    if feed is None or not feed.needs_key:
        return []
    variable = feed.key_variable
    try:
        key = load_key(directory, variable=variable)
    except ConfigError as error:
        return [Finding("error", "key", str(error))]
    if key is None:
        return [Finding("error", "key", describe_missing("none found", variable, directory))]
    found = [Finding("ok", "key", f"from {key.source}")]
    if feed.needs_secret and not load_secret(SECRET_VARIABLE, directory):
        found.append(Finding("error", "secret", describe_missing("none found", SECRET_VARIABLE, directory)))
    return [*found, Finding("warning", "key", key.warning)] if key.warning else found


def find_oddities(settings: Settings, _directory: Path) -> Iterator[Finding]:
    """Settings that are allowed, but likely to be mistakes."""
    if settings.shard:
        ours = f"{len(settings.symbols)} of {len(settings.tickers)} tickers: {', '.join(settings.symbols)}"
        yield Finding("ok", "shard", f"{settings.shard.index} of {settings.shard.count} records {ours}")
    if settings.groups > 1:
        each = f"{settings.feed.symbols_per_connection:,} symbols at most on each"
        twice = ", two for each symbol" if settings.connection.redundant > 1 else ""
        count = settings.groups * settings.connection.redundant
        yield Finding("ok", "venue", f"{len(settings.symbols):,} tickers need {count} connections: {each}{twice}")
    if settings.feed.type == "finnhub" and (count := len(settings.symbols)) > FREE_PLAN_SYMBOLS:
        text = f"{count}: Finnhub's free plan refuses those after {FREE_PLAN_SYMBOLS}; fewer, or a paid plan"
        yield Finding("warning", "tickers", text)
    if settings.feed.type == "finnhub" and (
        lower := [one for one in settings.symbols if ":" not in one and one.upper() != one]
    ):
        named = _name_some(lower, _LOWER_NAMED)
        yield Finding("warning", "tickers", f"{named}: Finnhub's US symbols are upper case: write {lower[0].upper()}")
    yield from find_proxy_faults(settings)
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


def find_proxy_faults(settings: Settings) -> Iterator[Finding]:
    """A proxy that can't be used, or is used or not used, whichever may surprise."""
    try:
        proxy = choose_proxy(settings.feed.url, settings.connection.proxy)
    except ConfigError as error:
        yield Finding("error", "proxy", str(error))
        return
    if proxy is not None:
        yield Finding("ok", "proxy", f"the venue is reached by {proxy}")
    elif (variable := find_proxy_variable(settings.feed.url)) is not None:
        text = f"{variable} is set and not used: the recorder connects directly, unless connection.proxy is auto"
        yield Finding("warning", "proxy", text)


def find_alert_faults(settings: Settings, directory: Path) -> Iterator[Finding]:
    """Receivers of alerts that are missing."""
    try:
        receivers = load_receivers(settings.alerts, directory)
    except ConfigError as error:
        yield Finding("error", "alerts", str(error))
    else:
        if receivers:
            text = f"{len(receivers)} receivers: 'ingestor alerts test' sends them a message"
            yield Finding("ok", "alerts", text)


def find_sink_faults(settings: Settings, directory: Path) -> Iterator[Finding]:
    """Why the destinations can't be opened as they are set."""
    from ingestor.recording import make_sink_process

    try:
        make_sink_process(settings, Layout(settings.storage.root), directory)
    except ConfigError as error:
        yield Finding("error", "sinks", str(error))


def find_disk_faults(settings: Settings, _directory: Path) -> Iterator[Finding]:
    """Whether the recording can be written, and how much room there is for it."""
    root = settings.storage.root.absolute()
    base = next(path for path in (root, *root.parents) if path.exists())
    fault = None
    if not base.is_dir():
        fault = "not a directory"
    elif not os.access(base, os.X_OK):
        fault = "not accessible"
    else:
        try:  # a file that has no name and is gone at once
            with tempfile.TemporaryFile(dir=base) as file:
                file.write(b"x")
        except OSError as error:
            fault = error.strerror or str(error)
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


def _flat(section: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """(`storage.rotate.age`, `15m`) of each setting, as the file would write it."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
            if isinstance(value, list):
                text = ", ".join(one if isinstance(one, str) else json.dumps(one) for one in value)
            yield f"{above}{key}", text


def _name_some(symbols: Sequence[str], count: int) -> str:
    return ", ".join(symbols[:count]) + (f" and {len(symbols) - count} more" if len(symbols) > count else "")


# The preflight


def find_online(settings: Settings, key: Key | None) -> Iterator[Finding]:
    """The whole preflight; of the venue only if there is a key and a REST API."""
    base = find_rest_base(settings.feed.url)
    if key is not None and base is not None:
        yield from ask_venue(Rest(base, key.value.get_secret_value(), settings.connection), settings.tickers)
    elif base is None:
        yield Finding("ok", "venue", f"{settings.feed.url} has no REST API: key, symbols and clock are not checked")
    for find in (find_disk_speed, find_access, find_service):
        yield from find(settings)


def ask_venue(rest: Rest, tickers: Sequence[str]) -> Iterator[Finding]:
    """Key, clock and symbols; one warning where nobody answers."""
    try:
        answer = rest.get("/quote?symbol=AAPL")
        if answer.status in (401, 403):
            text = f"the venue refuses it ({answer.status}): copy it anew from finnhub.io"
            yield Finding("error", "key", text)
        elif answer.status == 429:
            text = "the venue says too many calls (429): somebody else uses it, or wait a minute"
            yield Finding("warning", "key", text)
        elif answer.status != 200:
            yield Finding("warning", "key", f"the venue answered {answer.status}: try again later")
        else:
            yield Finding("ok", "key", "the venue takes it")
        offset_s = answer.clock_offset_s
        if offset_s is None:
            yield Finding("warning", "clock", "the venue gave no time to compare with")
        elif abs(offset_s) > _CLOCK_S:
            by = f"{format_seconds(abs(offset_s))} {'ahead of' if offset_s > 0 else 'behind'}"
            yield Finding("warning", "clock", f"{by} the venue's: turn time synchronisation on")
        else:
            yield Finding("ok", "clock", "within 2 s of the venue's")
        for exchange, unknown in find_unknown(tickers, rest) if answer.status == 200 else ():
            if unknown is None:
                yield Finding("warning", "symbols", f"the venue has no list of {exchange}: not checked")
            elif unknown:
                text = f"unknown to the venue: {_name_some(unknown, _UNKNOWN_NAMED)}: it will send nothing of these"
                yield Finding("error", "symbols", text)
            else:
                yield Finding("ok", "symbols", f"the venue knows those of {exchange}")
    except VenueUnreachable as error:
        yield Finding("warning", "venue", f"not reached ({error}): key, symbols and clock are not checked")


def find_disk_speed(settings: Settings) -> Iterator[Finding]:
    """Time of a sync on the recording's disk."""
    root = settings.storage.root.absolute()
    base = next(path for path in (root, *root.parents) if path.exists())
    try:
        speed = measure_disk(base)
    except OSError as error:
        yield Finding("error", "disk speed", f"{base} can't be written: {error.strerror or error}")
        return
    text = (
        f"a sync takes {format_seconds(speed.usual_s)}, {format_seconds(speed.worst_s)} at worst; "
        f"{format_bytes(speed.bytes_per_s)} per second"
    )
    limit_s = min(_SLOW_S, settings.journal.sync_interval / 2)
    if speed.usual_s > limit_s:
        hint = f"set journal.sync_interval well above {format_seconds(speed.usual_s)}: see the SD card profile"
        yield Finding("warning", "disk speed", f"{text}: {hint}")
    else:
        yield Finding("ok", "disk speed", text)


def find_access(settings: Settings) -> Iterator[Finding]:
    """Permissions of the recording's folder, and the process that records there now."""
    layout = Layout(settings.storage.root.absolute())
    if not layout.root.exists():
        return
    try:
        mode = stat.S_IMODE(layout.root.stat().st_mode)
        holder = read_holder(layout)
    except OSError as error:
        yield Finding("error", "access", f"{layout.root}: {error.strerror}: run as the user who records")
        return
    if mode & 0o002:
        text = f"{layout.root} can be written by everybody ({mode:04o}): chmod o-w {layout.root}"
        yield Finding("warning", "access", text)
    else:
        yield Finding("ok", "access", f"{layout.root} is {mode:04o}; new files are 0640, for owner and group")
    if holder is not None:
        yield Finding("ok", "recorder", f"process {holder.pid} records here now: `ingestor status` says how it is")


def find_service(_settings: Settings) -> Iterator[Finding]:
    """Whether the recorder comes back after a reboot."""
    systemctl = shutil.which("systemctl")
    if systemctl is None or not Path("/run/systemd/system").is_dir():
        yield Finding("ok", "service", "no systemd on this machine: start `ingestor run` by other means")
        return
    asked = [systemctl, "is-enabled", "ingestor"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603  no user's words in it
    state = done.stdout.strip() or "not installed"
    if done.returncode == 0:
        yield Finding("ok", "service", f"ingestor.service is {state}")
    else:
        text = f"ingestor.service is {state}: a reboot ends the recording; see `ingestor install`"
        yield Finding("warning", "service", text)
