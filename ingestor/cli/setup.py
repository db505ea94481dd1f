"""Commands that set up: `ingestor init` (settings to start from) and `ingestor install` (the systemd service)."""

import difflib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

import click

from ingestor.cli.options import config_dir, config_option, example, settings_from
from ingestor.cli.printing import wrap_text
from ingestor.config import DEFAULT_PATH, Flags, load_settings
from ingestor.config.feeds import BINANCE_SYMBOLS, BinanceSettings, FinnhubSettings
from ingestor.config.key import load_key
from ingestor.errors import ConfigError, IngestorError
from ingestor.texts import is_visible

PREFIX = "/opt/finnhub-ingestor"
"""The virtual environment in the units, unless another one installs them."""
_EXAMPLES = ("finnhub", "binance", "json", "shards")
_KEYLESS = ("binance", "json")
ETC = Path("/etc/finnhub-ingestor")
_HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108  places that the sandbox hides
_FINNHUB = "Finnhub: US stocks, forex and crypto. Key: FINNHUB_API_KEY (free at https://finnhub.io)."
_OWN_FEEDS = {"finnhub": "ingestor.yaml", "binance": "binance.yaml"}
"""Venues with a language of their own; all others are files in `config/venues/`."""
_KEY_TEXT = "# The key that the venue gave you. Keep this file to yourself: chmod 600 .env\nFEED_API_KEY=\n"
_SECRET_TEXT = "FEED_API_SECRET=\n"  # noqa: S105  its name


@click.command(epilog=example("ingestor init", "ingestor init --venue kraken", "ingestor init --list"))
@click.option(
    "--from",
    "name",
    type=click.Choice(_EXAMPLES),
    default=_EXAMPLES[0],
    show_default=True,
    help="The example to start from: a venue, Coinbase by a mapping of JSON fields, or one of several recorders.",
)
@click.option("--venue", metavar="NAME", help="The venue to record: its settings, ready to run. See --list.")
@click.option("--list", "listed", is_flag=True, help="Print the venues, and write nothing.")
@config_option
def init(config: Path | None, name: str, venue: str | None, listed: bool) -> None:
    """Write the settings and, where the venue asks for a key, .env beside them. What exists is kept.

    Prints what it wrote, and what to do next. Exit 2 if there was nothing to write.
    """
    if listed:
        width = max(map(len, list_venues()))
        click.echo(f"{'venue':<{width}}  what")
        for one in list_venues():  # by the first sentence of its settings
            text = _FINNHUB if one == "finnhub" else read_venue(one).decode().splitlines()[0].removeprefix("# ")
            click.echo(wrap_text(f"{one:<{width}}  ", text.partition(" `")[0]))
        return
    if venue is not None and venue not in _OWN_FEEDS:  # settings describe it
        path = config or DEFAULT_PATH.with_name(f"{venue}.yaml")
        content = read_venue(venue)
        wrote = [_write_new(path, content.replace(b"FILE", str(path).encode()), 0o640)]
        steps = [f"name your symbols in {path}"]
        if b'"{key}"' in content:
            dotenv = path.parent / ".env"
            secrets = _KEY_TEXT + (_SECRET_TEXT if b'"{secret}"' in content else "")
            wrote.append(_write_new(dotenv, secrets.encode(), 0o600))
            steps.insert(0, f"put {' and '.join(re.findall('FEED_API_[A-Z]+', secrets))} into {dotenv}")
        _say_next(path, steps, wrote)
        return
    name = venue or name
    file = DEFAULT_PATH.name if name == _EXAMPLES[0] else f"{name}.yaml"
    path = config or DEFAULT_PATH.with_name(file)
    wrote = [_write_new(path, read_packaged(file, f"config/{file}"), 0o640)]
    steps = [f"name your symbols in {path}"]
    hint = ""
    if name not in _KEYLESS:
        hint = "\n\nNo key yet? `ingestor demo` records a simulated venue."
        dotenv = path.parent / ".env"
        wrote.append(_write_new(dotenv, read_packaged("env.example", "config/.env.example"), 0o600))
        steps.insert(0, f"put your key into {dotenv} (free at https://finnhub.io)")
    _say_next(path, steps, wrote, hint)


def _say_next(path: Path, steps: list[str], wrote: list[bool], hint: str = "") -> None:
    """What to do after what was written; exit 2 where that is nothing."""
    if not any(wrote):
        sys.exit(2)
    given = "" if path == DEFAULT_PATH else f" --config {path}"
    steps += [f"ingestor check{given}", f"ingestor run{given}"]
    numbered = "".join(f"\n  {number}. {step}" for number, step in enumerate(steps, 1))
    click.echo(f"\nNext:{numbered}{hint}")


def list_venues() -> list[str]:
    """The names for `--venue`."""
    folder = files("ingestor.cli").joinpath("templates", "venues")
    found = folder if folder.is_dir() else Path(__file__).parents[2] / "config/venues"
    return sorted({*_OWN_FEEDS, *(file.name.removesuffix(".yaml") for file in found.iterdir())})


def read_venue(name: str) -> bytes:
    """The settings for this venue. Raises ConfigError for a name that is none."""
    if name not in list_venues():
        near = difflib.get_close_matches(name.lower(), list_venues(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(list_venues())}"
        raise ConfigError(f"no venue `{name}`: {hint}")
    file = _OWN_FEEDS.get(name, f"venues/{name}.yaml")
    return read_packaged(file, f"config/{file}")


def _write_new(path: Path, content: bytes, mode: int) -> bool:
    """Write the file unless its name exists, even as a dangling link, and say so. Raises ConfigError."""
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        if not path.parent.is_dir():
            raise ConfigError(f"{path.parent} is no directory") from None
        click.echo(f"kept  {path}: it exists")
        return False
    except OSError as error:
        raise ConfigError(f"{path}: can't be written: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    click.echo(f"wrote {path}")
    return True


@click.command(
    epilog=example("ingestor symbols --exchange US --output us.txt", "ingestor symbols --config kraken.yaml '*/USD'")
)
@click.argument("patterns", nargs=-1)
@config_option
@click.option("--exchange", default="US", show_default=True, metavar="NAME", help="Of Finnhub: US, BINANCE, OANDA, …")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a file for `tickers.files`.",
)
def symbols(patterns: tuple[str, ...], config: Path | None, exchange: str, output: Path | None) -> None:
    """Ask the venue of the settings which symbols it has, and print them, one per line; of those only what fits one of
    PATTERNS (`BTC*`).

    Finnhub is asked with the key, the others without. Exit 1 where the venue doesn't answer, 2 where the settings don't
    say where its list is.
    """
    from ingestor.capture.market_calendar import find_rest_base
    from ingestor.operations.preflight import Rest

    settings = settings_from(config, Flags())
    feed = settings.feed
    if isinstance(feed, FinnhubSettings):
        key, base = load_key(config_dir(config)), find_rest_base(feed.url)
        if key is None or base is None:
            raise ConfigError("Finnhub's list needs the key, and `feed.url` to be Finnhub's own")
        known = Rest(base, key.value.get_secret_value(), settings.connection).list_symbols(exchange)
        found = sorted(known or ())
    else:
        from ingestor.feeds.json_frames import RefusedError
        from ingestor.feeds.json_map import read_symbols

        form = BINANCE_SYMBOLS if isinstance(feed, BinanceSettings) else feed.symbol_list
        if form is None:
            raise ConfigError("the settings don't say where this venue lists its symbols: `feed.symbol_list`")
        parts = urlsplit(form.url)
        answer = Rest(f"{parts.scheme}://{parts.netloc}", "", settings.connection).get(
            form.url.partition(parts.netloc)[2]
        )
        if answer.status != 200:
            raise IngestorError(f"the venue answered {answer.status}")
        try:
            found = sorted(read_symbols(answer.body, form))
        except RefusedError:
            raise IngestorError("the venue's list has another form than `feed.symbol_list` says") from None
    if patterns:
        found = [symbol for symbol in found if any(fnmatchcase(symbol, pattern) for pattern in patterns)]
    if not found:
        raise IngestorError("the venue names no symbol that fits")
    text = "".join(f"{symbol}\n" for symbol in found if is_visible(symbol) and "," not in symbol)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        Write(output, text.encode(), 0o640).apply()
    except OSError as error:
        raise IngestorError(f"{output}: can't be written: {error.strerror}") from None
    click.echo(f"wrote {output}: {len(text.splitlines())} symbols")


@dataclass(frozen=True, slots=True)
class Write:
    """A file. `keep`: one that exists is a person's, and stays."""

    path: Path
    content: bytes
    mode: int
    keep: bool = False

    def __str__(self) -> str:
        return f"write {self.path} ({self.mode:04o}{', unless it exists' if self.keep else ''})"

    def apply(self) -> None:
        """Raises OSError."""
        if self.keep and self.path.exists():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        staged = self.path.with_name(f".{self.path.name}.new")
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, self.mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, self.mode)  # whatever the umask, and whatever was left there
            file.write(self.content)
        staged.replace(self.path)


@dataclass(frozen=True, slots=True)
class Run:
    """A command of the system's."""

    command: tuple[str, ...]

    def __str__(self) -> str:
        return f"run   {shlex.join(self.command)}"

    def apply(self) -> None:
        """Raises OSError, subprocess.CalledProcessError."""
        subprocess.run(self.command, check=True)  # noqa: S603  the commands below, no user's words


@click.command(epilog=example("sudo /opt/finnhub-ingestor/bin/ingestor install --dry-run"))
@config_option
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
def install(config: Path | None, dry_run: bool) -> None:
    """Install the systemd service that records with these settings. Needs root; run it from the virtual environment
    that the service is to use, which must not be in anybody's home.

    Settings and key become /etc/finnhub-ingestor/ingestor.yaml and api-key, unless they are there already; the key is
    taken from FINNHUB_API_KEY or from the .env beside --config. Units, user and folders are written anew, which is how
    an upgrade is done, too. Prints each step, and what to do next. Nothing is started.
    """
    if not dry_run and os.geteuid() != 0:
        raise ConfigError("installing needs root: sudo, or --dry-run to see what it would do")
    hidden = f"{sys.prefix}/".startswith(_HIDDEN)
    if not dry_run and hidden:
        raise ConfigError(
            f"{sys.prefix} is hidden from a service: install the package into {PREFIX} "
            f"(python3 -m venv {PREFIX}; {PREFIX}/bin/pip install …), and run {PREFIX}/bin/ingestor install"
        )
    steps = list(_plan(PREFIX if hidden else sys.prefix, config))
    for step in steps:
        click.echo(step)
        if dry_run:
            continue
        try:
            step.apply()
        except OSError as error:
            raise IngestorError(f"{step}: {error.strerror or error}") from None
        except subprocess.CalledProcessError as error:
            raise IngestorError(f"{step}: ended with {error.returncode}") from None
    if not (ETC / "api-key").exists() and not any("api-key" in str(step) for step in steps):
        click.echo(f"\nThe key is missing: write it, alone, to {ETC / 'api-key'} (chmod 600), then:")
    else:
        click.echo("\nNow:")
    click.echo("  systemctl enable --now ingestor\n  systemctl status ingestor")


def _plan(prefix: str, config: Path | None) -> Iterator[Write | Run]:
    """The steps in order; each can be done again. Raises ConfigError."""
    for name in ("ingestor.service", "ingestor@.service"):
        unit = _read(name).replace(PREFIX.encode(), prefix.encode())
        yield Write(Path("/etc/systemd/system") / name, unit, 0o644)
    for folder in ("sysusers.d", "tmpfiles.d"):
        name = "finnhub-ingestor.conf"
        yield Write(Path("/etc") / folder / name, _read(f"{folder}/{name}"), 0o644)
    yield Run(("systemd-sysusers", "finnhub-ingestor.conf"))
    if config is None:
        settings = read_packaged("ingestor.yaml", "config/ingestor.yaml")
    else:
        load_settings(config)  # a mistake in them is told now, not by the service
        settings = config.read_bytes()
    yield Write(ETC / "ingestor.yaml", settings, 0o640, keep=True)
    key = load_key(config_dir(config))
    if key is not None:
        yield Write(ETC / "api-key", key.value.get_secret_value().encode(), 0o600, keep=True)
    yield Run(("systemd-tmpfiles", "--create", "finnhub-ingestor.conf"))
    yield Run(("systemctl", "daemon-reload"))


def _read(name: str) -> bytes:
    return read_packaged(f"systemd/{name}", f"systemd/{name}")


def read_packaged(packaged: str, in_checkout: str) -> bytes:
    """A file that comes with the package: as the wheel carries it (`templates/…`), or as the source tree has it."""
    resource = files("ingestor.cli").joinpath("templates", packaged)
    if resource.is_file():
        return resource.read_bytes()
    return (Path(__file__).parents[2] / in_checkout).read_bytes()
