"""Files that come with the package: in the wheel beside the commands, in a checkout where people look for them."""

from importlib.resources import files
from pathlib import Path


def read_packaged(packaged: str, in_checkout: str) -> bytes:
    """The file as the wheel carries it (`templates/…`), or as the source tree has it."""
    resource = files("ingestor.cli").joinpath("templates", packaged)
    if resource.is_file():
        return resource.read_bytes()
    return (Path(__file__).parents[2] / in_checkout).read_bytes()
