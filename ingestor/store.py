"""A recording that is elsewhere: a mirror in an object store or a folder, read as if it were a root."""

import errno
import fnmatch
import io
import os
import re
import stat
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import urlencode

from ingestor.errors import ConfigError, IngestorError, NotARecording

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

    _LocalPath = Path
else:
    _LocalPath = type(Path())  # the class of this system's paths; Path itself can't be derived from before 3.12

MIRROR = "_recording"
"""The folder of a mirror with all that is not trades. Readers of plain Parquet pass over a name with such a beginning,
and its files don't end in `.parquet`: a glob of the whole mirror finds trades alone.
"""
_STORE = re.compile(r"([a-z][a-z0-9+.-]+):/+", re.IGNORECASE)
_KEPT_BYTES = 8 << 20
_KEPT_FILES = 8
_IN_MIRROR = ".pq"


def mirrored_name(name: str) -> str:
    """Where a mirror has a file of a root: trades at its top, all else under `_recording`."""
    kind, _, rest = name.partition("/")
    if kind == "trades" and rest:
        return rest
    return f"{MIRROR}/{name.removesuffix('.parquet')}{_IN_MIRROR if name.endswith('.parquet') else ''}"


def name_in_root(key: str) -> str | None:
    """The file of a root that stands here in a mirror, or in a copy of a root; None: it is no part of the recording."""
    if "_delta_log/" in key:
        return None
    if key.startswith("date="):
        return f"trades/{key}"
    if key.startswith(f"{MIRROR}/"):
        name = key.removeprefix(f"{MIRROR}/")
        return f"{name.removesuffix(_IN_MIRROR)}.parquet" if name.endswith(_IN_MIRROR) else name
    return None if key.startswith((".staging/", ".recorded-by")) else key


def join_place(address: str, name: str) -> str:
    """The address of what has this name in a place; its options stay behind it."""
    place, mark, options = address.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{options}" if "://" in address else f"{address}/{name}"


def locate_root(root: str | Path) -> Path:
    """The folder of a recording: on this machine, or at an address (`s3://bucket/path`, `file:///path`); also that of a
    mirror in a local folder. A path that is read from, whatever it is. Raises NotARecording for another address.
    """
    if isinstance(root, StorePath):
        return root
    scheme = _find_scheme(root)
    if scheme is None:
        path = Path(root)
        return Store(str(path)).root if (path / MIRROR).is_dir() else path
    if isinstance(root, Path):  # which leaves one slash of several
        return Store(f"{scheme[1]}:/{'/' * (1 + (scheme[1] == 'file'))}{str(root)[scheme.end() :]}").root
    return Store(root).root


def require_folder(root: Path) -> None:
    """Raises ConfigError where `locate_root` takes this for an address, which no recording is written to."""
    if scheme := _find_scheme(root):  # the rest may hold a password
        hint = "name a folder of this machine; `sinks.object_store` copies it to a store"
        raise ConfigError(f"the root is an address ({scheme[1]}:), and a recording is written to a folder: {hint}")


def _find_scheme(root: str | Path) -> re.Match[str] | None:
    """What an address begins with; None of a folder, be it one with such a name."""
    scheme = _STORE.match(str(root))
    return None if scheme and Path(root).exists() else scheme


def open_place(uri: str) -> "tuple[FileSystem, str]":
    """The file system and the path in it, of an address or of a local folder. Raises OSError."""
    from pyarrow import fs

    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).absolute())
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and uri.startswith("s3://") and "endpoint_override=" not in uri:
        scheme, _, host = endpoint.rstrip("/").rpartition("://")
        options = {"scheme": scheme or "https", "endpoint_override": host}
        if "region=" not in uri:  # else it is asked for at Amazon's
            options["region"] = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        uri = f"{uri}{'&' if '?' in uri else '?'}{urlencode(options)}"
    try:
        files, path = fs.FileSystem.from_uri(uri)
    except ValueError as error:  # a scheme or a parameter that this pyarrow doesn't know
        raise OSError(str(error)) from None
    return files, path.rstrip("/")


class Store:
    """The files of a recording in an object store or a mirror, under the names that they have in a root. Read only.

    What is listed is kept until `forget`, or until a file of it is gone.
    """

    def __init__(self, address: str) -> None:
        """Nothing is listed yet. Raises NotARecording where there can't be a store."""
        scheme = address.partition("://")[0].lower() if "://" in address else ""
        try:
            if scheme not in {"", "s3", "file"}:
                raise OSError(f"no place to read from is at {scheme}://")
            self._files, self._base = open_place(address)
        except OSError as error:
            hint = "a root is a directory, s3://bucket/path or file:///path"
            raise NotARecording(f"{hide_query(address)}: {_first_line(error)}; {hint}") from None
        self.name = self._base if scheme in {"", "file"} else f"{scheme}://{self._base}"
        """Without password and options."""
        self._listed: dict[str, tuple[str, int]] | None = None
        self._folders: dict[str, set[str]] = {}
        self._kept: dict[str, bytes] = {}

    @property
    def root(self) -> "StorePath":
        """The root, as a path."""
        return _path_in(self, "")

    def forget(self) -> None:
        """Look anew at what is there."""
        self._listed = None
        self._kept.clear()

    def settle(self) -> None:
        """List until two listings are the same. One alone may hold neither a file nor what replaces it meanwhile: it
        passes the place of the new one too early, and comes to that of the old one too late.
        """
        before = None
        while before is None or before != self._list():
            before = self._list()
            self.forget()

    def size(self, name: str) -> int | None:
        """The bytes of a file; None where there is none of this name."""
        found = self._list().get(name)
        return None if found is None else found[1]

    def folder(self, name: str) -> set[str]:
        """The names in a folder; none where there is none."""
        self._list()
        return self._folders.get(name, set())

    def key(self, name: str) -> str:
        """Where a file of the root stands here."""
        found = self._list().get(name)
        return name if found is None else found[0]

    def open(self, name: str) -> BinaryIO:
        """A file, to read in any order. Raises FileNotFoundError, OSError."""
        found = self._list().get(name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.name}/{name}")
        key, size = found
        if name in self._kept:
            return io.BytesIO(self._kept[name])
        path = f"{self._base}/{key}"
        try:
            if size > _KEPT_BYTES:
                return cast("BinaryIO", self._files.open_input_file(path))
            with self._files.open_input_stream(path) as stream:
                content = cast("bytes", stream.read())
        except OSError as error:
            if self.is_gone(name):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.name}/{key}") from None
            raise OSError(errno.EIO, _first_line(error), f"{self.name}/{key}") from None
        while len(self._kept) >= _KEPT_FILES:
            del self._kept[next(iter(self._kept))]
        self._kept[name] = content
        return io.BytesIO(content)

    def is_gone(self, name: str) -> bool:
        """Whether a file that was listed is there no more. Raises OSError."""
        from pyarrow import fs

        gone = bool(self._files.get_file_info(f"{self._base}/{self.key(name)}").type == fs.FileType.NotFound)
        if gone:
            self.forget()
        return gone

    def _list(self) -> dict[str, tuple[str, int]]:
        if self._listed is None:
            from pyarrow import fs

            selector = fs.FileSelector(self._base, recursive=True, allow_not_found=True)
            try:
                found = [one for one in self._files.get_file_info(selector) if one.type == fs.FileType.File]
            except OSError as error:
                raise IngestorError(f"{self.name}: can't be listed: {_first_line(error)}") from None
            keys = {one.path.removeprefix(f"{self._base}/"): one.size for one in found}
            shared = sorted({key.partition("/")[0] for key in keys if key.startswith("root=")})
            if shared:
                hint = f"read one, as {self.name}/{shared[0]}, or a list of them"
                raise NotARecording(f"{self.name} is shared by {len(shared)} recorders ({', '.join(shared)}): {hint}")
            self._listed = {name: (key, size) for key, size in keys.items() if (name := name_in_root(key)) is not None}
            self._folders = {}
            for name in self._listed:
                while name:
                    name, _, last = name.rpartition("/")  # noqa: PLW2901  from the file up to the root
                    self._folders.setdefault(name, set()).add(last)
        return self._listed


class StorePath(_LocalPath):
    """A path in a Store, for whoever reads: it has no file on this machine."""

    store: Store
    inner: str
    """From the root on; empty for the root itself."""

    def __str__(self) -> str:
        return f"{self.store.name}/{self.store.key(self.inner)}" if self.inner else self.store.name

    def __fspath__(self) -> str:
        return str(self)

    def __hash__(self) -> int:
        return hash((id(self.store), self.inner))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and (self.store, self.inner) == (other.store, other.inner)

    def __lt__(self, other: object) -> bool:
        return isinstance(other, StorePath) and self.inner.split("/") < other.inner.split("/")

    def __truediv__(self, key: str | os.PathLike[str]) -> "StorePath":
        return _path_in(self.store, f"{self.inner}/{key}".strip("/"))

    @property
    def name(self) -> str:
        return self.inner.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def parent(self) -> "StorePath":
        return _path_in(self.store, self.inner.rpartition("/")[0])

    def with_name(self, name: str) -> "StorePath":
        return self.parent / name

    def absolute(self) -> "StorePath":
        return self

    def relative_to(self, other: Any, *_: Any, **__: Any) -> Path:  # type: ignore[override]
        """Within its root."""
        return Path(self.inner[len(other.inner) :].strip("/"))

    def is_dir(self, **_: Any) -> bool:
        return bool(self.store.folder(self.inner))

    def is_file(self, **_: Any) -> bool:
        return self.store.size(self.inner) is not None

    def is_symlink(self) -> bool:
        return False

    def exists(self, **_: Any) -> bool:
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Generator["StorePath", None, None]:
        """Raises FileNotFoundError where there is no such folder."""
        if not self.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        yield from (self / name for name in sorted(self.store.folder(self.inner)))

    def glob(self, pattern: str, **_: Any) -> Iterator["StorePath"]:  # type: ignore[override]
        """Names in this folder, and after a `/` in those below."""
        first, _slash, rest = pattern.partition("/")
        for name in sorted(self.store.folder(self.inner)):
            if fnmatch.fnmatchcase(name, first):
                yield from (self / name).glob(rest) if rest else [self / name]

    def stat(self, **_: Any) -> os.stat_result:
        size, folder = self.store.size(self.inner), self.is_dir()
        if size is None and not folder:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        mode = stat.S_IFDIR if size is None else stat.S_IFREG
        return os.stat_result((mode | 0o444, 0, 0, 1, 0, 0, size or 0, 0, 0, 0))

    def open(self, mode: str = "r", _buffering: int = -1, **text: Any) -> Any:  # type: ignore[override]
        """To read it; `text` are options of an open text. Raises FileNotFoundError, OSError."""
        if mode not in {"r", "rb"}:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        file = self.store.open(self.inner)
        return file if mode == "rb" else io.TextIOWrapper(file, **text)

    def read_bytes(self) -> bytes:
        with self.store.open(self.inner) as file:
            return file.read()


def _path_in(store: Store, inner: str) -> StorePath:
    path = StorePath(f"/{inner}")
    path.store, path.inner = store, inner
    return path


def list_folder(path: Path) -> list[str]:
    """The names in a folder: `os.listdir`, ten times as fast as `Path.iterdir` for years of dates. Raises OSError."""
    if isinstance(path, StorePath):
        return [one.name for one in path.iterdir()]
    return os.listdir(path)  # noqa: PTH208


def is_there(path: Path) -> bool:
    """Whether anything has this name, be it a link to nothing."""
    return path.exists() if isinstance(path, StorePath) else os.path.lexists(path)


def hide_query(address: str) -> str:
    """An address without what may be secret in it."""
    scheme, mark, rest = address.partition("://")
    return f"{scheme}{mark}{rest.partition('?')[0].rpartition('@')[2]}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
