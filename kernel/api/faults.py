"""Errors as HTTP answers: one envelope, whatever went wrong."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus

import falcon
import msgspec

from kernel.errors import Ended, Failure, Malformed, MethodNotAllowed, NotFound, PayloadTooLarge, PointsmanError

log = logging.getLogger(__name__)

RETRY_AFTER = 1.0
"""Seconds, where a 503 or 429 says nothing of its own."""
UNEXPECTED = Failure(code="internal_error", message="Something went wrong in the hub; its log says what.", status=500)


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One failure as it leaves: status, headers, body."""

    status: int
    headers: dict[str, str]
    body: bytes


def fault_of(error: Exception, request_id: str) -> Fault:
    """What the client is told. An error that nobody meant is logged with its trace and told as `internal_error`."""
    headers: dict[str, str] = {}
    if isinstance(error, falcon.HTTPError):
        headers.update(_headers(error))
        error = _ours(error)
    if isinstance(error, PointsmanError):
        failure = error.as_failure()
        if error.dispatch_id:
            headers["X-Dispatch-Id"] = error.dispatch_id
        pause = error.retry_after
    else:
        log.error("request %s failed unexpectedly", request_id, exc_info=error)
        failure, pause = UNEXPECTED, None
    if failure.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if failure.status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(pause or RETRY_AFTER)))
    return Fault(status=failure.status, headers=headers, body=envelope(failure, request_id))


def envelope(failure: Failure, request_id: str) -> bytes:
    return msgspec.json.encode(
        {
            "error": {
                "code": failure.code,
                "message": failure.message,
                "details": failure.details or {},
                "requestId": request_id,
            }
        }
    )


def _headers(error: falcon.HTTPError) -> dict[str, str]:
    told = error.headers or {}
    return {name: str(value) for name, value in (told.items() if hasattr(told, "items") else told)}


def _ours(error: falcon.HTTPError) -> PointsmanError:
    """The framework's own refusals in our words."""
    words = error.description or error.title or HTTPStatus(error.status_code).phrase
    match error.status_code:
        case 404:
            return NotFound("there is no such path")
        case 405:
            allowed = dict(_headers(error)).get("Allow", "")
            return MethodNotAllowed(f"this path takes {allowed or 'other methods'}")
        case 413:
            return PayloadTooLarge(words)
        case 400:
            return Malformed(words)
        case status:
            code = "internal_error" if status >= 500 else "invalid_request"
            return Ended(Failure(code=code, message=words, status=status))
