"""`ingestor init`: the files to start from, written once and never over anything."""

import os
import sys
from pathlib import Path

import click

from ingestor.cli.options import config_option, example
from ingestor.cli.packaged import read_packaged
from ingestor.config import DEFAULT_PATH
from ingestor.errors import ConfigError


@click.command(epilog=example("ingestor init"))
@config_option
def init(config: Path | None) -> None:
    """Write the settings and, beside them, .env for the key. What exists is kept.

    Prints what it wrote, and what to do next. Exit 2 if there was nothing to write.
    """
    path = config or DEFAULT_PATH
    dotenv = path.parent / ".env"
    wrote_settings = _write_new(path, read_packaged("ingestor.yaml", "config/ingestor.yaml"), 0o640)
    wrote_dotenv = _write_new(dotenv, read_packaged("env.example", "config/.env.example"), 0o600)
    for target, wrote in ((path, wrote_settings), (dotenv, wrote_dotenv)):
        click.echo(f"wrote {target}" if wrote else f"kept  {target}: it exists")
    if not (wrote_settings or wrote_dotenv):
        sys.exit(2)
    given = f" --config {config}" if config else ""
    click.echo(f"""
Next:
  1. put your key into {dotenv} (free at https://finnhub.io)
  2. name your symbols in {path}
  3. ingestor check{given}
  4. ingestor run{given}

No key yet? `ingestor demo` records a simulated venue.""")


def _write_new(path: Path, content: bytes, mode: int) -> bool:
    """Writes the file unless its name exists, even as a dangling link; whether it did. Raises ConfigError."""
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        if not path.parent.is_dir():
            raise ConfigError(f"{path.parent} is no directory") from None
        return False
    except OSError as error:
        raise ConfigError(f"{path}: can't be written: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return True
