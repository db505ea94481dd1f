"""Commands that start a recorder, `ingestor run`, and that ask one for something: `reload`, `stop`, `alerts`."""

import faulthandler
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import structlog

from ingestor import system
from ingestor.cli import options
from ingestor.cli.printing import format_json, format_seconds
from ingestor.config import Flags
from ingestor.config.addresses import choose_proxy, find_proxy_variable
from ingestor.config.key import SECRET_VARIABLE, describe_missing, load_key, load_secret
from ingestor.errors import ConfigError, IngestorError
from ingestor.layout import Holder, Layout, list_segments, read_holder
from ingestor.ledger import list_ledgers, read_new_facts
from ingestor.logs import configure_logs
from ingestor.operations.alerts import load_receivers
from ingestor.operations.systemd import catch_signals
from ingestor.system import require_recorder

_PATIENCE_S = 30.0
_POLL_S = 0.05
_OUTCOMES = ("settings.reloaded", "settings.refused")


@click.command(epilog=options.example("ingestor reload"))
@options.recording_options
@options.json_option
def reload(config: Path | None, root: Path | None, as_json: bool) -> None:
    """Subscribe and unsubscribe what has changed in `tickers`, on the open connection; wait until that is done.

    Prints what was added and dropped, and what else has changed in the file, which needs a restart. A file with a
    mistake is refused with its errors, and the recorder goes on as before: exit 2. The same as SIGHUP to the process,
    which answers only in its log.
    """
    layout = Layout(options.settings_from(config, Flags(root=root)).storage.root.absolute())
    holder = read_holder(layout)
    if holder is None:
        raise IngestorError(f"nothing records into {layout.root}: there is nobody to reload")
    ledgers = list_ledgers(layout)
    if not ledgers or not holder.pid:
        raise IngestorError(f"the recorder of {layout.root} is just starting: it reads these settings anyway")
    told_before = ledgers[-1].stat().st_size
    _send(layout, holder, signal.SIGHUP)
    outcome = _wait_for_outcome(layout, ledgers[-1], told_before, holder.pid)
    if outcome["fact"] == "settings.refused":
        raise ConfigError(outcome["error"])
    if as_json:
        click.echo(format_json({name: outcome[name] for name in ("added", "dropped", "waiting")}))
        return
    click.echo(f"added: {_list(outcome['added'])}; dropped: {_list(outcome['dropped'])}")
    if outcome["waiting"]:
        click.echo(f"changed as well, and in need of a restart: {_list(outcome['waiting'])}")


def _wait_for_outcome(layout: Layout, ledger: Path, offset: int, pid: int) -> dict[str, Any]:
    """The recorder's answer, from its ledger. Raises IngestorError if none comes."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline_s:
        for fact in _facts_since(layout, ledger.name, offset):
            if fact["fact"] in _OUTCOMES:
                return fact
        time.sleep(_POLL_S)
    raise IngestorError(f"process {pid} was asked, and has not answered for {_PATIENCE_S:.0f} s: see its log")


def _list(names: list[str]) -> str:
    return ", ".join(names) or "none"


@click.command(epilog=options.example("ingestor stop --root data"))
@options.recording_options
@click.option(
    "--timeout",
    type=options.DurationType(),
    metavar="DURATION",
    default="2m",
    show_default=True,
    help="How long to wait for it to end.",
)
@options.json_option
def stop(config: Path | None, root: Path | None, timeout: float, as_json: bool) -> None:
    """Ask the recorder of this root to stop in order, wait until it has ended, and say what it left.

    The same as SIGTERM to the process. Exit 0 when it has stopped in order; 1 when it ended in another way, or still
    runs after --timeout; 3 when nothing was recording.
    """
    layout = Layout(options.root_from(config, root).absolute())
    holder = read_holder(layout)
    if holder is None:
        click.echo(f"nothing records into {layout.root}", err=True)
        sys.exit(3)
    if not holder.pid:
        raise IngestorError(f"the recorder of {layout.root} is just starting: ask again")
    ledgers = list_ledgers(layout)
    offset = ledgers[-1].stat().st_size if ledgers else 0
    began_s = time.monotonic()
    _send(layout, holder, signal.SIGTERM)
    if sys.stderr.isatty():
        click.echo(f"asked process {holder.pid} to stop; waiting for it", err=True)
    while (now := read_holder(layout)) and now.pid == holder.pid:
        if time.monotonic() - began_s > timeout:
            raise IngestorError(
                f"process {holder.pid} was asked, and still runs after {format_seconds(timeout)}: it may be sealing; "
                "a second signal leaves that to the next start"
            )
        time.sleep(_POLL_S)
    seconds = time.monotonic() - began_s
    facts = list(_facts_since(layout, ledgers[-1].name if ledgers else "", offset))
    ending = next((fact for fact in facts if fact["fact"] == "run.stopped"), None)
    error = "no word of an end: the next start finds a crash" if ending is None else ending.get("error")
    sealed = sum(sum(fact["dates"].values()) for fact in facts if fact["fact"] == "segment.sealed")
    left = sum(not file.sealed for file in list_segments(layout))
    if as_json:
        told = {"pid": holder.pid, "seconds": round(seconds, 3), "error": error, "rows": sealed, "segments_left": left}
        click.echo(format_json(told))
    else:
        how = "stopped in order" if error is None else f"ended ({error})"
        click.echo(f"process {holder.pid} {how} after {format_seconds(seconds)}; it sealed the last {sealed:,} trades")
        if left:
            click.echo(f"left in journal/, for the next start to seal: {left} segment{'s' * (left > 1)}")
    sys.exit(0 if error is None else 1)


def _facts_since(layout: Layout, ledger: str, offset: int) -> Iterator[dict[str, Any]]:
    """What was recorded behind this offset of this ledger, and in later ones."""
    for path in list_ledgers(layout):
        if path.name >= ledger:  # at midnight another one begins
            yield from read_new_facts(path, offset if path.name == ledger else 0)[0]


def _send(layout: Layout, holder: Holder, number: signal.Signals) -> None:
    """Signal the recorder of this root. Raises IngestorError where that is not for this user, or from here, to do."""
    elsewhere = f"process {holder.pid} runs elsewhere, such as in a container: ask there"
    try:
        # A lock is seen across containers and machines, a pid is not: signal no process that doesn't have the lock.
        if system.FD_PATHS and _has_open(holder.pid, layout.lock) is False:
            raise IngestorError(elsewhere)
        os.kill(holder.pid, number)
    except PermissionError:
        raise IngestorError(f"process {holder.pid} belongs to another user: become that user, or root") from None
    except ProcessLookupError:
        raise IngestorError(elsewhere) from None


def _has_open(pid: int, path: Path) -> bool | None:
    """Whether this process has this file open; None where that can't be seen: there is no such process, or it may be
    signalled and not looked into, as that of a service from its `ExecReload=` (`PrivateUsers=`, `ProtectProc=`).
    """
    try:
        opened = [one.stat() for one in Path(f"/proc/{pid}/fd").iterdir() if one.exists()]
    except (FileNotFoundError, PermissionError):
        return None
    return any(os.path.samestat(one, path.stat()) for one in opened)


@click.command(epilog=options.example("ingestor alerts test"))
@click.argument("what", type=click.Choice(["test", "failed"]))
@options.config_option
def alerts(config: Path | None, what: str) -> None:
    """Send a message to each receiver of alerts (ALERT_URLS): exit 0 if all took it.

    `test` says that alerts arrive. `failed` says that the recorder has ended, for `OnFailure=` of systemd.
    The recorder need not run. Receivers are named by their number and kind: their addresses hold secrets.
    """
    from ingestor.config.sections import AlertSettings
    from ingestor.operations.alerts import load_receivers, send

    settings = options.settings_from(config, Flags())
    receivers = load_receivers(settings.alerts or AlertSettings(), options.config_dir(config))
    texts = {"test": "a test: alerts arrive here", "failed": "the recorder has failed: see its log"}
    text = f"{socket.gethostname()}: {texts[what]}"
    failed = 0
    for number, url in enumerate(receivers, 1):
        taken = send(url, text)
        failed += not taken
        click.echo(f"receiver {number} ({url.partition('://')[0]}): {'sent' if taken else 'failed'}")
    sys.exit(1 if failed else 0)


log = structlog.get_logger()


@click.command(epilog=options.example("ingestor run --symbols AAPL,BINANCE:BTCUSDT"))
@options.reading_options
@click.option("--url", metavar="URL", help="Address of the venue. Overrides feed.url.")
def run(config: Path | None, root: Path | None, symbols: tuple[str, ...] | None, url: str | None) -> None:
    """Record trades until SIGTERM or SIGINT; a second signal leaves the sealing to the next start. SIGHUP takes a
    changed list of tickers over.

    Prints nothing on stdout; what happens is logged on stderr. Exit 0 after a stop in order, 2 where the settings or
    the directory can't be used, 3 where the venue refuses the key, 4 where rows could not be saved.
    """
    require_recorder()
    source = options.source_from(config, Flags(symbols=symbols, root=root, url=url))
    settings = source.read()
    variable = settings.feed.key_variable
    key = load_key(options.config_dir(config), variable=variable) if settings.feed.needs_key else None
    if key is None and settings.feed.needs_key:
        raise ConfigError(describe_missing("there is no API key", variable, options.config_dir(config)))
    text = key.value.get_secret_value() if key else ""
    secret = load_secret(SECRET_VARIABLE, options.config_dir(config)) or "" if settings.feed.needs_secret else ""
    if settings.feed.needs_secret and not secret:
        raise ConfigError(describe_missing("the login needs a secret", SECRET_VARIABLE, options.config_dir(config)))
    receivers = load_receivers(settings.alerts, options.config_dir(config))
    secrets = list(filter(None, [text, secret, *receivers])) or [""]
    configure_logs(settings.logging.level, settings.logging.format, secrets)
    if key:
        log.info("key.found", source=key.source)
    if key and key.warning:
        log.warning("key.exposed", warning=key.warning)
    if (proxy := choose_proxy(settings.feed.url, settings.connection.proxy)) is not None:
        log.info("proxy.used", proxy=str(proxy))
    elif (unused := find_proxy_variable(settings.feed.url)) is not None:
        log.warning("proxy.unused", variable=unused, hint="`connection.proxy: auto` uses it")
    faulthandler.enable()  # where a watchdog's SIGABRT found each thread: places in the code, no values
    signals = catch_signals()
    from ingestor.daemon import record  # heavy: a mistake in the settings is told first

    record(settings, source, text, signals, secret, receivers)
