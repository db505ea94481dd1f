"""One venue a root: what was recorded of one is not to be mixed with another's."""

from ingestor.errors import ConfigError
from ingestor.layout import Layout
from ingestor.ledger import list_ledgers, read_facts


def check_venue(layout: Layout, feed: str, venue: str) -> None:
    """Raises ConfigError where the newest run of this root recorded another venue.

    `venue` tells those apart that speak one language; it is empty where a language is one venue's. Runs before this
    was written down told the feed alone.
    """
    starts = (next(read_facts(path), {}) for path in reversed(list_ledgers(layout)))
    started = next((fact for fact in starts if fact.get("fact") == "run.started"), {})
    if started.get("feed", feed) != feed or started.get("venue", venue) != venue:
        before = started.get("venue") or started.get("feed")
        raise ConfigError(
            f"{layout.root} holds the trades of {before}, and this is {venue or feed}: give each venue a root of its "
            "own (storage.root); where the venue moved, keep its old name (feed.name of the json feed)"
        )
