"""The command line: commands by name, errors as one message and an exit code, flags alike everywhere."""

import contextlib
import importlib
import json
import os
import pty
import re
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import click
import pytest
from click.testing import CliRunner, Result
from recordings import make_sample
from requirements import of_tier

import ingestor
from ingestor.cli.main import COMMANDS, WITH_NUMPY, cli
from ingestor.cli.options import (
    TimeRange,
    config_option,
    parse_time,
    read_span,
    root_from,
    settings_from,
    span_options,
    symbols_option,
)
from ingestor.cli.setup import list_venues
from ingestor.config import Flags
from ingestor.config.addresses import Proxy, choose_proxy, find_proxy_variable, parse_proxy
from ingestor.config.feeds import BinanceSettings
from ingestor.dataset.arguments import find_span
from ingestor.dataset.arguments import parse_time as parse_local_time
from ingestor.errors import ConfigError
from ingestor.layout import Layout

NEW_YORK = ZoneInfo("America/New_York")
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and no key in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("FINNHUB_API_KEY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def start(*arguments: str) -> Done:
    """As a user would, in a process of its own."""
    environ = {**os.environ, "PYTHONPATH": str(Path(ingestor.__file__).parents[1])}
    command = [sys.executable, "-m", "ingestor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ)


# main


def test_help_names_every_command_and_imports_none() -> None:
    program = (
        "import atexit, sys; from ingestor.cli.main import main; atexit.register(lambda: print(*sys.modules)); main()"
    )
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=True)
    for name, (_, line) in COMMANDS.items():
        assert f"  {name}  " in done.stdout
        assert line in done.stdout
    loaded = set(done.stdout.split())
    assert "ingestor.cli.main" in loaded
    assert not loaded & {"pyarrow", "pandas", "pydantic", "structlog", "websockets", "websocket", "yaml"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_draws_may_import_what_it_draws_with(name: str) -> None:
    source = Path(importlib.import_module(COMMANDS[name][0].partition(":")[0]).__file__ or "").read_text()
    draws = re.search(
        r'find_spec\("(rich|pandas|numpy)"\)|^ +(import|from) (rich|pandas|numpy)\b', source, re.MULTILINE
    )
    assert name in WITH_NUMPY or draws is None


@pytest.mark.parametrize(
    ("command", "unused"),
    [
        pytest.param(
            "coverage",
            {"numpy", "pandas", "rich", "pydantic", "yaml", "pyarrow.compute", "pyarrow.dataset"},
            marks=pytest.mark.long,
        ),
        pytest.param(
            "status",
            {"numpy", "pandas", "rich", "pydantic", "yaml", "pyarrow.compute", "pyarrow.dataset"},
            marks=pytest.mark.long,
        ),
        ("head", {"numpy", "pandas", "rich", "pydantic", "yaml", "pyarrow.dataset"}),
        pytest.param("bars 1m", {"numpy", "pandas", "rich", "pydantic", "yaml"}, marks=pytest.mark.long),
    ],
)
def test_a_command_loads_what_it_needs(folder: Path, command: str, unused: set[str]) -> None:
    make_sample(folder / "data")
    program = (
        "import atexit, sys; from ingestor.cli.main import main;"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); main()"
    )
    arguments = [sys.executable, "-c", program, *command.split(), "--root", "data"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == (3 if command == "status" else 0), done.stderr
    assert not set(done.stderr.split()) & unused


def test_version() -> None:
    assert start("--version").stdout == f"ingestor, version {ingestor.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_where_the_table_says(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    assert command.help


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_shows_how_to_call_it(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"]).stdout
    assert re.search(rf"\n  Example:\n(    .+\n)*    .*\bingestor {name}\b", shown)


def test_flags_of_one_name_mean_the_same_everywhere() -> None:
    commands = {name: cli.get_command(click.Context(cli), name) for name in COMMANDS}
    shared = ("--root", "--symbols", "--start", "--end", "--tz", "--json", "--host", "--port")
    for flag in shared:
        told = {
            (option.type.name, option.metavar, option.help)
            for name, command in commands.items()
            for option in (command.params if command else [])
            if isinstance(option, click.Option) and flag in option.opts and (name, flag) != ("dashboard", "--host")
        }
        assert len(told) == 1, flag


def test_an_unknown_command_or_flag_exits_2(folder: Path) -> None:
    for arguments in (["rnu"], ["check", "--nope"], ["check", "--symbols", "A,,B"]):
        done = start(*arguments)
        assert done.returncode == 2
        assert re.fullmatch(r"error: .+\nsee ingestor .*--help\n", done.stderr)


def test_every_line_of_an_error_is_printed_and_nothing_else(folder: Path) -> None:
    (folder / "x").write_text("")
    done = start("init", "--config", "x/ingestor.yaml")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: x is no directory\n")


def test_a_demo_leaves_what_is_there_alone(folder: Path) -> None:
    (folder / "mine").mkdir()
    done = start("demo", "--folder", "mine")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: mine exists: name a new folder with --folder\n"


def test_what_may_not_be_read_is_no_traceback(folder: Path) -> None:
    """As a process without root's privileges, which has been shut out of a recording."""
    Layout(folder / "data").create()
    (folder / "data").chmod(0)
    program = (
        "import os, ingestor.cli.read, ingestor.dataset.trades; from ingestor.cli.main import main;"
        "os.geteuid() or os.setuid(65534); main(['head', '--root', 'data'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    if os.geteuid() == 0:  # the folder can be seen, and what is in it can't
        assert done.returncode == 1
        assert re.fullmatch(r"error: .*data.*: Permission denied: become a user who may, .*\n", done.stderr)
    else:
        assert done.returncode == 2
        assert done.stderr.startswith("error: invalid value for '--root': Path 'data' is not readable\n")


def test_no_secret_in_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINNHUB_API_KEY", "hunter2")
    (folder / "hunter2").write_text("")
    done = start("init", "--config", "hunter2/ingestor.yaml")
    assert done.stderr == "error: *** is no directory\n"


def test_a_reader_that_left_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        command = [sys.executable, "-m", "ingestor", "check", "--schema"]
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"")  # as click has it


@pytest.mark.parametrize(
    ("shell", "told"),
    [
        ("ingestor check --schema > /dev/full", "error: can't write the output: No space left on device\n"),
        pytest.param("ingestor check --schema >&-", "error: can't write the output: Bad .*\n", marks=pytest.mark.long),
        ("ingestor check --schema | head -c 1 > /dev/null", ""),
        ("ingestor head --root data/a-file", "error: .*a-file.*\n"),
        pytest.param("ingestor compact --root data", "error: .*data.*\n", marks=pytest.mark.long),
        pytest.param("ingestor export data/a-file/x.csv --root data", "error: .*\n", marks=pytest.mark.long),
    ],
)
def test_what_the_disk_or_stdout_refuses_is_one_sentence(folder: Path, shell: str, told: str) -> None:
    Layout(folder / "data").create()
    (folder / "data" / "a-file").write_text("")
    (folder / "data" / "staging").rmdir()
    (folder / "data" / "staging").write_text("in the way")
    command = shell.replace("ingestor", f"{sys.executable} -m ingestor", 1)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert re.fullmatch(told, done.stderr)
    assert done.returncode == (0 if "|" in shell else 2 if "head" in shell else 1)


def test_a_terminal_that_knows_few_letters_gets_the_others_escaped(folder: Path) -> None:
    program = "import click, ingestor.cli.main as m; m._run = lambda _: click.echo('\u4e2d \u2014 ok') or 0; m.main([])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\u4e2d \\u2014 ok\n", b"")


# init


def test_init_writes_what_works(folder: Path) -> None:
    done = call("init")
    assert done.exit_code == 0
    assert done.output.startswith("wrote config/ingestor.yaml\nwrote config/.env\n")
    assert "ingestor check\n" in done.output
    assert stat.S_IMODE((folder / "config/.env").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "config").stat().st_mode) & 0o027 == 0
    assert len(settings_from(None, Flags()).tickers) == 4


def test_init_never_overwrites(folder: Path) -> None:
    dotenv = folder / "config/.env"
    dotenv.parent.mkdir()
    dotenv.symlink_to(folder / "elsewhere")
    done = call("init")
    assert done.exit_code == 0
    assert "kept  config/.env: it exists" in done.output
    assert not (folder / "elsewhere").exists()
    written = (folder / "config/ingestor.yaml").read_bytes()
    again = call("init")
    assert again.exit_code == 2
    assert again.output == "kept  config/ingestor.yaml: it exists\nkept  config/.env: it exists\n"
    assert (folder / "config/ingestor.yaml").read_bytes() == written


@pytest.mark.parametrize(("name", "feed"), [("binance", "binance"), ("json", "json"), ("shards", "finnhub")])
def test_init_from_another_example(folder: Path, name: str, feed: str) -> None:
    done = call("init", "--from", name)
    assert done.exit_code == 0
    assert done.output.startswith(f"wrote config/{name}.yaml\n")
    assert f"ingestor run --config config/{name}.yaml\n" in done.output
    assert (folder / "config/.env").exists() == (feed == "finnhub")
    assert settings_from(Path(f"config/{name}.yaml"), Flags()).feed.type == feed
    again = call("init", "--from", name)
    assert again.exit_code == 2
    assert "Next" not in again.output


@pytest.mark.parametrize("name", list_venues())
def test_init_for_a_venue(folder: Path, name: str) -> None:
    done = call("init", "--venue", name)
    path = "config/ingestor.yaml" if name == "finnhub" else f"config/{name}.yaml"
    assert (done.exit_code, done.output.split("\n")[0]) == (0, f"wrote {path}")
    settings = settings_from(Path(path), Flags())
    assert settings.feed.type == (name if name in ("finnhub", "binance") else "json")
    assert (folder / "config/.env").exists() == settings.feed.needs_key
    secrets = (folder / "config/.env").read_text() if settings.feed.needs_key else ""
    assert (f"{settings.feed.key_variable}=" in secrets) == settings.feed.needs_key
    assert ("FEED_API_SECRET=" in secrets) == settings.feed.needs_secret
    assert "FILE" not in Path(path).read_text()
    assert call("init", "--venue", name).exit_code == 2


@pytest.mark.parametrize("name", list_venues())
def test_the_settings_for_a_venue_pass_the_check(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for variable in ("FINNHUB_API_KEY", "FEED_API_KEY", "FEED_API_SECRET"):
        monkeypatch.setenv(variable, "c0ffee")
    call("init", "--venue", name)
    path = next(path for path in (folder / "config").iterdir() if path.suffix == ".yaml")
    done = call("check", "--config", str(path))
    assert done.exit_code == 0, done.output
    assert "c0ffee" not in done.output
    assert call("check", "--json", "--config", str(path)).exit_code == 0


def test_init_names_its_venues(folder: Path) -> None:
    listed = call("init", "--list").output
    assert all(f"\n{name} " in listed for name in list_venues())
    assert list(folder.iterdir()) == []
    done = call("init", "--venue", "craken")
    assert done.exit_code != 0
    assert "did you mean kraken?" in str(done.exception)


def test_init_elsewhere(folder: Path) -> None:
    done = call("init", "--config", "a/b/my.yaml")
    assert done.exit_code == 0
    assert sorted(path.name for path in (folder / "a/b").iterdir()) == [".env", "my.yaml"]
    assert "ingestor run --config a/b/my.yaml" in done.output


# check


def verdicts(done: Result) -> dict[str, str]:
    return {finding["subject"]: finding["verdict"] for finding in json.loads(done.output)["findings"]}


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("BTC-USDT", "BTCUSDT"),
        ("ETH/USDT", "ETHUSDT"),
        ("BTC USDT", "BTCUSDT"),
        ("btcusdt", "BTCUSDT"),
        ("🚀", "BTCUSDT"),
    ],
)
def test_no_symbol_of_binance_is_named(symbol: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"is no symbol of Binance: write {name}"):
        BinanceSettings(type="binance").check_symbols([symbol], 1)


@pytest.mark.parametrize(
    ("url", "environ", "found"),
    [
        ("wss://venue.example", {"HTTPS_PROXY": "http://u:p@proxy:1"}, "HTTPS_PROXY"),
        ("wss://venue.example", {"all_proxy": "socks5://proxy:1"}, "all_proxy"),
        ("wss://venue.example", {"http_proxy": "http://proxy:1"}, None),
        ("ws://venue.example", {"http_proxy": "http://proxy:1"}, "http_proxy"),
        ("wss://venue.example", {"HTTPS_PROXY": ""}, None),
        ("wss://venue.example", {"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "a, .example"}, None),
        ("ws://127.0.0.1:8765", {"HTTP_PROXY": "http://proxy:1"}, None),
    ],
)
def test_the_variable_that_names_a_proxy(url: str, environ: dict[str, str], found: str | None) -> None:
    assert find_proxy_variable(url, environ) == found


@pytest.mark.parametrize(
    ("setting", "environ", "found"),
    [
        ("none", {"HTTPS_PROXY": "http://u:p@proxy:1"}, None),
        ("auto", {"HTTPS_PROXY": "http://u:p%40s@proxy:1"}, Proxy("proxy", 1, "u:p@s")),
        ("auto", {"HTTPS_PROXY": "proxy:3128"}, Proxy("proxy", 3128)),
        ("auto", {"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "venue.example"}, None),
        ("auto", {}, None),
        ("http://[::1]:8080", {"HTTPS_PROXY": "http://other:1"}, Proxy("::1", 8080)),
    ],
)
def test_the_proxy_that_is_chosen(setting: str, environ: dict[str, str], found: Proxy | None) -> None:
    assert choose_proxy("wss://venue.example/?token=x", setting, environ) == found


@pytest.mark.parametrize(
    "text", ["socks5://u:pa55@proxy:1", "https://u:pa55@proxy:1", "http://u:pa55@proxy:port", "http://"]
)
def test_a_proxy_that_cannot_be_used_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(ConfigError, match="HTTPS_PROXY is no address of") as refused:
        choose_proxy("wss://venue.example", "auto", {"HTTPS_PROXY": text})
    assert "pa55" not in str(refused.value)


def test_a_proxy_is_shown_without_its_password_and_told_with_it() -> None:
    proxy = parse_proxy("http://me:p%2Fa@proxy.example:3128/")
    assert f"{proxy} {proxy!r}" == "proxy.example:3128 Proxy(host='proxy.example', port=3128)"
    assert proxy.url == "http://me:p%2Fa@proxy.example:3128"


def test_a_password_of_a_proxy_has_no_place_in_the_settings(folder: Path) -> None:
    (folder / "my.yaml").write_text("tickers: [A]\nconnection: {proxy: http://u:pa55@proxy:1}\n")
    done = call("check", "--config", "my.yaml")
    assert "holds credentials: write `auto`" in done.output
    assert "pa55" not in done.output


def test_check_names_lower_case_and_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:pa55@proxy:3128")
    done = call("check", "--symbols", "aapl,MSFT,BINANCE:BTCUSDT")
    assert "aapl: Finnhub's US symbols are upper case: write AAPL" in done.output
    assert "HTTPS_PROXY is set and not used" in done.output
    assert "pa55" not in done.output


def test_check_says_what_would_run_and_never_the_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINNHUB_API_KEY", "hunter2")
    (folder / "my.yaml").write_text("tickers: [ON, AAPL]\nstorage: {min_free: 0B, rotate: {age: 90s}}\n")
    done = call("check", "--config", "my.yaml")
    assert done.exit_code == 0
    rows = [line.split(maxsplit=1) for line in done.output.splitlines() if line]
    assert ["tickers", "ON, AAPL"] in rows
    assert ["storage.rotate.age", "90s"] in rows
    assert "connection.ca_file" not in done.output, "a default"
    assert ["connection.ca_file", "null"] in [
        line.split(maxsplit=1) for line in call("check", "--all", "--config", "my.yaml").output.splitlines()
    ]
    assert "ok       key         from FINNHUB_API_KEY in the environment\n" in done.output
    assert "hunter2" not in done.output
    assert not (folder / "data").exists()


def test_check_names_all_that_is_wrong(folder: Path) -> None:
    (folder / "my.yaml").write_text("tickers: []\nstop_timeout: 1\n")
    done = call("check", "--config", "my.yaml")
    assert done.exit_code == 2
    assert [line.split()[:3] for line in done.output.splitlines()] == [
        ["error", "settings", "my.yaml:1:1:"],
        ["error", "settings", "my.yaml:2:1:"],
        ["error", "key", "none"],
    ]


def in_a_terminal(*arguments: str, **environment: str) -> list[str]:
    """The lines that a command writes on a terminal."""
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "ingestor", *arguments]
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=os.environ | environment) as process:
        os.close(its)
        written = b""
        with (
            os.fdopen(ours, "rb", buffering=0) as terminal,
            contextlib.suppress(OSError),
        ):  # EIO: nobody writes any more
            while piece := terminal.read(65_536):
                written += piece
        process.wait()
    return written.decode().splitlines()


@pytest.mark.long
@pytest.mark.parametrize("colour", [True, False])
def test_in_a_terminal_the_findings_of_check_are_last_fit_and_have_colours(folder: Path, colour: bool) -> None:
    (folder / "my.yaml").write_text(f"tickers: [{', '.join(f'S{at}' for at in range(60))}]\n")
    environment = {"COLUMNS": "80", "FINNHUB_API_KEY": "your_api_key_here", "TERM": "xterm"}
    lines = in_a_terminal("check", "--config", "my.yaml", **environment, **({} if colour else {"NO_COLOR": "1"}))
    plain = [re.sub(r"\x1b\[\d*m", "", line) for line in lines]
    assert max(len(line) for line in plain if str(folder) not in line) <= 80
    findings = plain[plain.index("", plain.index("") + 1) + 1 :]
    assert findings[0] == "ok       settings    my.yaml: 60 tickers"
    assert {line[:7].strip() for line in findings} == {"ok", "warning", "error", ""}
    assert ("\x1b[31m\x1b[1merror\x1b[0m    key " in "\n".join(lines)) is colour


def test_check_gives_no_advice_about_another_venues_key(folder: Path) -> None:
    address = "wss://ws.example.com/us?api_token=hunter2"
    (folder / "my.yaml").write_text(f"tickers: [A]\nfeed: {{type: json, url: '{address}'}}\n")
    done = call("check", "--config", "my.yaml")
    assert done.exit_code == 2
    assert "FEED_API_KEY" in done.output
    assert "FINNHUB_API_KEY" not in done.output
    assert "finnhub.io" not in done.output


def test_check_without_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINNHUB_API_KEY", "hunter2")
    done = call("check", "--symbols", "AAPL, BINANCE:BTCUSDT", "--root", "there", "--json")
    answer = json.loads(done.output)
    assert answer["settings"]["tickers"] == ["AAPL", "BINANCE:BTCUSDT"]
    assert answer["settings"]["storage"]["root"] == "there"
    assert verdicts(done)["key"] == "ok"


def test_check_without_anything(folder: Path) -> None:
    done = call("check")
    assert done.exit_code == 2
    assert "config/ingestor.yaml: no such file: `ingestor init` writes one" in done.output


def test_check_warns_of_more_symbols_than_the_free_plan_takes(folder: Path) -> None:
    symbols = ",".join(f"S{number}" for number in range(51))
    assert verdicts(call("check", "--symbols", symbols, "--json"))["tickers"] == "warning"
    assert "tickers" not in verdicts(call("check", "--symbols", "S1", "--json"))


@pytest.mark.parametrize(
    ("sinks", "says"),
    [
        ("kafka: {options: {lingr.ms: 5}}", 'sinks.kafka.options: No such configuration property: "lingr.ms"'),
        ("kafka: {options: {batch.size: large}}", 'Invalid value for configuration property "batch.size"'),
        ("kafka: {options: {security.protocol: sasl_ssl, sasl.mechanism: PLAIN}}", "sasl.username and sasl.password"),
        ("kafka: {options: {error_cb: x}}", "error_cb"),
        ("object_store: {}\nstorage: {formats: [csv]}", "add parquet to storage.formats"),
    ],
)
def test_check_finds_options_that_a_destination_refuses(folder: Path, sinks: str, says: str) -> None:
    (folder / "ingestor.yaml").write_text(f"tickers: [A]\nsinks:\n  {sinks}\n")
    done = call("check", "--config", "ingestor.yaml")
    assert done.exit_code == 2
    assert [line for line in done.output.splitlines() if line.startswith("error")][-1].startswith("error    sinks ")
    assert says in done.output


@pytest.mark.parametrize("kafka", ["{coverage_topic: trades.finnhub}", "{topic: coverage.finnhub}"])
def test_check_refuses_one_topic_for_trades_and_coverage(folder: Path, kafka: str) -> None:
    (folder / "ingestor.yaml").write_text(f"tickers: [A]\nsinks:\n  kafka: {kafka}\n")
    done = call("check", "--config", "ingestor.yaml")
    assert done.exit_code == 2
    assert "`sinks.kafka.coverage_topic` is the topic of the trades" in done.output


def test_check_looks_at_the_disk(folder: Path) -> None:
    (folder / "file").write_text("")
    (folder / "my.yaml").write_text("tickers: [A]\nstorage: {min_free: 1024TB}\nconnection: {ca_file: no.pem}\n")
    found = verdicts(call("check", "--config", "my.yaml", "--json"))
    assert (found["root"], found["free space"], found["ca_file"]) == ("ok", "error", "error")
    below_a_file = verdicts(call("check", "--symbols", "A", "--root", "file/data", "--json"))
    assert below_a_file["root"] == "error"


def test_check_warns_of_a_key_that_others_can_read_and_of_one_in_clear(folder: Path) -> None:
    (folder / ".env").write_text("API_KEY=hunter2\n")
    (folder / ".env").chmod(0o640)
    (folder / "my.yaml").write_text("tickers: [A]\nfeed: {url: 'ws://venue', allow_plaintext: true}\n")
    found = verdicts(call("check", "--config", "my.yaml", "--json"))
    assert (found["key"], found["feed"]) == ("warning", "warning")


def test_check_refuses_a_key_unseen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINNHUB_API_KEY", "hunter 2")
    done = call("check", "--symbols", "A", "--json")
    assert verdicts(done)["key"] == "error"
    assert "hunter" not in done.output


def test_check_prints_the_schema() -> None:
    assert json.loads(call("check", "--schema").output)["required"] == ["tickers"]


def test_symbols_that_stand_alone_are_told_their_option() -> None:
    told = "error: got unexpected extra argument (AAPL): symbols are named by --symbols A,B"
    assert start("head", "AAPL").stderr.splitlines()[0] == told
    assert "--symbols" not in start("verify", "AAPL").stderr


@pytest.mark.parametrize(
    ("name", "meant"), [("rum", ": did you mean run?"), ("stats", ": did you mean status?"), ("x", "")]
)
def test_a_command_that_is_none(name: str, meant: str) -> None:
    done = call(name)
    assert done.exit_code == 2
    assert f"No such command '{name}'{meant}" in done.output


@pytest.mark.parametrize("name", [*COMMANDS, ""])
def test_help_fits_eighty_columns(name: str) -> None:
    assert max(map(len, call(*name.split(), "--help").stdout.splitlines())) <= 80


def test_alone_it_shows_its_help() -> None:
    alone, helped = call(), call("--help")
    assert (alone.exit_code, alone.stderr, alone.stdout) == (0, "", helped.stdout)


# options


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-20", "2026-11-20T05:00:00+00:00"),
        ("2026-07-01", "2026-07-01T04:00:00+00:00"),
        ("2026-11-20T09:30", "2026-11-20T14:30:00+00:00"),
        ("2026-11-20 09:30:00.25", "2026-11-20T14:30:00.250000+00:00"),
        ("2026-11-20T09:30Z", "2026-11-20T09:30:00+00:00"),
        ("2026-11-20T09:30+01:00", "2026-11-20T08:30:00+00:00"),
    ],
)
def test_a_time_is_in_its_own_zone_or_in_tz(text: str, expected: str) -> None:
    assert parse_time(text, NEW_YORK, "--start") == datetime.fromisoformat(expected)


@pytest.mark.parametrize("text", ["", "tomorrow", "2026-13-01", "20:75", "24:00:01", "-1", "-1 week", "- 1h", "--1h"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is no time: write 2026-11-20.*15:30, today, yesterday or -1h"):
        parse_time(text, UTC, "--end")


@pytest.mark.parametrize("text", ["0001-01-01T00:00+05:00", "-999999999999d"])
def test_a_time_that_no_calendar_has(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_time(text, UTC, "--end")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", "2026-11-20T02:00:00+00:00"),
        ("today", "2026-11-19T05:00:00+00:00"),  # in New York it is 21:00 of the day before
        ("yesterday", "2026-11-18T05:00:00+00:00"),
        ("15:30", "2026-11-19T20:30:00+00:00"),
        (" 9:05:30.5 ", "2026-11-19T14:05:30.500000+00:00"),
        ("-1h", "2026-11-20T01:00:00+00:00"),
        ("-1.5d", "2026-11-18T14:00:00+00:00"),
    ],
)
def test_a_time_against_the_present(text: str, expected: str) -> None:
    now = datetime(2026, 11, 20, 2, tzinfo=UTC)
    assert parse_local_time(text, NEW_YORK, now) == datetime.fromisoformat(expected)


def test_the_present_is_read_by_commands_and_functions() -> None:
    before = datetime.now(UTC)
    span = read_span("-1h", "now", UTC)
    assert span.start is not None
    assert before <= span.start + timedelta(hours=1) <= datetime.now(UTC)
    assert find_span("yesterday", "today", "America/New_York").end_ms is not None


def test_every_command_that_takes_times_reads_them_alike() -> None:
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        for option in command.params:
            if option.name in ("start", "end"):
                assert option.type is click.STRING, name  # for `read_span`


def test_a_span_is_half_open_and_never_empty() -> None:
    day = datetime(2026, 11, 20, tzinfo=UTC)
    assert read_span("2026-11-20", None, UTC) == TimeRange(day, None)
    assert read_span(None, "2026-11-20", UTC) == TimeRange(None, day)
    with pytest.raises(click.BadParameter, match="must be before --end"):
        read_span("2026-11-20", "2026-11-20", UTC)


def test_the_shared_flags_reach_a_command() -> None:
    @click.command()
    @config_option
    @symbols_option
    @span_options
    def command(**flags: object) -> None:
        click.echo(json.dumps({name: str(value) for name, value in flags.items()}))

    arguments = ["--symbols", "A, B C", "--tz", "America/New_York", "--end", "2026-11-20"]
    flags = json.loads(CliRunner().invoke(command, arguments).output)
    assert flags == {
        "config": "None",
        "symbols": "('A', 'B C')",
        "tz": "America/New_York",
        "start": "None",
        "end": "2026-11-20",
    }
    refused = CliRunner().invoke(command, ["--tz", "Mars/Olympus"])
    assert refused.exit_code == 2
    assert "no time zone 'Mars/Olympus' here" in refused.output


def test_the_root_to_read(folder: Path) -> None:
    assert root_from(None, Path("flag")) == Path("flag")
    assert root_from(None, None) == Path("data")
    (folder / "my.yaml").write_text("tickers: [A]\nstorage: {root: mine}\n")
    assert root_from(Path("my.yaml"), None) == Path("mine")
    with pytest.raises(ConfigError, match="no such file"):
        root_from(Path("no.yaml"), None)


def test_a_file_is_read_under_the_symbols_where_there_is_one(folder: Path) -> None:
    (folder / "config").mkdir()
    (folder / "config/ingestor.yaml").write_text("tickers: [A]\nstorage: {root: mine}\n")
    settings = settings_from(None, Flags(symbols=("B",)))
    assert (settings.tickers, settings.storage.root) == (("B",), Path("mine"))


def test_what_is_logged_goes_to_stderr_in_every_command(tmp_path: Path) -> None:
    """A lock that can't be had is logged by the one who asks for it."""
    program = (
        "import sys, structlog\n"
        "from ingestor.cli import main as cli\n"
        "import ingestor.cli.status as status\n"
        "status.status.callback = lambda **_: structlog.get_logger().warning('told', secret=1)\n"
        "cli.main(['status'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.stdout, "told" in done.stderr) == ("", True), done.stderr


def test_values_are_completed(folder: Path) -> None:
    make_sample(folder / "data")
    symbols = {"AAPL", "BINANCE:BTCUSDT", "MSFT", "OANDA:EUR_USD"}
    expected = {
        "bars 1m --root data --symbols ": symbols,
        "coverage --root data --symbols AAPL,M": {"AAPL,MSFT"},
        "tail --root data --symbols A": {"AAPL"},
        "describe --root nowhere --symbols A": set(),
        "head --tz america/new_y": {"America/New_York"},
    }
    for typed, told in of_tier(list(expected.items()), list(expected.items())[1:2]):
        done = subprocess.run(
            [sys.executable, "-m", "ingestor"], check=True, capture_output=True, text=True, cwd=folder,
            env={**os.environ, "_INGESTOR_COMPLETE": "bash_complete", "COMP_WORDS": f"ingestor {typed}",
                 "COMP_CWORD": str(len(typed.split(" ")))},
        )  # fmt: skip
        assert {line.partition(",")[2] for line in done.stdout.splitlines()} - {""} == told
