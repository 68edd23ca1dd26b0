"""The keys of this deployment: all derived from one secret, each for one use."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kernel.errors import Misconfigured
from kernel.private_file import write_private

_NONCE = 12
SECRET_FILE = Path("var/session-secret")
"""Where a hub that is alone on its database keeps the secret that it made."""
SECRET_LENGTH = 32
"""The least characters of SESSION_SECRET."""


class Keyring:
    """Derives keys with HKDF-SHA256, one label a use, and seals values that must not stand open in a row."""

    def __init__(self, secret: str) -> None:
        if len(secret) < SECRET_LENGTH:
            raise Misconfigured(
                f"SESSION_SECRET has {len(secret)} characters; it needs {SECRET_LENGTH} or more: "
                "make one with `openssl rand -hex 32`"
            )
        self._secret = secret.encode()

    def derive(self, label: str, length: int = 32) -> bytes:
        return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=label.encode()).derive(self._secret)

    def seal(self, label: str, value: bytes, bound_to: str) -> bytes:
        """AES-GCM. `bound_to` names the row: a sealed value moved to another row does not open."""
        nonce = os.urandom(_NONCE)
        return nonce + AESGCM(self.derive(label)).encrypt(nonce, value, bound_to.encode())

    def open(self, label: str, sealed: bytes, bound_to: str) -> bytes:
        """Raises: Misconfigured when it was sealed under another SESSION_SECRET."""
        try:
            return AESGCM(self.derive(label)).decrypt(sealed[:_NONCE], sealed[_NONCE:], bound_to.encode())
        except InvalidTag as fault:
            raise Misconfigured(
                f"the database was written under another SESSION_SECRET, a stored value ({label}) does not open: "
                f"start with that one (a hub that is alone keeps its own in {SECRET_FILE}, and reads it when "
                "SESSION_SECRET is not set)"
            ) from fault


BROKER_SECRETS = "pointsman/seal/broker-secret"
JOIN_TOKENS = "pointsman/seal/join-token"
INTENT_VALUES = "pointsman/seal/intent-values"
AGENT_TOKENS = "pointsman/jwt/agent"


def session_secret(*, alone: bool) -> str:
    """SESSION_SECRET; a hub that is alone on its database makes its own at the first start.

    Raises: Misconfigured when several hubs share a database and none is given.
    """
    given = os.environ.get("SESSION_SECRET")
    if given is not None:
        return given
    if not alone:
        raise Misconfigured(
            "SESSION_SECRET is not set: hubs that share a database need the same one; "
            "make it once with `openssl rand -hex 32`"
        )
    if not SECRET_FILE.exists():
        write_private(SECRET_FILE, os.urandom(32).hex().encode())
    return SECRET_FILE.read_text().strip()


def known_secret() -> str | None:
    """SESSION_SECRET, or what a hub that is alone keeps; None when there is neither. Nothing is made."""
    given = os.environ.get("SESSION_SECRET")
    if given is None and SECRET_FILE.exists():
        return SECRET_FILE.read_text().strip()
    return given
