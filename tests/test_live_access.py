"""Tokens: one algorithm, an end, an audience; and the door that web pages of others don't pass."""

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Message

from ingestor.cli.main import cli
from ingestor.config.addresses import Hosts, allowed_hosts
from ingestor.errors import ConfigError
from ingestor.live.access import (
    EVERYTHING,
    SECRET_NAME,
    HostGuard,
    Unauthorized,
    Verifier,
    bearer_token,
    find_refusal,
    load_verifier,
    share_with,
)

SECRET = "a secret of a test, 32 bytes long"
NOW = time.time()


def claims(**more: Any) -> dict[str, Any]:
    return {"exp": NOW + 3600, "aud": "ingestor", **more}


def token(secret: str = SECRET, algorithm: str = "HS256", **more: Any) -> str:
    return jwt.encode({key: value for key, value in claims(**more).items() if value is not None}, secret, algorithm)


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def pem(key: Any) -> bytes:
    """Its public half."""
    public: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return public


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def hs256() -> Verifier:
    return load_verifier("HS256", "ingestor", None, {SECRET_NAME: SECRET})


def test_a_good_token_grants_until_it_expires() -> None:
    grant = hs256().verify(token())
    assert (grant.symbols, grant.expires_at) == (None, NOW + 3600)


def test_a_token_may_name_symbols() -> None:
    grant = hs256().verify(token(symbols=["A", "B"]))
    assert grant.refused(["A", "C", "B", "D"]) == ["C", "D"]
    assert EVERYTHING.refused(["A"]) == []


@pytest.mark.parametrize(
    ("forged", "reason"),
    [
        (token(exp=NOW - 1), "has expired"),
        (token(exp=None), "lacks `exp`"),
        (token(aud=None), "lacks `aud`"),
        (token(aud="another"), "another audience"),
        (token(nbf=NOW + 86_400), "not valid yet"),
        (token(secret="another secret, of 32 bytes as well"), "signature is wrong"),
        (token(secret=SECRET * 2, algorithm="HS512"), "algorithm is not the one"),
        (f"{segment({'alg': 'none', 'typ': 'JWT'})}.{segment(claims())}.", "algorithm is not the one"),
        (f"{segment({'alg': 'None'})}.{segment(claims())}.", "algorithm is not the one"),
        (f"{token().rsplit('.', 1)[0]}.", "signature is wrong"),
        (token(symbols="AAPL"), "must be a list"),
        (token(symbols=[1]), "must be a list"),
        ("", "no token, or a broken one"),
        ("a.b.c", "no token, or a broken one"),
        ("é" * 100, "is ASCII"),
        ("\ud800", "is ASCII"),
        ("x" * 10_000, "at most 8192 characters"),
    ],
    ids=itertools.count(),  # a token holds a time: no name for a test
)
def test_a_bad_token_is_refused_with_its_reason(forged: str, reason: str) -> None:
    with pytest.raises(Unauthorized, match=reason) as refusal:
        hs256().verify(forged)
    assert not forged or forged not in str(refusal.value)


def test_rs256(tmp_path: Path, rsa_key: rsa.RSAPrivateKey) -> None:
    path = tmp_path / "public.pem"
    path.write_bytes(pem(rsa_key))
    verifier = load_verifier("RS256", "ingestor", path, {})
    assert verifier.verify(jwt.encode(claims(), rsa_key, "RS256")).symbols is None
    other = rsa.generate_private_key(65537, 2048)
    with pytest.raises(Unauthorized, match="signature is wrong"):
        verifier.verify(jwt.encode(claims(), other, "RS256"))


def test_the_public_key_is_no_secret_to_sign_with(tmp_path: Path, rsa_key: rsa.RSAPrivateKey) -> None:
    """The classic confusion: HS256 with the public key, which everybody has, as its secret."""
    path = tmp_path / "public.pem"
    path.write_bytes(pem(rsa_key))
    signed = f"{segment({'alg': 'HS256', 'typ': 'JWT'})}.{segment(claims())}"
    signature = base64.urlsafe_b64encode(hmac.digest(path.read_bytes(), signed.encode(), hashlib.sha256))
    with pytest.raises(Unauthorized, match="algorithm is not the one"):
        load_verifier("RS256", "ingestor", path, {}).verify(f"{signed}.{signature.rstrip(b'=').decode()}")


def test_a_secret_may_be_a_credential(tmp_path: Path) -> None:
    (tmp_path / SECRET_NAME).write_text(SECRET + "\n")
    load_verifier("HS256", "ingestor", None, {"CREDENTIALS_DIRECTORY": str(tmp_path)}).verify(token())


@pytest.mark.parametrize(
    ("environ", "reason"),
    [({}, "is not set"), ({SECRET_NAME: ""}, "is not set"), ({SECRET_NAME: "x" * 31}, "is too short")],
)
def test_a_secret_that_cannot_be_used(environ: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_verifier("HS256", "ingestor", None, environ)


def test_public_keys_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    with pytest.raises(ConfigError, match="can't be read"):
        load_verifier("RS256", "ingestor", path, {})
    for content, reason in (
        (b"no key", "no public key"),
        (pem(rsa.generate_private_key(65537, 1024)), "2048 bits"),  # noqa: S505  that it is weak is the point
        (pem(ec.generate_private_key(ec.SECP256R1())), "RSA key"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=reason):
            load_verifier("RS256", "ingestor", path, {})


@pytest.mark.parametrize(("algorithm", "has_file"), [("RS256", False), ("HS256", True)])
def test_the_algorithm_and_the_key_must_fit(algorithm: Any, has_file: bool, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--public-key"):
        load_verifier(algorithm, "ingestor", tmp_path if has_file else None, {SECRET_NAME: SECRET})


@pytest.mark.parametrize(
    ("header", "expected"), [("Bearer a.b.c", "a.b.c"), ("bearer a", "a"), ("Basic a", None), ("", None)]
)
def test_the_header_of_a_token(header: str, expected: str | None) -> None:
    assert bearer_token({"authorization": header}) == expected


# The door

LOCAL = allowed_hosts("127.0.0.1", [])


@pytest.mark.parametrize(
    ("hosts", "host", "origin", "passes"),
    [
        (LOCAL, "127.0.0.1:8766", None, True),
        (LOCAL, "localhost:8766", None, True),
        (LOCAL, "LOCALHOST", None, True),
        (LOCAL, "[::1]:8766", None, True),
        (LOCAL, "127.0.0.1:8766", "http://127.0.0.1:8766", True),
        (LOCAL, "127.0.0.1:8766", "http://127.0.0.1:9999", False),
        (LOCAL, "127.0.0.1:8766", "http://localhost:8766", False),
        (LOCAL, "127.0.0.1:8766", "https://evil.example", False),
        (LOCAL, "127.0.0.1:8766", "null", False),
        (LOCAL, "127.0.0.1:8766", "http://[", False),
        (LOCAL, "evil.example:8766", None, False),
        (LOCAL, "evil.example:8766", "http://evil.example:8766", False),
        (LOCAL, "127.0.0.1.evil.example", None, False),
        (LOCAL, "127.0.0.1:8766@evil.example", None, False),
        (LOCAL, "127.0.0.1#evil", None, False),
        (LOCAL, "127.0.0.1/evil", None, False),
        (LOCAL, "127.0.0.1?evil", None, False),
        (LOCAL, "127.0.0.1\\evil", None, False),
        (LOCAL, "evil@127.0.0.1", None, False),
        (LOCAL, "127.0.0.1:", None, False),
        (LOCAL, "127.0.0.1:8766:80", None, False),
        (LOCAL, "127.0.0.1 evil", None, False),
        (LOCAL, "127.0.0.1:8766", "file://127.0.0.1:8766", False),
        (LOCAL, "127.0.0.1:8766", "//127.0.0.1:8766", False),
        (LOCAL, "127.0.0.1:8766", "http://127.0.0.1:8766/", False),
        (LOCAL, "127.0.0.1:8766", "http://evil@127.0.0.1:8766", False),
        (allowed_hosts("127.0.0.1", ["prices.example"]), "prices.example", "https://prices.example", True),
        (LOCAL, "10.0.0.5", None, False),
        (LOCAL, "", None, False),
        (LOCAL, "[", None, False),
        (allowed_hosts("0.0.0.0", []), "10.0.0.5:8766", None, True),
        (allowed_hosts("0.0.0.0", []), "evil.example", None, False),
        (allowed_hosts("0.0.0.0", ["Prices.example"]), "prices.example", None, True),
        (allowed_hosts("10.0.0.5", []), "10.0.0.5:8766", None, True),
        (allowed_hosts("10.0.0.5", []), "10.0.0.6:8766", None, False),
    ],
)
def test_who_may_call(hosts: Hosts, host: str, origin: str | None, passes: bool) -> None:
    headers = {"host": host, **({} if origin is None else {"origin": origin})}
    assert (find_refusal(Headers(headers), hosts) is None) is passes


FILES = allowed_hosts("127.0.0.1", origins=["null", "http://127.0.0.1:8000/"])


@pytest.mark.parametrize(
    ("origin", "passes"),
    [("null", True), ("http://127.0.0.1:8000", True), ("HTTP://127.0.0.1:8000", True), ("http://127.0.0.1:8001", False),
     ("http://127.0.0.1:8000.evil.example", False), ("https://127.0.0.1:8000", False), ("", False)],
)  # fmt: skip
def test_a_page_elsewhere_may_call_where_it_was_named(origin: str, passes: bool) -> None:
    headers = Headers({"host": "127.0.0.1:8766", "origin": origin})
    assert (find_refusal(headers, FILES) is None) is passes
    assert (share_with(headers, FILES).get("Access-Control-Allow-Origin") == origin) is passes
    assert share_with(headers, LOCAL) == {}
    assert find_refusal(Headers({"host": "evil.example", "origin": origin}), FILES) is not None


@pytest.mark.parametrize(("method", "status"), [("OPTIONS", 204), ("GET", 200)])
def test_a_browser_is_told_that_it_may_show_the_answer(method: str, status: int) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(b"host", b"127.0.0.1:8766"), (b"origin", b"null")]
    scope = {"type": "http", "method": method, "path": "/", "headers": raw, "query_string": b""}
    asyncio.run(HostGuard(JSONResponse({}), FILES)(scope, receive, send))
    headers = Headers(raw=sent[0]["headers"])
    assert (sent[0]["status"], headers["access-control-allow-origin"], headers["vary"]) == (status, "null", "Origin")
    assert headers["access-control-allow-headers"] == "Authorization"
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("origin", ["example.org", "ftp://x", "http://u@x", "*", "http://x/page"])
def test_what_is_no_origin(origin: str) -> None:
    done = CliRunner().invoke(cli, ["serve", "--allow-origin", origin])
    assert done.exit_code == 2
    assert "is no origin: write http://host:port" in str(done.exception) + done.output


def test_two_hosts_are_none() -> None:
    headers = Headers(raw=[(b"host", b"127.0.0.1"), (b"host", b"evil.example")])
    assert find_refusal(headers, LOCAL) is not None
