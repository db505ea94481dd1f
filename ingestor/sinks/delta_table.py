"""A Delta table over files that are there: the log says which belong to it, the files stay as they are.

A file is put first and added then; what replaces others is added in the commit that removes them. So whoever reads
through the log sees each row once, at any moment. Each recorder adds and removes its own files alone, and the path is
the key of a file: what is committed a second time changes nothing. A crash between is made good by the next commit,
which is the difference between what shall be in the table and what is.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random

from ingestor.errors import SinkUnavailable
from ingestor.store import hide_query

if TYPE_CHECKING:
    from deltalake import DeltaTable as Opened

LOG = "_delta_log"
_CONFIGURATION: Mapping[str, str | None] = {
    "delta.checkpointInterval": "100",
    "delta.logRetentionDuration": "interval 1 days",  # what is replaced is deleted: there are no older versions to read
    "delta.deletedFileRetentionDuration": "interval 1 hours",
}
_PARTITIONS = {"root": pa.string(), "date": pa.date32()}
_WITH_STATISTICS = ("timestamp", "symbol", "sequence")
_ATTEMPTS = 5
_MILLISECOND = timedelta(milliseconds=1)


class TableFile(NamedTuple):
    """A file that shall be in the table."""

    size: int
    modified_ms: int | None = None
    """Of a file that changes under its name; None: another size tells that it did."""


class DeltaTable:
    """The files of one recorder in a table that others may share."""

    def __init__(self, uri: str, partitions: Mapping[str, str]) -> None:
        """Nothing is read yet. `partitions`: those beside `date`, and this recorder's values of them."""
        self._uri, self._options = _locate(uri)
        self._partitions = dict(partitions)
        self._there: dict[str, TableFile] | None = None
        """What the log has of this recorder's files."""

    def commit(self, files: Mapping[str, TableFile], read_footer: Callable[[str], pq.FileMetaData]) -> int:
        """Make these, by their names in the table's folder (`…date=2026-11-20/…`), the files of this recorder in the
        table, in one commit; how many were added or removed. Raises SinkUnavailable, OSError.
        """
        from deltalake.exceptions import CommitFailedError, DeltaError

        if not files and not self._there and self._there is not None:
            return 0
        # Another recorder has removed files of its own meanwhile: the table is read again, and the same said of it.
        attempts = Retrying(
            retry=retry_if_exception_type(CommitFailedError),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random(0, 0.2),
            before_sleep=self._forget,
            reraise=True,
        )
        try:
            return attempts(self._commit, files, read_footer)
        except (DeltaError, OSError) as error:
            self._there = None
            raise SinkUnavailable(f"{hide_query(self._uri)}: {error}") from error

    def _commit(self, files: Mapping[str, TableFile], read_footer: Callable[[str], pq.FileMetaData]) -> int:
        from deltalake.transaction import AddAction, RemoveAction

        if self._there is None:
            self._there = self._list()
        there = self._there
        new = {
            name: read_footer(name)
            for name, told in files.items()
            if (old := there.get(name)) is None
            or old.size != told.size
            or told.modified_ms not in {None, old.modified_ms}
        }
        gone = there.keys() - files.keys()
        if not new and not gone:
            return 0
        table = self._open(new)  # anew for each commit: one that is kept grows with every commit
        now_ms = time.time_ns() // 1_000_000
        actions: list[AddAction | RemoveAction] = []
        for name, footer in sorted(new.items()):
            told = files[name]
            modified_ms = now_ms if told.modified_ms is None else told.modified_ms
            statistics = json.dumps(_statistics(footer))
            actions.append(AddAction(name, told.size, self._values(name), modified_ms, True, statistics))
        actions += [RemoveAction(name, True, now_ms, there[name].size, self._values(name)) for name in sorted(gone)]
        table.create_write_transaction(actions, "append", table.schema(), [*self._partitions, "date"])
        self._there = dict(files)
        return len(actions)

    def _forget(self, _: RetryCallState) -> None:
        self._there = None

    def _is_made(self) -> bool:
        from deltalake import DeltaTable as Opened

        return bool(Opened.is_deltatable(self._uri, self._options))

    def _list(self) -> dict[str, TableFile]:
        """What the log has of this recorder."""
        from deltalake import DeltaTable as Opened

        if not self._is_made():
            return {}
        found = pa.table(Opened(self._uri, storage_options=self._options).get_add_actions(flatten=True))
        columns = [found[name].to_pylist() for name in ("path", "size_bytes", "modification_time")]
        prefix = "".join(f"{key}={value}/" for key, value in self._partitions.items())
        listed = {unquote(path): TableFile(size, modified) for path, size, modified in zip(*columns, strict=True)}
        return {name: file for name, file in listed.items() if name.startswith(prefix)}

    def _open(self, footers: Mapping[str, pq.FileMetaData]) -> "Opened":
        """The table, made where it is missing, with every column that these files have."""
        from deltalake import DeltaTable as Opened
        from deltalake import Schema

        columns: dict[str, pa.DataType] = {}
        for field in (field for footer in footers.values() for field in footer.schema.to_arrow_schema()):
            # The table has plain texts, and times in microseconds; the files keep their own.
            kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
            columns[field.name] = pa.timestamp("us", tz="UTC") if pa.types.is_timestamp(kind) else kind
        if not self._is_made():
            partitions = {name: _PARTITIONS[name] for name in (*self._partitions, "date")}
            schema = Schema.from_arrow(pa.schema(list({**columns, **partitions}.items())))
            Opened.create(
                self._uri,
                schema,
                mode="ignore",  # another recorder may make it at this moment
                partition_by=list(partitions),
                configuration=_CONFIGURATION,
                storage_options=self._options,
            )
        table = Opened(self._uri, storage_options=self._options)
        known = set(pa.schema(table.schema()).names)
        if missing := {name: kind for name, kind in columns.items() if name not in known}:
            table.alter.add_columns(Schema.from_arrow(pa.schema(list(missing.items()))).fields)
            table = Opened(self._uri, storage_options=self._options)
        return table

    def _values(self, name: str) -> dict[str, str | None]:
        return {**self._partitions, "date": name.rpartition("date=")[2][:10]}


def _statistics(footer: pq.FileMetaData) -> dict[str, Any]:
    """By which an engine passes over files."""
    told: dict[str, Any] = {"numRecords": footer.num_rows, "minValues": {}, "maxValues": {}}
    groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    for index, name in enumerate(footer.schema.names):
        found = [group.column(index).statistics for group in groups]
        if name in _WITH_STATISTICS and found and all(one is not None and one.has_min_max for one in found):
            told["minValues"][name] = _in_json(min(one.min for one in found), math.floor)
            told["maxValues"][name] = _in_json(max(one.max for one in found), math.ceil)
    return told


def _in_json(value: Any, rounded: Callable[[float], int]) -> Any:
    """A bound: times in whole milliseconds, which may not shut out what is in between."""
    if not isinstance(value, datetime):
        return value
    milliseconds = rounded((value - datetime.fromtimestamp(0, UTC)) / _MILLISECOND)
    moment = datetime.fromtimestamp(0, UTC) + milliseconds * _MILLISECOND
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"


def _locate(uri: str) -> tuple[str, dict[str, str]]:
    """The address as delta-rs takes it, and what `open_place` takes from an address and the environment as options."""
    if not uri.startswith("s3://"):
        return uri, {}
    parts = urlsplit(uri)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if "endpoint_override" in query:
        endpoint = f"{query.get('scheme', 'https')}://{query['endpoint_override']}"
    options = {
        "AWS_ACCESS_KEY_ID": unquote(parts.username or ""),
        "AWS_SECRET_ACCESS_KEY": unquote(parts.password or ""),
        "AWS_ENDPOINT_URL": endpoint or "",
        "AWS_REGION": query.get("region") or ("us-east-1" if endpoint and not os.environ.get("AWS_REGION") else ""),
        "AWS_ALLOW_HTTP": "true" if (endpoint or "").startswith("http://") else "",
    }
    place = f"s3://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
    return place, {name: value for name, value in options.items() if value}
