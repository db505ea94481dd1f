"""How an end is told, and what is not told of it. On real connections: test_connection, test_handshake."""

import pytest

from ingestor.capture.connection import describe_close, explain, read_close


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        (b"", 1005, ""),
        (b"\x03\xe8", 1000, ""),
        (b"\x03\xf0bad token secret!", 1008, "bad token ***!"),
        (b"\x0f\xa1\xff", 4001, "\ufffd"),
    ],
)
def test_a_close_frame_is_read_without_the_secrets(body: bytes, code: int, reason: str) -> None:
    assert read_close(body, ["secret"]) == (code, reason)


@pytest.mark.parametrize(
    ("code", "reason", "said"),
    [(1012, "", "1012 restart"), (1012, "back at nine", "1012 back at nine"), (4001, "", "4001")],
)
def test_a_code_is_named_where_no_reason_is_given(code: int, reason: str, said: str) -> None:
    assert describe_close(code, reason) == said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (TimeoutError("timed out"), "timed out"),
        (OSError(), "OSError"),
        (ValueError("no port in wss://venue/?token=secret"), "ValueError"),
        (ValueError("?token=secret"), "ValueError"),
    ],
)
def test_an_error_is_told_without_the_address(error: Exception, said: str) -> None:
    assert explain(error) == said
