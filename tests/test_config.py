"""The settings: what a person writes, and what is said where it is wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ingestor.config import Flags, Settings, Source, load_settings, settings_from_flags
from ingestor.config.sections import JournalSettings, StorageSettings
from ingestor.errors import ConfigError

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes `ingestor.yaml` into the working directory and returns its relative path."""
    monkeypatch.chdir(tmp_path)

    def write_settings(content: str | bytes) -> Path:
        path = Path("ingestor.yaml")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_settings


def complaints(path: Path, flags: Flags | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(path, flags or Flags())
    return str(caught.value).splitlines()


# What a file may say


def test_a_file_with_tickers_alone_is_all_defaults(write: Write) -> None:
    assert load_settings(write("tickers: [AAPL]\n")) == Settings(tickers=("AAPL",))


def test_every_value_is_read(write: Write) -> None:
    settings = load_settings(
        write(
            "tickers: [AAPL]\n"
            "feed: {url: 'ws://venue:8765', allow_plaintext: true}\n"
            "storage: {root: /x, formats: [csv, parquet], min_free: 2GB, rotate: {age: 2s, size: 1MB}}\n"
            "journal: {linger: 0s, sync_interval: 30s}\n"
            "connection: {ca_file: ca.pem, buffer: 512KB}\n"
            "logging: {level: debug, format: json}\n"
            "stop_timeout: 5s\n"
        )
    )
    assert settings.feed.url == "ws://venue:8765"
    assert settings.storage.root == Path("/x")
    assert settings.storage.formats == ("csv", "parquet")
    assert (settings.storage.rotate.age, settings.storage.rotate.size) == (2.0, 1 << 20)
    assert (settings.journal.linger, settings.journal.sync_interval) == (0.0, 30.0)
    assert (settings.connection.ca_file, settings.storage.min_free) == (Path("ca.pem"), 2 << 30)
    assert (settings.logging.level, settings.logging.format, settings.stop_timeout) == ("debug", "json", 5.0)


def test_tickers_are_text_as_written(write: Write) -> None:
    tickers = (
        "ON",
        "NO",
        "TRUE",
        "NULL",
        "000001",
        "12:30",
        "1e5",
        "BRK.B",
        "IC MARKETS:1",
        "^GSPC",
        "~",
        "0x1F",
    )
    block = "tickers:\n" + "".join(f"  - {ticker}\n" for ticker in tickers)
    assert load_settings(write(block)).tickers == tickers
    assert load_settings(write(f"tickers: [{', '.join(tickers)}]\n")).tickers == tickers


def test_a_section_of_comments_is_all_defaults(write: Write) -> None:
    assert load_settings(write("tickers: [A]\njournal:\n  #linger: 1s\n")).journal == JournalSettings()


@pytest.mark.parametrize("nothing", ["null", "~", ""])
def test_null_is_nothing_where_nothing_is_allowed(write: Write, nothing: str) -> None:
    path = write(f"tickers: [A]\nconnection:\n  ca_file: {nothing}\n")
    assert load_settings(path).connection.ca_file is None


def test_anchors_and_a_byte_order_mark(write: Write) -> None:
    path = write("\ufefftickers: [A]\njournal: {linger: &time 2s, sync_interval: *time}\n")
    assert load_settings(path).journal.sync_interval == 2.0


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "[::1]", "localhost"])
def test_plaintext_on_this_machine(write: Write, host: str) -> None:
    url = f"ws://{host}:8765/x"
    assert load_settings(write(f"tickers: [A]\nfeed: {{url: '{url}'}}\n")).feed.url == url


# What it may not


MISTAKES = {
    "no tickers": ("journal: {}\n", ["1:1: `tickers` is missing"]),
    "empty list": ("tickers: []\n", ["1:1: must be a list of at least one symbol"]),
    "no list": ("tickers: AAPL\n", ["1:1: must be a list of at least one symbol"]),
    "nothing": ("\ntickers:\n", ["2:1: must be a list of at least one symbol"]),
    "duplicate ticker": ("tickers: [A, B, A]\n", ["1:17: A is listed twice"]),
    "duplicate key": (
        "tickers: [A]\njournal:\n  linger: 1s\n  linger: 2s\n  sync_interval: 3s\n",
        ["4:3: duplicate key `linger`: line 3 has it too"],
    ),
    "tab": ("tickers:\n\t- A\n", ["2:1: a tab indents this line: use blanks"]),
    "tab after blanks": ("tickers:\n  - A\n \t- B\n", ["3:2: a tab indents this line: use blanks"]),
    "tab within": ("tickers:\t[A]\n", ["1:9: a tab: use blanks"]),
    "stray blank": (
        "tickers:\n  - BINANCE: BTCUSDT\n",
        ["2:5: a stray blank after the colon: write BINANCE:BTCUSDT"],
    ),
    "forgotten dash": ("tickers:\n  - A\n    B\n", ["2:5: the value runs into the next line: is a `-`"]),
    "empty ticker": ("tickers:\n  - A\n  -\n", ["3:4: must be a symbol: text"]),
    "long ticker": (f"tickers: [{'A' * 129}]\n", ["1:11: a symbol has at most 128 characters, this one 129"]),
    "control in ticker": ('tickers: ["A\\u0007"]\n', ["1:11: 'A\\x07' holds a control or an invisible"]),
    "invisible in ticker": ("tickers: [A\u200b]\n", ["1:11: 'A\\u200b' holds a control or an invisible"]),
    "two in one": ("tickers:\n  - A, B\n", ["2:5: `A, B` holds a comma"]),
    "reserved letter": (
        "tickers: [@A]\n",
        ["1:11: found character '@' that cannot start any token: put the"],
    ),
    "unknown key": (
        "ticker: [A]\n",
        ["1:1: `tickers` is missing", "1:1: unknown key `ticker`: did you mean `tickers`?"],
    ),
    "the word of the commands": (
        "symbols: [A]\n",
        ["1:1: `tickers` is missing", "1:1: unknown key `symbols`: did you mean `tickers`?"],
    ),
    "unknown key below": (
        "tickers: [A]\nstorage:\n  rotate:\n    aeg: 1m\n",
        ["4:5: unknown key `aeg`: did you mean `age`?"],
    ),
    "unknown key unlike any": (
        "tickers: [A]\nlogging: {x: y}\n",
        ["2:11: unknown key `x`: known here are level, format"],
    ),
    "key in the file": (
        "tickers: [A]\napi_key: hunter2\n",
        ["2:1: unknown key `api_key`: the key belongs into"],
    ),
    "compression of CSV, which is gone": (
        "tickers: [A]\nstorage: {csv_gzip: false}\n",
        ["2:11: `csv_gzip` no longer exists: the recorder leaves CSV files as they are; delete this line"],
    ),
    "bulk reading, which is no choice any more": (
        "tickers: [A]\nconnection: {fast_frames: true}\n",
        ["2:14: `fast_frames` no longer exists: frames are always read in bulk; delete this line"],
    ),
    "Google's store": (
        "tickers: [A]\nsinks: {object_store: {uri: 'gs://bucket/x'}}\n",
        ["2:24: gs:// is no longer supported: mirror to s3:// or to a directory"],
    ),
    "section is text": ("tickers: [A]\njournal: 1s\n", ["2:1: `journal` must be a mapping"]),
    "section is a list": ("tickers: [A]\nstorage: [csv]\n", ["2:1: `storage` must be a mapping"]),
    "value is a list": ("tickers: [A]\nstop_timeout: [1s]\n", ["2:1: `stop_timeout` must be one value"]),
    "text is a mapping": ("tickers: [A]\nfeed: {url: {a: b}}\n", ["2:8: `url` must be one value"]),
    "no unit": ("tickers: [A]\nstop_timeout: 60\n", ["2:1: `60` has no unit: write 60s, 60m or 60ms"]),
    "out of bounds": ("tickers: [A]\nconnection: {silence: 0s}\n", ["2:14: must be from 1s to 1h"]),
    "null": ("tickers: [A]\nstop_timeout: null\n", ["2:1: `null` is no duration"]),
    "no path": ("tickers: [A]\nstorage: {root: null}\n", ["2:11: must be a path"]),
    "no home": ("tickers: [A]\nstorage: {root: ~nobody-here/x}\n", ["2:11: `~nobody-here/x` names a home"]),
    "yes": ("tickers: [A]\ntickers_watch: yes\n", ["2:1: must be true or false, not `yes`"]),
    "no choice": (
        "tickers: [A]\nlogging: {level: loud}\n",
        ["2:11: must be 'debug', 'info', 'warning' or 'error'"],
    ),
    "format twice": (
        "tickers: [A]\nstorage: {formats: [csv, csv]}\n",
        ["2:11: must name parquet, csv, or each once"],
    ),
    "no format": ("tickers: [A]\nstorage: {formats: []}\n", ["2:11: must name parquet, csv, or each once"]),
    "sync before linger": (
        "tickers: [A]\njournal: {linger: 5s}\n",
        ["2:1: sync_interval (1s) must not be shorter than linger (5s)"],
    ),
    "ping after silence": (
        "tickers: [A]\nconnection: {silence: 10s}\n",
        ["2:1: ping_interval must not be longer than silence (10s)"],
    ),
    "plaintext": (
        "tickers: [A]\nfeed: {url: 'ws://10.0.0.1'}\n",
        ["2:8: ws:// to another machine sends the key in"],
    ),
    "no WebSocket": (
        "tickers: [A]\nfeed: {url: 'https://x'}\n",
        ["2:8: must be an address that begins with wss://"],
    ),
    "no host": ("tickers: [A]\nfeed: {url: 'wss://'}\n", ["2:8: must be an address that begins with wss://"]),
    "no port": ("tickers: [A]\nfeed: {url: 'wss://x:y'}\n", ["2:8: is no address: write wss://host"]),
    "key in the url": (
        "tickers: [A]\nfeed: {url: 'wss://x?token=hunter2'}\n",
        ["2:8: must end before any `?`"],
    ),
    "user in the url": ("tickers: [A]\nfeed: {url: 'wss://u:hunter2@x'}\n", ["2:8: must end before any `?`"]),
    "a list": ("- AAPL\n", ["1:1: the file must be a mapping"]),
    "text": ("AAPL\n", ["1:1: the file must be a mapping"]),
    "two documents": ("tickers: [A]\n---\ntickers: [B]\n", ["2:1: a second document"]),
    "bad indentation": ("feed:\n  type: finnhub\n tickers: [A]\n", ["3:2: the indentation doesn't match"]),
    "two values": ("tickers: [A]\nstop_timeout: a: b\n", ["2:16: a second `key: value` here"]),
    "unclosed list": ("tickers: [A\njournal: {}\n", ["2:8: expected ',' or ']', but got ':'"]),
    "list as key": ("tickers: [A]\n[a]: b\n", ["2:1: a key must be text"]),
    "holds itself": ("tickers: &a [*a]\n", ["1:10: an anchor that holds itself"]),
    "unknown anchor": ("tickers: [*A]\n", ["1:11: found undefined alias 'A': put the value in quotes"]),
    "terminal's escape in a key": (
        'tickers: [A]\n"\\e[31mred": 1\n',
        ["2:1: unknown key `\\x1b[31mred`: known here are"],
    ),
    "half a character": (
        'tickers: ["\\ud83d"]\nstop_timeout: 1s\n',
        ["1:11: an escape (\\u…) in quotes that is half a character"],
    ),
    "no colon": (
        "tickers: [A]\njournal\nfeed: {}\n",
        ["2:1: no colon follows: write `key: value`, or `- value` in a list"],
    ),
    "control character": ("tickers: [A]\nx: \x07\n", ["2:4: a control character: delete it"]),
}


@pytest.mark.parametrize(("text", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_its_place(write: Write, text: str, expected: list[str]) -> None:
    found = complaints(write(text))
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(f"ingestor.yaml:{start}")
        assert "hunter2" not in line


def test_all_mistakes_at_once_in_the_order_of_the_file(write: Write) -> None:
    text = "tickers:\n  - A\n  - A\n  - B: C\njournal:\n  linger: 5\n  linger: 6\nlogin: {}\nstop_timeout: 9h\n"
    assert complaints(write(text)) == [
        "ingestor.yaml:3:5: A is listed twice",
        "ingestor.yaml:4:5: a stray blank after the colon: write B:C",
        "ingestor.yaml:6:3: `5` has no unit: write 5s, 5m or 5ms",
        "ingestor.yaml:7:3: duplicate key `linger`: line 6 has it too",
        "ingestor.yaml:8:1: unknown key `login`: did you mean `logging`?",
        "ingestor.yaml:9:1: must be from 0s to 1h",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty: `ingestor init` writes one that works"),
        (b"# nothing\n", "the file is empty: `ingestor init` writes one that works"),
        (b"#" * ((1 << 20) + 1), "larger than 1 MB: this is no settings file"),
        (b"tickers: " + b"[" * 1000, "nested too deeply"),
        (b'tickers: ["\\UFFFFFFFF"]', "an escape (\\U…) in quotes that is no character"),
    ],
)
def test_a_file_that_holds_no_settings(write: Write, content: bytes, expected: str) -> None:
    assert complaints(write(content)) == [f"ingestor.yaml: {expected}"]


def test_a_file_that_is_not_utf_8(write: Write) -> None:
    assert complaints(write("tickers:\n  - Ä\n".encode("latin-1"))) == [
        "ingestor.yaml:2:5: not UTF-8 from here: save the file as UTF-8"
    ]


def test_anchors_that_repeat_anchors_are_cut_short(write: Write) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    assert "too many values" in complaints(write(bomb))[0]


def test_a_missing_file(write: Write) -> None:
    assert complaints(Path("nowhere.yaml"))[0].startswith("nowhere.yaml: no such file: `ingestor init` writes one")


def test_a_directory_for_a_file(write: Write) -> None:
    assert complaints(Path()) == [".: can't be read: Is a directory"]


# Flags


def test_flags_stand_above_the_file(write: Write) -> None:
    path = write("tickers: [A]\nstorage: {root: here, formats: [csv]}\n")
    flags = Flags(symbols=("X", "Y"), root=Path("there"), url="ws://127.0.0.1:1")
    settings = load_settings(path, flags)
    assert settings.tickers == ("X", "Y")
    assert settings.storage.root == Path("there")
    assert settings.storage.formats == ("csv",)
    assert settings.feed.url == "ws://127.0.0.1:1"


def test_no_file_is_needed() -> None:
    settings = settings_from_flags(Flags(symbols=["AAPL", "BINANCE:BTCUSDT"], root=Path("x")))
    assert settings == Settings(tickers=("AAPL", "BINANCE:BTCUSDT"), storage=StorageSettings(root=Path("x")))


@pytest.mark.parametrize(("said", "taken"), [("0.0.0.0:9464", "0.0.0.0:9464"), ("null", None), ("", "127.0.0.1:1")])
def test_the_environment_stands_above_the_file(
    write: Write, monkeypatch: pytest.MonkeyPatch, said: str, taken: str | None
) -> None:
    monkeypatch.setenv("INGESTOR_HEALTH_LISTEN", said)
    path = write("tickers: [A]\nhealth: {listen: '127.0.0.1:1', allow_hosts: [a.example]}")
    for settings in (load_settings(path), load_settings(path, Flags(symbols=("B",)))):
        assert settings.health.listen == taken
        assert settings.health.allow_hosts == ("a.example",)


def test_a_mistake_in_the_environment_names_the_variable(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INGESTOR_HEALTH_LISTEN", "nonsense")
    with pytest.raises(ConfigError, match=r"^INGESTOR_HEALTH_LISTEN: `nonsense` is no address"):
        load_settings(write("tickers: [A]"))


def test_a_mistake_in_a_flag_names_the_flag(write: Write) -> None:
    path = write("tickers: [A]\njournal: {linger: 5}\n")
    flags = Flags(symbols=("A", "A"), url="ws://venue")
    assert [line.partition(": ")[0] for line in complaints(path, flags)] == [
        "--url",
        "--symbols",
        "ingestor.yaml:2:11",
    ]


def test_a_flag_leaves_a_broken_section_to_be_named(write: Write) -> None:
    path = write("tickers: [A]\nstorage: [csv]\n")
    assert complaints(path, Flags(root=Path("x"))) == [
        "ingestor.yaml:2:1: `storage` must be a mapping: lines of `key: value` below it"
    ]


def test_no_symbols_at_all() -> None:
    with pytest.raises(ConfigError, match="`tickers` is missing"):
        settings_from_flags(Flags())


# For editors, and back again


def test_settings_survive_being_written_down() -> None:
    settings = settings_from_flags(Flags(symbols=["ON"]))
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings


def test_the_schema_shows_defaults_as_the_file_would() -> None:
    schema = Settings.model_json_schema()
    assert schema["properties"]["tickers"]["anyOf"][0]["minItems"] == 1
    assert schema["properties"]["tickers"]["anyOf"][1]["required"] == ["files"]
    rotate = schema["$defs"]["RotateSettings"]["properties"]
    assert rotate["age"]["default"] == "15m"
    assert rotate["size"]["default"] == "16MB"
    assert schema["properties"]["stop_timeout"]["type"] == "string"
    assert schema["properties"]["tickers"]["anyOf"][0]["items"]["type"] == ["string", "number", "boolean", "null"]
    assert schema["additionalProperties"] is False


def test_every_setting_says_what_it_is() -> None:
    schema = Settings.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        for key, value in section["properties"].items():
            assert "$ref" in value or value.get("description"), key


# Tickers in files


def test_tickers_may_stand_in_files(write: Write) -> None:
    path = write("tickers: {files: [one.txt, lists/two.txt], add: [MSFT, A], drop: [NO, GONE]}\n")
    (path.parent / "lists").mkdir()
    (path.parent / "one.txt").write_bytes(b"\xef\xbb\xbf# a list\r\nAAPL   # Apple\r\n\r\nNO\r\nIC MARKETS:1\r\n")
    (path.parent / "lists/two.txt").write_text("AAPL\nON\n")
    assert load_settings(path).tickers == ("AAPL", "IC MARKETS:1", "ON", "MSFT", "A")
    assert load_settings(path, Flags(symbols=("X",))).tickers == ("X",)
    assert Source(path).files() == [path, path.parent / "one.txt", path.parent / "lists/two.txt"]


@pytest.mark.parametrize(
    ("tickers", "content", "sentence"),
    [
        ("{files: [gone.txt]}", b"A", "gone.txt: can't be read: No such file"),
        ("{files: [one.txt]}", b"A\nB, C\n", "one.txt:2: `B, C` holds a comma"),
        ("{files: [one.txt]}", b"A\xff", "one.txt: not UTF-8"),
        ("{files: [one.txt]}", b"# nothing\n", ":1:1: these files name no symbol"),
        ("{files: [one.txt], drop: [A]}", b"A\n", ":1:1: these files name no symbol"),
        ("{files: [one.txt], ad: [A]}", b"A\n", "unknown key `ad`: did you mean `add`?"),
        ("{files: []}", b"A\n", "at least 1 item"),
        ("{files: one.txt}", b"A\n", "valid list"),
        ("{add: [A]}", b"A\n", "must be a list of at least one symbol"),
    ],
)
def test_a_list_of_tickers_that_can_not_be_read_is_named(
    write: Write, tickers: str, content: bytes, sentence: str
) -> None:
    path = write(f"tickers: {tickers}\njournal: {{linger: x}}\n")
    (path.parent / "one.txt").write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        load_settings(path)
    assert sentence in str(raised.value)
    assert "`x` is no duration" in str(raised.value)
