"""The copy in the bucket answers as the recording did: after ten faults, without its root, and while it is written."""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from harness import Site, Tally, running_venue
from servers import S3Server

from ingestor.cli.main import cli
from ingestor.dataset.trades import read_trades

TEN_FAULTS = ("abort", "close, code: 1000", "reset", "half_frame", "trickle") * 2
QUESTIONS = (
    ("coverage", "--json"),
    ("coverage",),
    ("describe", "--json"),
    ("bars", "1s", "--fill", "--json"),
    ("head", "--json"),
    ("verify", "--json"),
    ("verify",),
)
INF = float("inf")


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    (tmp_path / "s3").mkdir()
    with closing(S3Server(tmp_path / "s3")) as made:
        yield made


def ask(root: str, *question: str) -> str:
    result = CliRunner().invoke(cli, [*question, "--root", root])
    assert result.exit_code == 0, f"{question}: {result.output} {result.exception}"
    return result.stdout


@pytest.mark.long
@pytest.mark.needs("weed")
def test_ten_faults_and_only_the_bucket_is_left(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    faults = tmp_path / "faults.yaml"
    script = [f"- {{connection: {n}, after: 400ms, do: {do}}}\n" for n, do in enumerate(TEN_FAULTS, 1)]
    faults.write_text("".join(script))
    settings = {
        "sinks": {"object_store": {"uri": s3.uri}},
        "storage": {"formats": ["parquet"]},
        "connection": {"silence": "1s", "ping_interval": "500ms", "backoff_max": "200ms"},
    }
    with running_venue(tmp_path, "--rate", "2000", "--faults", str(faults)) as venue:
        site = Site(tmp_path, tmp_path / "data", venue.url, settings=settings)
        with site.running() as recorder:
            recorder.wait_for(lambda: _gaps(recorder.log) >= len(TEN_FAULTS), "ten gaps")
            venue.stop()
            recorder.wait_for_end_of_stream()
            assert recorder.end() == 0
    before = {question: ask(str(site.root), *question) for question in QUESTIONS}
    assert json.loads(before["verify", "--json"])["differences"] == []
    told = json.loads(before["coverage", "--json"])
    assert len(told["gaps"]) >= len(TEN_FAULTS)
    shutil.rmtree(site.root)
    address, _, options = s3.uri.partition("?")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{options.partition('endpoint_override=')[2].partition('&')[0]}")
    assert {question: ask(address, *question) for question in QUESTIONS} == before
    tally.rounds, tally.rows = len(TEN_FAULTS), int(read_trades(address, engine="arrow").num_rows)


def _gaps(log: str) -> int:
    return log.count('"gap.recorded"')
