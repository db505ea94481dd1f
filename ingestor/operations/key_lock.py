"""Locks an API key for one recorder: Finnhub serves one connection per key, and a second one ends the first.

The lock is a name in the kernel's table of abstract UNIX sockets: it holds machine-wide, whoever the users are and
wherever their files, ends with the process however that ends, and the kernel tells its holder's pid. Another machine or
network namespace doesn't see it: there the session names a shared key by its effect. Only Linux has such names;
elsewhere (macOS, untested) a locked file in /tmp stands for one.
"""

import contextlib
import hashlib
import os
import pwd
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ingestor.errors import KeyInUse
from ingestor.layout import try_lock

_CREDENTIALS = struct.Struct("3i")


@contextlib.contextmanager
def locked_key(key: str, url: str) -> Iterator[None]:
    """Hold this key at the venue of this address; an empty one is nobody's. Raises KeyInUse naming who has it."""
    if not key:
        yield
        return
    # Everybody can read the name in /proc/net/unix: it costs as much to turn back into the key as a password's hash.
    venue = urlsplit(url).netloc.lower().encode()
    digest = hashlib.scrypt(key.encode(), salt=b"finnhub-ingestor " + venue, n=1 << 14, r=8, p=1, dklen=16)
    name = b"\0finnhub-ingestor-key-" + digest.hex().encode()
    if sys.platform != "linux":
        with locked_file(Path("/tmp", name[1:].decode())):  # noqa: S108  the one place that all users share
            yield
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as lock:
        try:
            lock.bind(name)
        except OSError:
            raise KeyInUse(
                f"{_name_holder(name)} on this machine records with this API key, and a venue serves one connection "
                "per key: stop that one, give it these symbols, or use another key"
            ) from None
        lock.listen(1)
        yield


@contextlib.contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Hold this file as the key's lock; it stays. Raises KeyInUse, OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        if not try_lock(fd):
            raise KeyInUse(
                "another process on this machine records with this API key, and a venue serves one connection per key: "
                "stop that one, give it these symbols, or use another key"
            )
        yield
    finally:
        os.close(fd)


def _name_holder(name: bytes) -> str:
    """`process 4711 of user bob`, as the kernel knows it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.settimeout(0.5)
            probe.connect(name)
            told = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:  # it ends just now, or many ask
            return "another process"
    pid, uid, _ = _CREDENTIALS.unpack(told)
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return f"process {pid} of user {user}"
