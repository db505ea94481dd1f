"""The key: where it is found, and that nobody sees it."""

import os
from pathlib import Path

import pytest

from ingestor.config.key import describe_missing, load_key
from ingestor.errors import ConfigError


def test_no_key_anywhere(tmp_path: Path) -> None:
    assert load_key(tmp_path, {}) is None
    (tmp_path / ".env").write_text("FINNHUB_API_KEY=\nAPI_KEY\n")
    assert load_key(tmp_path, {"FINNHUB_API_KEY": " ", "CREDENTIALS_DIRECTORY": str(tmp_path)}) is None


def test_the_most_specific_source_wins(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    environ = {"FINNHUB_API_KEY": "from-environment", "CREDENTIALS_DIRECTORY": str(credentials)}
    (credentials / "finnhub_api_key").write_text("from-credentials\n")
    (tmp_path / ".env").write_text("API_KEY=other\nFINNHUB_API_KEY='from-$HOME-dotenv'\n")
    (tmp_path / ".env").chmod(0o600)
    found = []
    for name in ("FINNHUB_API_KEY", "CREDENTIALS_DIRECTORY", None):
        key = load_key(tmp_path, environ)
        assert key is not None
        found.append((key.value.get_secret_value(), key.source, key.warning))
        environ.pop(name or "", None)
    assert found == [
        ("from-environment", "FINNHUB_API_KEY in the environment", None),
        ("from-credentials", "finnhub_api_key in $CREDENTIALS_DIRECTORY", None),
        ("from-$HOME-dotenv", f"FINNHUB_API_KEY in {tmp_path / '.env'}", None),
    ]


def test_the_dotenv_may_say_api_key(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("API_KEY=c0ffee\n")
    key = load_key(tmp_path, {})
    assert key is not None
    assert key.value.get_secret_value() == "c0ffee"
    assert key.source.startswith("API_KEY in")


def test_a_dotenv_that_others_can_read_is_warned_of(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("API_KEY=c0ffee\n")
    dotenv.chmod(0o644)
    key = load_key(tmp_path, {})
    assert key is not None
    assert key.warning == f"{dotenv} is open to other users (0644): chmod 600 {dotenv}"


@pytest.mark.parametrize("key", ["hunter two", "hunter\x00two", "hunter\u00e9two", "hunter\ttwo", "hunter\ntwo"])
def test_a_key_that_no_venue_issues_is_refused_unseen(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="the key from FINNHUB_API_KEY in the environment holds") as caught:
        load_key(tmp_path, {"FINNHUB_API_KEY": key})
    assert "hunter" not in str(caught.value)


def test_a_dotenv_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"API_KEY=\xff\xfehunter2\n")
    with pytest.raises(ConfigError, match="outside ASCII") as caught:
        load_key(tmp_path, {})
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize(
    "line", ["FINNHUB_API_KEY: c0ffee", "export FINNHUB_API_KEY c0ffee", "  FINNHUB_API_KEY c0ffee"]
)
def test_a_secret_that_is_written_otherwise_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / ".env").write_text(f"# mine\nSOMETHING else\n{line}\n")
    with pytest.raises(ConfigError, match=r"\.env:3: write FINNHUB_API_KEY=…, with `=`") as caught:
        load_key(tmp_path, {})
    assert "c0ffee" not in str(caught.value)


def test_where_a_key_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = "no key: set FINNHUB_API_KEY, or write FINNHUB_API_KEY=… into config/.env (free at https://finnhub.io)"
    assert describe_missing("no key", "FINNHUB_API_KEY", Path("config")) == told
    (tmp_path / ".env").touch()
    elsewhere = "; the .env in this folder is not read, only that beside the settings"
    assert describe_missing("no key", "FINNHUB_API_KEY", Path("config")) == told + elsewhere
    assert "finnhub.io" not in describe_missing("no key", "FEED_API_KEY", Path("config"))


@pytest.mark.parametrize("name", [".env", "FINNHUB_API_KEY"])
def test_a_source_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"{name}: can't be read"):
        load_key(tmp_path, {"CREDENTIALS_DIRECTORY": os.fspath(tmp_path)})


def test_a_key_shows_itself_to_nobody(tmp_path: Path) -> None:
    key = load_key(tmp_path, {"FINNHUB_API_KEY": "hunter2"})
    assert "hunter2" not in f"{key!r} {key} {key and key.model_dump_json()}"


@pytest.mark.parametrize("key", ['"c0ffee"', "'c0ffee'"])
def test_a_key_in_quotes_is_named(tmp_path: Path, key: str) -> None:
    """As `docker run --env-file` hands it over."""
    with pytest.raises(ConfigError, match="FINNHUB_API_KEY in the environment is in quotes") as caught:
        load_key(tmp_path, {"FINNHUB_API_KEY": key})
    assert "c0ffee" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        "your_api_key_here", "YOUR-API-KEY", "your_finnhub_api_key", "<your key>", "changeme", "change_me", "xxxx",
        "...", "api_key", "FINNHUB_API_KEY", "${FINNHUB_API_KEY}", "REPLACE_ME", "insert_key_here", "placeholder",
        "TODO",
    ],
)  # fmt: skip
def test_an_example_is_no_key(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="is an example, not a key"):
        load_key(tmp_path, {"FINNHUB_API_KEY": key})


@pytest.mark.parametrize("key", ["c0ffee", "bq7keyv48v6t", "sandbox_c123", "demo", "mykx1here9", "todor1"])
def test_a_key_is_no_example(tmp_path: Path, key: str) -> None:
    found = load_key(tmp_path, {"FINNHUB_API_KEY": key})
    assert found is not None
    assert found.value.get_secret_value() == key


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", [".env", "FINNHUB_API_KEY"])
def test_utf_16_is_named(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_bytes("FINNHUB_API_KEY=c0ffee\r\n".encode(encoding))
    with pytest.raises(ConfigError, match=f"{name} is UTF-16, .*: save it as UTF-8"):
        load_key(tmp_path, {"CREDENTIALS_DIRECTORY": os.fspath(tmp_path)})


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path: Path) -> None:
    for name, text in ((".env", "FINNHUB_API_KEY=c0ffee"), ("FINNHUB_API_KEY", "c0ffee")):
        (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
        key = load_key(tmp_path, {} if name == ".env" else {"CREDENTIALS_DIRECTORY": os.fspath(tmp_path)})
        assert key is not None
        assert key.value.get_secret_value() == "c0ffee"


@pytest.mark.parametrize(
    ("name", "mode", "warns"), [("api-key", 0o644, True), ("x.key", 0o640, True), ("x.key", 0o600, False)]
)
def test_a_credentials_own_file_that_others_can_read_is_named(
    tmp_path: Path, name: str, mode: int, *, warns: bool
) -> None:
    """As `echo … > NAME.key` makes it under /etc."""
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials/FINNHUB_API_KEY").write_text("abc")
    own = tmp_path / name
    own.write_text("abc")
    own.chmod(mode)
    key = load_key(tmp_path, {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")})
    assert key is not None
    assert key.warning == (f"{own} is open to other users ({mode:04o}): chmod 600 {own}" if warns else None)


def test_each_feed_has_a_variable_of_its_own(tmp_path: Path) -> None:
    """No key gets to another venue than its own."""
    assert load_key(tmp_path, {"FINNHUB_API_KEY": "a"}, "FEED_API_KEY") is None
    key = load_key(tmp_path, {"FINNHUB_API_KEY": "a", "FEED_API_KEY": "b"}, "FEED_API_KEY")
    assert key is not None
    assert (key.value.get_secret_value(), key.source) == ("b", "FEED_API_KEY in the environment")
