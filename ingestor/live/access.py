"""Access to the server: tokens (JWT, RFC 7519) of one configured algorithm, and a guard of the host that is called.

Any web page can make a browser call a loopback port, so whoever calls must name this server as it names itself.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingestor.config.addresses import Hosts
from ingestor.errors import ConfigError

Algorithm = Literal["HS256", "RS256"]

SECRET_NAME = "INGESTOR_JWT_SECRET"  # noqa: S105  where the secret is, not what
_SECRET_MIN_BYTES = 32  # RFC 7518, 3.2: as many as the hash has
_RSA_MIN_BITS = 2048  # RFC 7518, 3.3
_TOKEN_MAX = 8192
_SENTENCES: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
    (jwt.ExpiredSignatureError, "the token has expired"),
    (jwt.ImmatureSignatureError, "the token is not valid yet"),
    (jwt.InvalidAlgorithmError, "the token's algorithm is not the one that is accepted here"),
    (jwt.InvalidSignatureError, "the token's signature is wrong"),
    (jwt.InvalidAudienceError, "the token is for another audience"),
)


_ORIGIN = re.compile(r"https?://(?P<authority>.+)", re.ASCII | re.IGNORECASE)
_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

log = structlog.get_logger()


class Unauthorized(Exception):
    """The token is refused; the argument is the reason, without the token."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Symbols that a client may see, and until when."""

    symbols: frozenset[str] | None = None
    """None: all."""
    expires_at: float | None = None
    """In seconds since 1970; None: never."""

    def allows(self, symbol: str) -> bool:
        """Whether the client may see this symbol."""
        return self.symbols is None or symbol in self.symbols

    def refused(self, symbols: Iterable[str]) -> list[str]:
        """Those of these symbols that it doesn't allow."""
        return [symbol for symbol in symbols if not self.allows(symbol)]


EVERYTHING = Grant()


class Verifier:
    """Checks tokens against one algorithm and key: what the token says of its algorithm is only compared."""

    def __init__(self, algorithm: Algorithm, key: str | RSAPublicKey, audience: str) -> None:
        self._algorithm = algorithm
        self._key = key
        self._audience = audience

    def verify(self, token: str) -> Grant:
        """The grant of this token. Raises Unauthorized."""
        if len(token) > _TOKEN_MAX or not token.isascii():
            raise Unauthorized(f"a token is ASCII, and at most {_TOKEN_MAX} characters long")
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[self._algorithm],
                audience=self._audience,
                options={"require": ["exp", "aud"]},
            )
        except jwt.MissingRequiredClaimError as error:
            raise Unauthorized(f"the token lacks `{error.claim}`") from None
        except jwt.PyJWTError as error:
            known = (text for kind, text in _SENTENCES if isinstance(error, kind))
            raise Unauthorized(next(known, "this is no token, or a broken one")) from None
        symbols = claims.get("symbols")
        if symbols is not None:
            if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
                raise Unauthorized("the token's `symbols` must be a list of text")
            symbols = frozenset(symbols)
        return Grant(symbols, float(claims["exp"]))


def bearer_token(headers: Mapping[str, str]) -> str | None:
    """The token of an `Authorization: Bearer` header."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def load_verifier(algorithm: Algorithm, audience: str, public_key: Path | None, environ: Mapping[str, str]) -> Verifier:
    """The verifier whose key is in `public_key` (RS256), or in INGESTOR_JWT_SECRET: the environment, or a file of that
    name in $CREDENTIALS_DIRECTORY (HS256). Raises ConfigError.
    """
    if (algorithm == "RS256") != (public_key is not None):
        raise ConfigError("--public-key FILE belongs to --jwt RS256, and to no other")
    if public_key is None:
        return Verifier(algorithm, _read_secret(environ), audience)
    try:
        key = load_pem_public_key(public_key.read_bytes())
    except OSError as error:
        raise ConfigError(f"{public_key}: can't be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{public_key}: no public key in PEM format") from None
    if not isinstance(key, RSAPublicKey) or key.key_size < _RSA_MIN_BITS:
        raise ConfigError(f"{public_key}: RS256 needs an RSA key of {_RSA_MIN_BITS} bits or more")
    return Verifier(algorithm, key, audience)


def _read_secret(environ: Mapping[str, str]) -> str:
    secret = environ.get(SECRET_NAME, "")
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not secret and directory is not None:
        path = Path(directory, SECRET_NAME)
        try:
            secret = path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            pass  # told below, with what is to be done
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"{path}: can't be read as text") from None
    if len(secret.encode()) < _SECRET_MIN_BYTES:
        found = "is not set" if not secret else "is too short"
        raise ConfigError(
            f"{SECRET_NAME} {found}: --jwt HS256 needs a secret of {_SECRET_MIN_BYTES} bytes or more, in the"
            " environment or as a credential"
        )
    return secret


def find_refusal(headers: Headers, hosts: Hosts) -> str | None:
    """Why these headers are refused: a host that isn't ours, or an origin that is neither that host nor permitted; None
    where they aren't.
    """
    named = headers.getlist("host")
    if len(named) != 1 or not hosts.hold(named[0]):
        return "unknown host: call this server by a name it was told of (--allow-host)"
    for origin in headers.getlist("origin"):
        if origin.lower() in hosts.origins:
            continue
        match = _ORIGIN.fullmatch(origin)
        if match is None or match["authority"].lower() != named[0].lower():
            return "foreign origin: only pages of this server may call it from a browser; --allow-origin permits others"
    return None


def share_with(headers: Headers, hosts: Hosts) -> dict[str, str]:
    """What a browser must read before it shows an answer to a page of another origin that is permitted."""
    origin = headers.get("origin", "")
    if origin.lower() not in hosts.origins:
        return {}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Headers": "Authorization",
        "Access-Control-Expose-Headers": "X-Next-Cursor",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "Vary": "Origin",
    }


class HostGuard:
    """Refuses strangers with 403 before a request is read, and adds the headers that keep a browser strict."""

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_strictly(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_SECURITY | shared)
            await send(message)

        headers = Headers(scope=scope)
        shared = share_with(headers, self._hosts)
        if reason := find_refusal(headers, self._hosts):
            log.warning("request.refused", reason=reason, host=headers.get("host"), origin=headers.get("origin"))
            await JSONResponse({"error": reason}, 403)(scope, receive, send_strictly)
        elif shared and scope["type"] == "http" and scope["method"] == "OPTIONS":
            # What a browser asks before it sends a token.
            await Response(status_code=204)(scope, receive, send_strictly)
        else:
            await self._app(scope, receive, send_strictly)
