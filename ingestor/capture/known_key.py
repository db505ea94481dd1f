"""Remembers, as salted hashes, which API keys the venue has accepted for this root.

A 401 for such a key is a venue's bad minute (a bot filter after a reboot), not a typing mistake, and must not end a
recording.
"""

import hashlib
import json
import secrets

import structlog

from ingestor.layout import Layout, write_whole

log = structlog.get_logger()


class KnownKey:
    """One key, and whether this root has seen it accepted."""

    def __init__(self, layout: Layout, key: str) -> None:
        """Raises OSError where there is a memory that can't be read."""
        self._layout = layout
        self._unwritten = False
        self._needed = bool(key)
        try:
            stored = json.loads(layout.accepted_keys.read_text("utf-8"))
            self._salt = bytes.fromhex(stored["salt"])
            self._hashes = {str(one) for one in stored["hashes"]}
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # none yet, or a power cut took it: begin anew
            self._salt, self._hashes = secrets.token_bytes(16), set()
        self._hash = hashlib.scrypt(key.encode(), salt=self._salt, n=1 << 14, r=8, p=1).hex()

    @property
    def accepted(self) -> bool:
        """Whether the venue has accepted it before; also where the feed has none, which no venue can refuse."""
        return not self._needed or self._hash in self._hashes

    def remember(self) -> None:
        """The venue has accepted this key. What the disk refuses is written the next time."""
        if self.accepted and not self._unwritten:
            return
        self._hashes.add(self._hash)
        stored = {"salt": self._salt.hex(), "hashes": sorted(self._hashes)}
        try:
            write_whole(self._layout.accepted_keys, json.dumps(stored), self._layout.staging)
        except OSError as error:
            log.error("key.unremembered", error=error.strerror)
            self._unwritten = True
        else:
            self._unwritten = False
