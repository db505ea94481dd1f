"""Takes over a list of tickers that changes while it records. Other changes are named, and need a restart."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

from ingestor.capture.subscriptions import Division
from ingestor.config import Settings, Source
from ingestor.errors import ConfigError
from ingestor.ledger import Ledger

log = structlog.get_logger()

_LOOK_S = 1.0


class LiveSettings:
    """Takes a new list of tickers over into a session that runs."""

    def __init__(self, source: Source, settings: Settings, division: Division, ledger: Ledger) -> None:
        self._source = source
        self._settings = settings
        self._division = division
        self._ledger = ledger
        self._look_at_s = 0.0
        self._files = source.files()
        self._read_as = self._seen_as = _identify(self._files)

    def file_changed(self, now_s: float) -> bool:
        """Whether a file is another than the one last read, and has been for a second: an editor may be writing it.

        Never, unless `tickers_watch` is set.
        """
        if not self._settings.tickers_watch or now_s < self._look_at_s:
            return False
        self._look_at_s = now_s + _LOOK_S
        before, self._seen_as = self._seen_as, _identify(self._files)
        return self._seen_as is not None and self._seen_as not in (self._read_as, None) and self._seen_as == before

    def reload(self) -> None:
        """Read the settings again. A file with a mistake, or with more tickers than there is room for, changes nothing:
        its errors are logged, the old one stays.
        """
        self._files = self._source.files()
        self._read_as = _identify(self._files)
        try:
            new = self._source.read()
            changed = self._settings.model_copy(update={"tickers": new.tickers})
            self._division.change(changed.symbols)
        except ConfigError as error:
            self._ledger.record("settings.refused", error=str(error))
            log.error("settings.refused", error=str(error), kept="the settings that it runs with")
            return
        # Each setting but the tickers that differs, such as `storage.rotate.age`.
        kept, read = (set(_flatten(one.model_dump(mode="json"), "")) for one in (self._settings, new))
        waiting = sorted({name for name, _ in kept ^ read if name != "tickers"})
        before, after = self._settings.symbols, changed.symbols
        self._settings = changed
        added = [symbol for symbol in after if symbol not in set(before)]
        dropped = [symbol for symbol in before if symbol not in set(after)]
        self._ledger.record("settings.reloaded", added=added, dropped=dropped, waiting=waiting)
        log.info("settings.reloaded", added=added, dropped=dropped)
        if waiting:
            log.warning("settings.waiting", changed=waiting, hint="these need a restart")


def _flatten(section: dict[str, Any], above: str) -> Iterator[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", repr(value)


def _identify(files: list[Path]) -> tuple[tuple[int, int, int], ...] | None:
    """Inode, time and size of each, which change when a file does; None if one isn't there, or there is none."""
    try:
        found = [path.stat() for path in files]
    except OSError:
        return None
    return tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in found) or None
