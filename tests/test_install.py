"""The installation, as a plan; done for real under a real systemd in tests/scenarios/test_service.py."""

import os
import stat
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ingestor.cli.main import cli
from ingestor.cli.setup import Run, Write

KEY = "c0ffee-not-a-real-key"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["install", *arguments])


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("FINNHUB_API_KEY", raising=False)
    path = tmp_path / "ingestor.yaml"
    path.write_text("tickers: [AAPL]\n")
    return path


def test_a_dry_run_shows_each_step_and_does_none(config: Path) -> None:
    (config.parent / ".env").write_text(f"FINNHUB_API_KEY={KEY}\n")
    (config.parent / ".env").chmod(0o600)
    shown = call("--dry-run", "--config", str(config))
    assert shown.exit_code == 0
    for step in (
        "write /etc/systemd/system/ingestor.service (0644)",
        "write /etc/systemd/system/ingestor@.service (0644)",
        "run   systemd-sysusers finnhub-ingestor.conf",
        "write /etc/finnhub-ingestor/ingestor.yaml (0640, unless it exists)",
        "write /etc/finnhub-ingestor/api-key (0600, unless it exists)",
        "run   systemctl daemon-reload",
        "systemctl enable --now ingestor",
    ):
        assert step in shown.stdout
    assert "The key is missing" not in shown.stdout
    assert KEY not in shown.output
    assert not Path("/etc/finnhub-ingestor").exists()


def test_without_a_key_it_says_where_that_belongs(config: Path) -> None:
    shown = call("--dry-run", "--config", str(config))
    assert "The key is missing: write it, alone, to /etc/finnhub-ingestor/api-key" in shown.stdout


def test_settings_with_a_mistake_are_not_installed(config: Path) -> None:
    config.write_text("tickers: []\n")
    shown = call("--dry-run", "--config", str(config))
    assert shown.exit_code != 0
    assert "write /etc/finnhub-ingestor/ingestor.yaml" not in shown.stdout


def test_without_root_it_says_so(config: Path) -> None:
    if os.geteuid() == 0 and not sys.prefix.startswith(("/root", "/tmp", "/home")):  # noqa: S108  what the sandbox hides
        pytest.skip("this Python could really install")
    refused = call("--config", str(config))
    assert refused.exit_code != 0
    assert not Path("/etc/systemd/system/ingestor.service").exists()


# The steps


def test_a_file_gets_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        Write(tmp_path / "new" / "unit", b"text", 0o644).apply()
    finally:
        os.umask(before)
    path = tmp_path / "new" / "unit"
    assert path.read_bytes() == b"text"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_secret_is_never_readable_by_others_not_even_for_a_moment(tmp_path: Path) -> None:
    leftover = tmp_path / ".api-key.new"
    leftover.write_text("")
    leftover.chmod(0o644)
    Write(tmp_path / "api-key", b"secret", 0o600).apply()
    assert stat.S_IMODE((tmp_path / "api-key").stat().st_mode) == 0o600


def test_what_a_person_wrote_stays_and_what_is_ours_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "ingestor.yaml"
    path.write_text("mine")
    Write(path, b"ours", 0o640, keep=True).apply()
    assert path.read_text() == "mine"
    Write(path, b"ours", 0o640).apply()
    assert path.read_text() == "ours"


def test_a_command_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Run((str(tmp_path / "missing"),)).apply()
