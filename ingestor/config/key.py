"""Secrets, such as the API key: where they are looked for, and how they stay unseen."""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import BaseModel, ConfigDict, SecretStr

from ingestor.errors import ConfigError

SECRET_VARIABLE = "FEED_API_SECRET"  # noqa: S105  its name
"""Where a second secret is looked for, as a password is."""
KEY_BELONGS = "the key belongs into FINNHUB_API_KEY or into .env beside this file, never in here"

_NAMES_SECRET = re.compile(r"\s*(?:export\s+)?([A-Z][A-Z_]*(?:KEY|SECRET))\b")
_PLACEHOLDER = re.compile(
    r"<.*>|\[.*\]|\{.*\}|\$.*|\.{3,}|x{3,}|\*{3,}|change[_ -]?(me|it)|placeholder|to[_ -]?do|none|null"
    r"|(your|my|the|insert|enter|paste|put|replace|add|example|sample|dummy)([_ -].*)?(key|token|here|me)"
    r"|(finnhub[_ -]?)?(api[_ -]?)?(key|token)([_ -]?here)?",
    re.IGNORECASE,
)
"""What examples and templates write where a key belongs."""


class Key(BaseModel):
    """The API key and where it was found (the variable, a `.env` file, `$CREDENTIALS_DIRECTORY`)."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)
    value: SecretStr
    source: str
    """In words for the log; never the key."""
    warning: str | None = None
    """What should be put right about the source."""


def load_key(
    config_dir: Path, environ: Mapping[str, str] = os.environ, variable: str = "FINNHUB_API_KEY"
) -> Key | None:
    """The first of this variable in the environment, in `$CREDENTIALS_DIRECTORY`, in `config_dir/.env`.

    What was given to this process stands above what lies on the disk for all of them. An empty value is none.
    Raises ConfigError, without the key, for a source that can't be read or a key that no venue issues.
    """
    for source, text, warning in _key_candidates(config_dir, environ, variable):
        key = text.strip()
        if len(key) > 1 and key[0] == key[-1] and key[0] in "\"'":
            raise ConfigError(f"the key from {source} is in quotes, which are no part of it: write it without them")
        if _PLACEHOLDER.fullmatch(key):
            raise ConfigError(
                f"the key from {source} is an example, not a key: yours is at https://finnhub.io/dashboard"
            )
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError(f"the key from {source} holds a blank, a control character or a letter outside ASCII")
        if key:
            return Key(value=SecretStr(key), source=source, warning=warning)
    return None


def load_secret(name: str, config_dir: Path, environ: Mapping[str, str] = os.environ) -> str | None:
    """A password: `name` in the environment, in `$CREDENTIALS_DIRECTORY`, or in `config_dir/.env`; None where it is
    nowhere. Raises ConfigError for a source that can't be read.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY")
    found = environ.get(name) or (_read_secret(Path(directory) / name).strip() if directory else "")
    return found or _read_dotenv(config_dir / ".env").get(name) or None


def _key_candidates(
    config_dir: Path, environ: Mapping[str, str], variable: str
) -> Iterator[tuple[str, str, str | None]]:
    """(source, text, warning), the most specific first; nothing is read before it is needed."""
    yield f"{variable} in the environment", environ.get(variable, ""), None
    if directory := environ.get("CREDENTIALS_DIRECTORY"):
        for name in (variable, variable.lower()):
            text = _read_secret(Path(directory) / name)
            # A credential is the service manager's copy of a file beside the settings: that file may be open to others.
            originals = (config_dir / "api-key", *sorted(config_dir.glob("*.key")))
            warning = next(filter(None, map(_open_to_others, originals)), None)
            yield f"{name} in $CREDENTIALS_DIRECTORY", text, warning
    dotenv = config_dir / ".env"
    values = _read_dotenv(dotenv)
    for name in (variable, "API_KEY"):
        yield f"{name} in {dotenv}", values.get(name) or "", _open_to_others(dotenv)


def _read_secret(path: Path) -> str:
    """The file's text, empty where there is no such file."""
    try:
        return _decode(path, path.read_bytes())
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None


def _read_dotenv(path: Path) -> dict[str, str | None]:
    """The file's variables, nothing interpolated; empty where there is no such file. Raises ConfigError, also for a
    secret that is written otherwise than `NAME=value`.
    """
    try:
        text = _decode(path, path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    for line in parse_stream(StringIO(text)):
        if line.error and (named := _NAMES_SECRET.match(line.original.string)):
            raise ConfigError(f"{path}:{line.original.line}: write {named[1]}=…, with `=` and nothing else between")
    return dotenv_values(stream=StringIO(text), interpolate=False)


def describe_missing(what: str, variable: str, config_dir: Path) -> str:
    """What to do where a secret (`there is no API key`) is nowhere."""
    own = config_dir / ".env"
    elsewhere = Path(".env").exists() and not own.exists()
    free = " (free at https://finnhub.io)" if variable == "FINNHUB_API_KEY" else ""
    hint = "; the .env in this folder is not read, only that beside the settings" if elsewhere else ""
    return f"{what}: set {variable}, or write {variable}=… into {own}{free}{hint}"


def _decode(path: Path, content: bytes) -> str:
    """A letter that is no UTF-8 becomes a replacement character, which is refused as not ASCII. Raises ConfigError."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
        raise ConfigError(f"{path} is UTF-16, as PowerShell's `>` writes it: save it as UTF-8")
    return content.decode("utf-8-sig", "replace")


def _open_to_others(path: Path) -> str | None:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None
    return f"{path} is open to other users ({mode:04o}): chmod 600 {path}" if mode & 0o077 else None
