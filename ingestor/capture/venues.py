"""One venue per root: what was recorded of one is not to be mixed with another's."""

from pathlib import Path

from ingestor.errors import ConfigError
from ingestor.history import History


def check_venue(root: Path, history: History, feed: str, venue: str) -> None:
    """Raises ConfigError where the newest run of this root recorded another venue.

    `venue` tells those apart that speak one language; it is empty where a language is one venue's. Runs before this
    was written down told the feed alone.
    """
    if history.feed in {None, feed} and history.venue in {None, venue}:
        return
    raise ConfigError(
        f"{root} holds the trades of {history.venue or history.feed}, and this is {venue or feed}: give each venue a "
        "root of its own (storage.root); where the venue moved, keep its old name (feed.name of the json feed)"
    )
