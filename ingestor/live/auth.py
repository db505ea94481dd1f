"""Who may ask for what: tokens (JWT, RFC 7519) of one configured algorithm, checked by PyJWT."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

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


class Unauthorized(Exception):
    """The token is refused; the argument is the reason, without the token."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What somebody may see, and until when."""

    symbols: frozenset[str] | None = None
    """None: all."""
    expires_at: float | None = None
    """In seconds since 1970; None: never."""

    def allows(self, symbol: str) -> bool:
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
        """What this token grants. Raises Unauthorized."""
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
            raise Unauthorized(_sentence(error)) from None
        return Grant(_allowed_symbols(claims), float(claims["exp"]))


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
    key = _read_secret(environ) if public_key is None else _read_public_key(public_key)
    return Verifier(algorithm, key, audience)


def _sentence(error: jwt.PyJWTError) -> str:
    return next((text for kind, text in _SENTENCES if isinstance(error, kind)), "this is no token, or a broken one")


def _allowed_symbols(claims: Mapping[str, Any]) -> frozenset[str] | None:
    symbols = claims.get("symbols")
    if symbols is None:
        return None
    if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
        raise Unauthorized("the token's `symbols` must be a list of text")
    return frozenset(symbols)


def _read_secret(environ: Mapping[str, str]) -> str:
    secret = environ.get(SECRET_NAME, "") or _read_credential(environ.get("CREDENTIALS_DIRECTORY"))
    if len(secret.encode()) < _SECRET_MIN_BYTES:
        found = "is not set" if not secret else "is too short"
        raise ConfigError(
            f"{SECRET_NAME} {found}: --jwt HS256 needs a secret of {_SECRET_MIN_BYTES} bytes or more, in the"
            " environment or as a credential"
        )
    return secret


def _read_credential(directory: str | None) -> str:
    if directory is None:
        return ""
    path = Path(directory, SECRET_NAME)
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path}: can't be read as text") from None


def _read_public_key(path: Path) -> RSAPublicKey:
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path}: no public key in PEM format") from None
    if not isinstance(key, RSAPublicKey) or key.key_size < _RSA_MIN_BITS:
        raise ConfigError(f"{path}: RS256 needs an RSA key of {_RSA_MIN_BITS} bits or more")
    return key
