"""`ingestor init`: the files to start from, written once and never over anything; and where the package has them."""

import os
import sys
from importlib.resources import files
from pathlib import Path

import click

from ingestor.cli.options import config_option, example
from ingestor.config import DEFAULT_PATH
from ingestor.errors import ConfigError

_EXAMPLES = ("finnhub", "binance", "json", "shards")
_KEYLESS = ("binance", "json")


@click.command(epilog=example("ingestor init", "ingestor init --from binance"))
@click.option(
    "--from",
    "name",
    type=click.Choice(_EXAMPLES),
    default=_EXAMPLES[0],
    show_default=True,
    help="The example to start from: a venue, Coinbase by a mapping of JSON fields, or one of several recorders.",
)
@config_option
def init(config: Path | None, name: str) -> None:
    """Write the settings and, where the venue asks for a key, .env beside them. What exists is kept.

    Prints what it wrote, and what to do next. Exit 2 if there was nothing to write.
    """
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
    if not any(wrote):
        sys.exit(2)
    given = "" if path == DEFAULT_PATH else f" --config {path}"
    steps += [f"ingestor check{given}", f"ingestor run{given}"]
    numbered = "".join(f"\n  {number}. {step}" for number, step in enumerate(steps, 1))
    click.echo(f"\nNext:{numbered}{hint}")


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


def read_packaged(packaged: str, in_checkout: str) -> bytes:
    """A file that comes with the package: as the wheel carries it (`templates/…`), or as the source tree has it."""
    resource = files("ingestor.cli").joinpath("templates", packaged)
    if resource.is_file():
        return resource.read_bytes()
    return (Path(__file__).parents[2] / in_checkout).read_bytes()
