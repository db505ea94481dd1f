"""How a connection ended, in words: they go into the log and the ledger, so that no secret may be in them."""

import ssl
from collections.abc import Collection

_NO_STATUS = 1005
_CLOSE_NAMES = {
    1000: "normal",
    1001: "going away",
    1005: "no code",
    1008: "policy",
    1011: "internal error",
    1012: "restart",
    1013: "try again later",
}
"""RFC 6455, 7.4."""


def read_close(body: bytes, secrets: Collection[str]) -> tuple[int, str]:
    """The code and the reason of a close frame; the library lets only whole ones pass: no body, or both.

    A venue may quote the key that it dislikes: `secrets` are blotted out.
    """
    code = int.from_bytes(body[:2]) if body else _NO_STATUS
    reason = body[2:].decode("utf-8", "replace")
    for secret in secrets:
        reason = reason.replace(secret, "***")
    return code, reason


def describe_close(code: int, reason: str) -> str:
    """Both, or what the code means where there is no reason."""
    return f"{code} {reason or _CLOSE_NAMES.get(code, '')}".rstrip()


def explain(error: Exception) -> str:
    """What happened, without the URL that an exception may carry."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the venue's certificate is not trusted ({error.verify_message})"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    text = str(error) or type(error).__name__
    return type(error).__name__ if "://" in text or "token=" in text else text
