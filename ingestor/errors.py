"""The error tree. An error's class says what happens next, so that no caller has to guess."""


class IngestorError(Exception):
    """Whatever this package raises on purpose. Its text is a sentence for a person, without secrets."""

    exit_code = 1


class ConfigError(IngestorError):
    """The settings, the command line or the place they name can't be used: nothing was started. Exit 2."""

    exit_code = 2


class RootLocked(ConfigError):
    """Another recorder holds this root. Exit 2."""


class KeyInUse(ConfigError):
    """Another recorder on this machine uses this API key. Exit 2."""


class FormatTooNew(ConfigError):
    """The root, a segment or a file was written by a later version than this one. Exit 2."""


class NotARecording(ConfigError):
    """The directory to read holds no recording. Exit 2."""


class DamagedFile(IngestorError):
    """A file of a recording can't be read: its name, and why. Whoever can do without it goes on. Exit 1."""


class CompactionRunning(IngestorError):
    """Another process compacts this root just now: there is nothing to do for a second one. Exit 1."""


class FeedRefused(IngestorError):
    """The venue refused a key that this root has never seen accepted: no retry can help. Exit 3."""

    exit_code = 3


class ConnectionLost(IngestorError):
    """The connection ended or could not be opened: back off, reconnect, record the gap."""


class HandshakeRefused(ConnectionLost):
    """The venue answered the handshake with something other than 101; `status` is its HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Stalled(ConnectionLost):
    """The connection was given up by us: it was open, and nothing useful came."""


class SinkUnavailable(IngestorError):
    """A sink's destination doesn't answer: that sink waits and tries again; nobody else notices."""


class Lagged(IngestorError):
    """A follower stood still for longer than the journal keeps segments: rows between are in the dataset."""


class RootDeleted(IngestorError):
    """The root was deleted while it was being recorded: what comes from now on would be kept nowhere. Exit 1."""


class RowsUnsaved(IngestorError):
    """The process must end with rows that no disk would take. Exit 4, with their count."""

    exit_code = 4


class ConservationViolated(IngestorError):
    """The counts don't add up: a frame, a trade or a row was lost or invented. Exit 1."""
