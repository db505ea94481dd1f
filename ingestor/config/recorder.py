"""Sections of the settings for the recorder itself: its files, its connection, and what it says of itself."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from ingestor.config.types import (
    Duration,
    HostName,
    ListenAddress,
    PathText,
    Section,
    Size,
    Switch,
    holding,
    lasting,
    null_as_none,
)
from ingestor.texts import format_duration


class RotateSettings(Section):
    """When a segment is closed and its files appear; UTC midnight always closes one."""

    age: Annotated[Duration, lasting("1s", "1d")] = Field(default=900.0, description="after this time")
    size: Annotated[Size, holding("4KB", "4GB")] = Field(default=32 << 20, description="or this many bytes of journal")


class StorageSettings(Section):
    """Where recordings go and how they look."""

    root: PathText = Field(default=Path("data"), description="the recording; relative to the working directory")
    formats: tuple[Literal["parquet", "csv"], ...] = Field(default=("parquet",), description="parquet, csv, or both")
    rotate: RotateSettings = RotateSettings()
    csv_gzip: Switch = Field(default=False, description="compress a CSV file once it is complete")
    min_free: Annotated[Size, holding("0B", "1024TB")] = Field(
        default=1 << 30, description="free space to leave on the disk"
    )
    retention: Annotated[Annotated[Duration, lasting("1d", "36500d")] | None, BeforeValidator(null_as_none)] = Field(
        default=None, description="delete days of trades and CSV that are older; null keeps everything"
    )
    rejects_per_day: Annotated[Size, holding("0B", "1024TB")] = Field(
        default=1 << 30,
        description="raw text of refused frames to keep a day; beyond it they are only counted",
    )

    @field_validator("formats")
    @classmethod
    def _each_once(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        if not formats or len(set(formats)) < len(formats):
            raise ValueError("must name parquet, csv, or each once")
        return formats


class JournalSettings(Section):
    """The loss bounds, and how long a backlog is kept."""

    linger: Annotated[Duration, lasting("0s", "10s")] = Field(
        default=0.1, description="how long frames may wait to be journaled together: what `kill -9` can lose"
    )
    sync_interval: Annotated[Duration, lasting("1ms", "5m")] = Field(
        default=1.0,
        description="how often the journal is forced to the disk: what a power cut can lose",
        validate_default=True,
    )
    max_bytes: Annotated[Size, holding("64MB", "1024TB")] = Field(
        default=2 << 30,
        description="what may be kept for sinks that are behind; beyond it the last one loses its place",
    )

    @field_validator("sync_interval")
    @classmethod
    def _no_shorter_than_linger(cls, sync_interval: float, info: ValidationInfo) -> float:
        linger = info.data.get("linger", 0.0)
        if sync_interval < linger:
            raise ValueError(
                f"sync_interval ({format_duration(sync_interval)}) must not be shorter than linger"
                f" ({format_duration(linger)}): there would be nothing new to sync"
            )
        return sync_interval


class ConnectionSettings(Section):
    """One socket's patience."""

    silence: Annotated[Duration, lasting("1s", "1h")] = Field(
        default=150.0,
        description="without any message for this long the connection is dead (Finnhub pings every minute)",
    )
    connect_timeout: Annotated[Duration, lasting("100ms", "5m")] = Field(
        default=15.0, description="for TCP, TLS and handshake"
    )
    ping_interval: Annotated[Duration, lasting("100ms", "1h")] = Field(
        default=20.0, description="between pings of our own", validate_default=True
    )
    backoff_max: Annotated[Duration, lasting("100ms", "1h")] = Field(
        default=60.0, description="the longest wait between two attempts to connect"
    )
    buffer: Annotated[Size, holding("64KB", "16GB")] = Field(
        default=64 << 20,
        description="frames in memory while the disk is slow; when it is full the reader pauses",
    )
    ca_file: Annotated[PathText | None, BeforeValidator(null_as_none)] = Field(
        default=None, description="PEM file of a private certificate authority; null trusts the system's"
    )
    fast_frames: Switch = Field(
        default=True,
        description="scan complete text frames in bulk; false reads each through websocket-client",
    )

    @field_validator("ping_interval")
    @classmethod
    def _within_silence(cls, ping_interval: float, info: ValidationInfo) -> float:
        silence = info.data.get("silence", ping_interval)
        if ping_interval > silence:
            raise ValueError(f"ping_interval must not be longer than silence ({format_duration(silence)})")
        return ping_interval


class HealthSettings(Section):
    """What the recorder tells programs that watch it."""

    listen: ListenAddress = Field(
        default="127.0.0.1:9464",
        description="address of /metrics, /healthz, /readyz and /status; port 0 takes a free one, null turns it off",
    )
    allow_hosts: tuple[HostName, ...] = Field(
        default=(), description="further names under which it may be called, such as recorder.example"
    )


class LoggingSettings(Section):
    """What the recorder says of itself, on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="the least that is worth a line"
    )
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto is console on a terminal, else json"
    )
