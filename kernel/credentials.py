"""What a broker proves itself with: join tokens, and secrets that stand sealed in their rows."""

from __future__ import annotations

import hashlib
import secrets

from kernel.keyring import BROKER_SECRETS, JOIN_TOKENS, Keyring

JOIN_TOKEN_LIVES = 3_600.0
"""Seconds."""
SECRET_BYTES = 32
_PREFIX = "pm_join_"


def new_join_token() -> str:
    return _PREFIX + secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """What is stored of a token that was handed out; it has enough chance in it to need no salt."""
    return hashlib.sha256(token.encode()).hexdigest()


def seal_token(keyring: Keyring, token: str, key: str) -> bytes:
    """For a repeat of the call that was given it. `key` is that call's Idempotency-Key."""
    return keyring.seal(JOIN_TOKENS, token.encode(), key)


def open_token(keyring: Keyring, sealed: bytes, key: str) -> str:
    """Raises: Misconfigured when it was sealed under another SESSION_SECRET."""
    return keyring.open(JOIN_TOKENS, sealed, key).decode()


def new_secret() -> bytes:
    return secrets.token_bytes(SECRET_BYTES)


def seal_secret(keyring: Keyring, secret: bytes, broker_id: str, key_id: str) -> bytes:
    return keyring.seal(BROKER_SECRETS, secret, f"{broker_id}/{key_id}")


def open_secret(keyring: Keyring, sealed: bytes, broker_id: str, key_id: str) -> bytes:
    """Raises: Misconfigured when it was sealed under another SESSION_SECRET."""
    return keyring.open(BROKER_SECRETS, sealed, f"{broker_id}/{key_id}")
