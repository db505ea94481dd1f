"""Certificates for TLS on this machine, made by openssl while the tests run."""

import subprocess
from pathlib import Path
from typing import NamedTuple

from requirements import require


class Certificate(NamedTuple):
    """Paths of PEM files. The certificate is its own authority."""

    certificate: Path
    key: Path


def make_certificate(folder: Path, name: str = "venue") -> Certificate:
    """A certificate for localhost and 127.0.0.1. Skips where there is no openssl."""
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    command = [
        *(require("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        *("-keyout", str(made.key), "-out", str(made.certificate)),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return made
