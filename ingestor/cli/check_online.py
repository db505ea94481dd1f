"""What `ingestor check --online` looks at: the venue's REST API, the clock, the disk, permissions, the service."""

import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ingestor.capture.holidays import find_rest_base
from ingestor.cli.printing import format_bytes, format_seconds
from ingestor.config import Settings
from ingestor.config.key import Key
from ingestor.layout import Layout, read_holder
from ingestor.operations.online import Answer, Rest, VenueUnreachable, find_unknown, measure_disk

_CLOCK_S = 2.0
_SLOW_S = 0.25
_NAMED = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    verdict: Literal["ok", "warning", "error"]
    subject: str
    text: str
    """What was found; for a warning or an error also what to do."""


def find_online(settings: Settings, key: Key | None) -> Iterator[Finding]:
    """All of it; the venue only where there is a key, and an API to ask."""
    base = find_rest_base(settings.feed.url)
    if key is not None and base is not None:
        yield from ask_venue(Rest(base, key.value.get_secret_value(), settings.connection.ca_file), settings.tickers)
    elif base is None:
        yield Finding("ok", "venue", f"{settings.feed.url} has no REST API: key, symbols and clock are not checked")
    yield from _try_disk(settings)
    yield from _look_at_permissions(Layout(settings.storage.root.absolute()))
    yield from _look_at_service()


def ask_venue(rest: Rest, tickers: Sequence[str]) -> Iterator[Finding]:
    """Key, clock and symbols; one warning where nobody answers."""
    try:
        answer = rest.get("/quote?symbol=AAPL")
        yield _judge_key(answer)
        yield _judge_clock(answer.clock_offset_s)
        if answer.status == 200:
            for exchange, unknown in find_unknown(tickers, rest):
                yield _judge_symbols(exchange, unknown)
    except VenueUnreachable as error:
        yield Finding("warning", "venue", f"not reached ({error}): key, symbols and clock are not checked")


def _judge_key(answer: Answer) -> Finding:
    if answer.status in (401, 403):
        return Finding("error", "key", f"the venue refuses it ({answer.status}): copy it anew from finnhub.io")
    if answer.status == 429:
        return Finding("warning", "key", "the venue says too many calls (429): somebody else uses it, or wait a minute")
    if answer.status != 200:
        return Finding("warning", "key", f"the venue answered {answer.status}: try again later")
    return Finding("ok", "key", "the venue takes it")


def _judge_clock(offset_s: float | None) -> Finding:
    if offset_s is None:
        return Finding("warning", "clock", "the venue gave no time to compare with")
    if abs(offset_s) > _CLOCK_S:
        side = "ahead of" if offset_s > 0 else "behind"
        return Finding(
            "warning", "clock", f"{format_seconds(abs(offset_s))} {side} the venue's: turn time synchronisation on"
        )
    return Finding("ok", "clock", "within 2 s of the venue's")


def _judge_symbols(exchange: str, unknown: list[str] | None) -> Finding:
    if unknown is None:
        return Finding("warning", "symbols", f"the venue has no list of {exchange}: not checked")
    if unknown:
        named = ", ".join(unknown[:_NAMED]) + (f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else "")
        return Finding("error", "symbols", f"unknown to the venue: {named}: it will send nothing of these")
    return Finding("ok", "symbols", f"the venue knows those of {exchange}")


def _try_disk(settings: Settings) -> Iterator[Finding]:
    root = settings.storage.root.absolute()
    base = next(path for path in (root, *root.parents) if path.exists())
    try:
        speed = measure_disk(base)
    except OSError as error:
        yield Finding("error", "disk speed", f"{base} can't be written: {error.strerror or error}")
        return
    text = (
        f"a sync takes {format_seconds(speed.usual_s)}, {format_seconds(speed.worst_s)} at worst; "
        f"{format_bytes(speed.bytes_per_s)} a second"
    )
    limit_s = min(_SLOW_S, settings.journal.sync_interval / 2)
    if speed.usual_s > limit_s:
        hint = f"set journal.sync_interval well above {format_seconds(speed.usual_s)}: see the SD card profile"
        yield Finding("warning", "disk speed", f"{text}: {hint}")
    else:
        yield Finding("ok", "disk speed", text)


def _look_at_permissions(layout: Layout) -> Iterator[Finding]:
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


def _look_at_service() -> Iterator[Finding]:
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
