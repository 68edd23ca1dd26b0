"""Every way of failing, by name: five families, told apart by what the reader must do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error as a value: what an intent keeps, and what travels to the caller on any hub."""

    code: str
    message: str
    status: int
    details: dict[str, Any] | None = None


class PointsmanError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.details = dict(details) if details else None
        self.retry_after = retry_after
        self.dispatch_id: str | None = None
        """The intent that this error is about, where there is one."""
        super().__init__(self.message)

    def as_failure(self) -> Failure:
        return Failure(code=self.code, message=self.message, status=self.status, details=self.details)


class Ended(PointsmanError):
    """The operation ended otherwise than done; code, status and message are those that its intent keeps."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message, details=failure.details, retry_after=1.0 if failure.status == 503 else None)
        self.failure = failure

    def as_failure(self) -> Failure:
        return self.failure


# -- Refused: the asker changes something ------------------------------------------------------------------


class Refused(PointsmanError):
    """The request cannot be served as it is: change it."""

    code = "invalid_request"
    status = 400


class Malformed(Refused):
    """The body is not what this route takes: send a JSON object."""


class Invalid(Refused):
    """A field has a value that this route does not take; `details.fields` says which and why."""

    code = "validation_error"

    def __init__(self, message: str | None = None, *, fields: Mapping[str, str]) -> None:
        told = message or "; ".join(f"{name}: {why}" for name, why in fields.items())
        super().__init__(told, details={"fields": dict(fields)})


class Unauthenticated(Refused):
    """This route needs a token or a broker's signature: send `Authorization: Bearer …`."""

    code = "unauthorized"
    status = 401


class InvalidSignature(Unauthenticated):
    """The signature does not match the request: check secret, path, query, body and signed headers."""

    code = "invalid_signature"


class ClockSkew(Unauthenticated):
    """The timestamp is more than five minutes from the hub's clock: set the broker's clock."""

    code = "clock_skew"


class ReplayDetected(Unauthenticated):
    """This nonce was used before: make a new one for each request."""

    code = "replay_detected"


class BrokerAuthFailed(Unauthenticated):
    """The broker is unknown, deleted or has no live secret: register and join it again."""

    code = "broker_auth_failed"


class InvalidJoinToken(Unauthenticated):
    """The join token is unknown or was used: register the broker again for a new one."""

    code = "invalid_join_token"


class ExpiredJoinToken(Unauthenticated):
    """The join token is older than one hour: register the broker again for a new one."""

    code = "expired_join_token"


class Forbidden(Refused):
    """The caller may not do this."""

    code = "forbidden"
    status = 403


class NotFound(Refused):
    """There is no such thing, or not any more."""

    code = "not_found"
    status = 404


class MethodNotAllowed(Refused):
    """This route does not know the method; `Allow` lists those it knows."""

    code = "method_not_allowed"
    status = 405


class Conflict(Refused):
    """Something with that name exists already."""

    code = "conflict"
    status = 409


class AlreadyExists(Conflict):
    """Something with that name exists already."""

    code = "already_exists"


class VersionConflict(Conflict):
    """It was changed since it was read: read it again and repeat with its new stateVersion."""

    code = "version_conflict"


class InvalidState(Conflict):
    """What the agent is doing now does not allow this."""

    code = "invalid_state"


class IdempotencyConflict(Conflict):
    """This Idempotency-Key was used for another request: make a new key for each request."""

    code = "idempotency_conflict"


class PayloadTooLarge(Refused):
    """The body is larger than this route takes."""

    code = "payload_too_large"
    status = 413


class Unprocessable(Refused):
    """The request is understood but cannot be carried out as it is."""

    code = "unprocessable"
    status = 422


class NoRuntimeBroker(Unprocessable):
    """No broker was named and none could be chosen: start one; if there are several, name one with runtimeBrokerId."""

    code = "no_runtime_broker"


class RateLimited(Refused):
    """Too many requests: wait as long as Retry-After says."""

    code = "rate_limited"
    status = 429


class HeadersTooLarge(Refused):
    """The request's head is larger than the hub takes: send fewer or shorter headers."""

    code = "headers_too_large"
    status = 431


class RuntimeFailed(Refused):
    """The broker answered with an error; `details` holds what it said."""

    code = "runtime_error"
    status = 502


# -- Overtaken: somebody else owns it now; drop it, never retry ----------------------------------------------


class Overtaken(PointsmanError):
    """Somebody else owns this now: what was about to be written is dropped."""

    code = "overtaken"
    status = 409


class LinkLost(Overtaken):
    """The broker's socket went away before it answered: the intent is driven again."""


# -- Unavailable: wait and try again -------------------------------------------------------------------------


class Unavailable(PointsmanError):
    """Not now: try again after Retry-After."""

    code = "unavailable"
    status = 503

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = 1.0,
    ) -> None:
        super().__init__(message, details=details, retry_after=retry_after)


class StorageUnavailable(Unavailable):
    """The database does not answer: nothing was done. Try again."""


class BrokerOffline(Unavailable):
    """Nobody holds the broker's socket: start the broker, or send `Prefer: deliver=hold`."""

    code = "runtime_broker_unavailable"


class BrokerPaused(Unavailable):
    """The broker is paused: resume it, or send `Prefer: deliver=hold`."""

    code = "runtime_broker_paused"


class Draining(Unavailable):
    """This hub is stopping: repeat the request, another hub takes it."""

    code = "draining"


class OutcomeUnrecorded(Unavailable):
    """The broker answered but the answer could not be stored yet: ask for the dispatch again."""

    code = "outcome_unrecorded"


class WrongNode(Unavailable):
    """This can only be asked of the hub that holds the broker's socket."""

    code = "wrong_node"


class BrokerTimeout(Unavailable):
    """The broker did not take it in time: it did not happen and will not."""

    code = "broker_timeout"
    status = 504


class OutcomeUnknown(Unavailable):
    """It may or may not have happened: look at the agent before repeating it."""

    code = "outcome_unknown"
    status = 504


# -- Misbehaved: a plugin broke its contract -----------------------------------------------------------------


class Misbehaved(PointsmanError):
    """A plugin broke its contract."""

    code = "plugin_fault"
    status = 500

    def __init__(self, message: str | None = None, *, plugin: str, hook: str) -> None:
        self.plugin = plugin
        self.hook = hook
        super().__init__(message or f"plugin {plugin} broke the contract of {hook}", details={"plugin": plugin})


# -- Misconfigured: nothing started --------------------------------------------------------------------------


class Misconfigured(PointsmanError):
    """The configuration cannot be used: nothing was started."""

    code = "misconfigured"
