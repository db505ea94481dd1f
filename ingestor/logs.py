"""structlog, set up once: facts as lines, and no secret in any of them.

A fact is named `noun.past_participle` (`connection.lost`, `segment.sealed`), with its numbers as fields.
Loggers of libraries come out the same way. Secrets are taken out of a line when it is complete: no field,
nested value or traceback has a way around that.
"""

import io
import json
import logging
import os
import re
import shutil
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import TextIO
from urllib.parse import quote, quote_plus

import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from ingestor.texts import describe_blindness, escape, escape_json

MASK = "***"
SENTENCES = {
    "run.started": "process {pid} records {tickers} tickers into {root}; it goes on if this terminal is closed",
    "key.found": "the API key comes from {source}",
    "health.opened": "ingestor status shows how it is, and so does http://{address}/status",
    "connection.opened": "connected to the venue",
    "connection.lost": "connection lost: {reason}",
    "connection.retried": "{reason}; next attempt in {wait_s} s",
    "connection.retired": "the old connection is closed: the new one has taken over",
    "recording.begun": "first trade: {symbol}. Files: {files}. Watch: {watch}. Stop: Ctrl-C, or {stop}",
    "recording.summarized": "{summary}",
    "recording.progressed": "{trades:,} trades so far, {trades_per_s:,} per second; {ticking} symbols ticking",
    "segment.sealed": "wrote {rows:,} trades to files of {dates}",
    "symbols.divided": "one connection does not take {symbols:,} symbols: there are {groups} groups, each with its own",
    "gap.recorded": "was {blind} for {seconds} s, {who}",
    "symbol.refused": "the venue refused {symbol}: {text}",
    "stop.requested": "stopping: {reason}",
    "conservation.checked": "stopped in order: {account}",
    "client.connected": "client {connection} connected",
    "client.left": "client {connection} left; it was sent {trades:,} trades",
}
"""What a terminal shows of the facts that everybody sees: sentences. Other facts show their fields."""
_OURS = "ingestor"
_KEYS = ("FINNHUB_API_KEY", "FEED_API_KEY", "FEED_API_SECRET", "ALPACA_API_SECRET_KEY")
"""Of the environment: whoever sets up a log without a word of secrets has these taken out."""
_VALUE_MAX = 2000
_LINES_A_MINUTE, _LINES_A_DAY = 100, 10_000
"""Of one kind; more than that in a day, and one per minute."""
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_IN_URL = re.compile(
    r"""(?P<name>\b(?:token|key|api_?key|secret|password)=)[^&\s"'\\<>]+  # a query's value
      | (?P<scheme>\b[a-z][a-z0-9+.-]*://)[^/\s@"']+(?=@)                 # user:password
    """,
    re.IGNORECASE | re.VERBOSE,
)


class Redactor:
    """Takes these secrets out of text, in every form that a log may show, and what a URL calls a token."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms: set[str] = set()
        for secret in filter(None, secrets):  # as it is; percent-encoded, in either case; as JSON and `repr` escape it
            encoded = {quote(secret, safe=""), quote(secret), quote_plus(secret)}
            lower = {re.sub(r"%..", lambda match: match[0].lower(), form) for form in encoded}
            forms |= {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]} | encoded | lower
        self._secrets = re.compile(
            "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)) or r"(?!)"
        )

    def __call__(self, text: str) -> str:
        return _IN_URL.sub(lambda found: f"{found['name'] or found['scheme']}{MASK}", self._secrets.sub(MASK, text))


def configure_logs(
    level: str,
    format: str,  # noqa: A002  as the setting is called
    secrets: Sequence[str],
    stream: TextIO | None = None,
) -> Redactor:
    """Send this process's log to `stream` (stderr) as `console` or `json` lines; `auto` is sentences on a terminal, and
    else `json`.

    `level` is one of `config.LoggingSettings`. Libraries speak from `warning` up (at `debug` from `info`):
    below that they log every frame. An exception that nobody caught, in any thread, becomes a line too.
    Returns what takes the secrets out, for text that doesn't go through the log.
    """
    stream = sys.stderr if stream is None else stream
    redact = Redactor([*secrets, *_keys_in_environment()])
    handler = _RedactedLines(stream, redact)
    handler.setFormatter(_formatter(stream, format))
    root = logging.getLogger()
    for earlier in [each for each in root.handlers if isinstance(each, _RedactedLines)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(logging.INFO if level == "debug" else max(_LEVELS[level], logging.WARNING))
    logging.getLogger(_OURS).setLevel(_LEVELS[level])
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        # One logger for the whole package: the fact's name says where it comes from.
        logger_factory=lambda *_: logging.getLogger(_OURS),
    )
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    return redact


def redactor_in_force() -> Redactor:
    """That of the log, if it is configured; else one that knows the key in the environment."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _RedactedLines):
            return handler.redact
    return Redactor(_keys_in_environment())


def _keys_in_environment() -> list[str]:
    return [os.environ.get(name, "").strip() for name in _KEYS]


def _shared() -> list[Processor]:
    """Processors of our facts and of libraries' records alike."""
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _bound_values,
    ]


def _formatter(stream: TextIO, format: str) -> logging.Formatter:  # noqa: A002  as the setting is called
    terminal = stream.isatty()
    renderer: list[Processor]
    colors = terminal and "NO_COLOR" not in os.environ
    if format == "auto" and terminal:
        renderer = [structlog.processors.format_exc_info, partial(_as_sentence, colors=colors)]
    elif format == "console":
        # A venue's text is no command for the terminal; what else there is shows as `repr`, which escapes by itself.
        renderer = [
            lambda _logger, _method, event: {
                name: escape(value) if isinstance(value, str) else value for name, value in event.items()
            },
            structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=_plain_traceback),
        ]
    else:
        renderer = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(
                lambda event, **_: escape_json(json.dumps(event, ensure_ascii=False, default=str))
            ),
        ]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_shared(), lambda _logger, _method, event: {**event, "library": event["_record"].name}],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
    )


def _as_sentence(_logger: WrappedLogger, _method: str, event: EventDict, *, colors: bool) -> str:
    """`14:30:05 connected to the venue`, in UTC, as wide as the terminal; other facts show their fields."""
    fields = {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in event.items()}
    fields = {name: escape(value) if isinstance(value, str) else value for name, value in fields.items()}
    at, level, fact = str(fields.pop("timestamp"))[11:19], str(fields.pop("level")), str(fields.pop("event"))
    exception = event.get("exception")
    fields.pop("exception", None)
    who = fields.get("symbol") or f"{fields.get('symbols', 'all')} symbols"
    fields |= {"blind": describe_blindness(event.get("cause")), "who": who}
    try:
        text = SENTENCES[fact].format_map(fields)
    except KeyError:
        del fields["blind"], fields["who"]
        hint = fields.pop("hint", None)
        told = ", ".join(f"{name} {value}" for name, value in fields.items())
        text = f"{fact}{f': {told}' if told else ''}{f' ({hint})' if hint else ''}"
    colour = {"warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}.get(level)
    mark = f"{level}: " if colour else ""
    # No word is broken: it may be a path to copy, or a secret to take out.
    line = textwrap.fill(
        f"{at} {mark}{text}", shutil.get_terminal_size().columns, subsequent_indent=" " * (len(at) + 1),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    line = f"{colour}{line}\x1b[0m" if colour and colors else line
    return f"{line}\n{escape(exception, keep=chr(10))}" if isinstance(exception, str) else line


def _plain_traceback(stream: TextIO, exc_info: ExcInfo) -> None:
    """Without local variables, which other formatters print: the key is one somewhere."""
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    stream.write(escape(text.getvalue(), keep="\n"))


def _bound_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A venue's text is as long as it likes."""
    for key, value in event.items():
        if isinstance(value, str) and len(value) > _VALUE_MAX:
            event[key] = f"{value[:_VALUE_MAX]}… ({len(value):,} characters)"
    return event


class LineBudget:
    """Limits the lines of each kind. The clock is an argument, in seconds since 1970."""

    def __init__(self) -> None:
        self._minute = self._day = 0
        self._this_minute: Counter[str] = Counter()
        self._this_day: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()

    def admit(self, kind: str, now: float) -> bool:
        """Whether a line of this kind may be written; else it is counted."""
        if int(now // 86_400) != self._day:
            self._day = int(now // 86_400)
            self._this_day.clear()
        limit = _LINES_A_MINUTE if self._this_day[kind] < _LINES_A_DAY else 1
        if kind != "log.left_out" and self._this_minute[kind] >= limit:
            self._left_out[kind] += 1
            return False
        self._this_minute[kind] += 1
        self._this_day[kind] += 1
        return True

    def take_left_out(self, now: float) -> list[tuple[str, int]]:
        """Take the number of lines left out in the minutes before this one, by kind."""
        if int(now // 60) == self._minute:
            return []
        self._minute = int(now // 60)
        self._this_minute.clear()
        left_out, self._left_out = list(self._left_out.items()), Counter()
        return left_out


class _RedactedLines(logging.StreamHandler[TextIO]):
    """Writes each record as one redacted text."""

    def __init__(self, stream: TextIO, redact: Redactor) -> None:
        super().__init__(stream)
        self.redact = redact
        self._budget = LineBudget()

    def emit(self, record: logging.LogRecord) -> None:
        """Of each kind so many lines per minute, and fewer once a day has brought very many: anybody who can make us
        write one, such as a venue by each of its frames, could fill the disk. What is left out is counted.
        """
        for kind, count in self._budget.take_left_out(record.created):
            structlog.get_logger().warning("log.left_out", kind=kind, lines=count)
        fact = record.msg.get("event") if isinstance(record.msg, dict) else None
        kind = str(fact or record.name)  # of our facts their name, of a library's lines the library's
        if self._budget.admit(kind, record.created):
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return self.redact(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """A record that can't be formatted: logging would print its raw arguments."""
        kind, error, _ = sys.exc_info()
        if isinstance(error, OSError) or self.stream.closed:
            return  # the log's destination is gone or full: nowhere to say so, and the recording goes on
        place = f"{record.pathname}:{record.lineno}"
        self.stream.write(self.redact(f"log.failed at {place}: {kind and kind.__name__}: {error}\n"))


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    structlog.get_logger().critical("process.failed", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if issubclass(args.exc_type, SystemExit):
        return  # a thread that ends itself, as Python has it
    name = args.thread.name if args.thread else None
    error = args.exc_value or args.exc_type()
    structlog.get_logger().critical("thread.failed", thread=name, exc_info=(args.exc_type, error, args.exc_traceback))
