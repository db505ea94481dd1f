"""Remembers, as salted hashes, which API keys the venue has accepted for this root.

A 401 for such a key is a venue's bad minute (a bot filter after a reboot), not a typing mistake, and must not end a
recording.
"""

import hashlib
import json
import secrets
from typing import Annotated

import structlog
from pydantic import BaseModel, Field

from ingestor.errors import DamagedFile
from ingestor.layout import Layout, read_small, write_whole

log = structlog.get_logger()


class _Stored(BaseModel):
    """`.accepted-keys.json`: hexadecimal."""

    salt: Annotated[str, Field(pattern=r"^([0-9a-fA-F]{2}){1,64}$")]
    hashes: list[str]


class KnownKey:
    """One key, and whether this root has seen it accepted."""

    def __init__(self, layout: Layout, key: str) -> None:
        """Where there is a memory that can't be read, that is told, and a new one begun."""
        self._layout = layout
        self._unwritten = False
        self._needed = bool(key)
        stored = _Stored(salt=secrets.token_hex(16), hashes=[])
        try:
            stored = read_small(layout.accepted_keys, _Stored.model_validate_json)
        except FileNotFoundError:
            pass
        except DamagedFile as error:
            log.warning("keys.forgotten", error=str(error))
        self._salt = bytes.fromhex(stored.salt)
        self._hashes = set(stored.hashes)
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
