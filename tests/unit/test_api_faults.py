"""Errors as answers: envelope, status, headers."""

from __future__ import annotations

import logging
from typing import Any

import falcon
import msgspec
import pytest

from kernel import errors
from kernel.api.faults import Fault, fault_of
from kernel.errors import Ended, Failure, PointsmanError


def every_error(root: type[PointsmanError] = PointsmanError) -> list[type[PointsmanError]]:
    """Of the kernel: what a plugin makes of one for itself leaves as the one that it is."""
    children = [child for child in root.__subclasses__() if child.__module__.startswith("kernel.")]
    return [root, *(error for child in children for error in every_error(child))]


def build(kind: type[PointsmanError]) -> PointsmanError:
    if kind is errors.Invalid:
        return errors.Invalid(fields={"name": "is required"})
    if kind is errors.Misbehaved:
        return errors.Misbehaved(plugin="p", hook="h")
    if kind is Ended:
        return Ended(Failure(code="runtime_error", message="no", status=502))
    return kind()


def body_of(fault: Fault) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(fault.body)["error"]
    return body


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_leaves_in_the_same_envelope(kind: type[PointsmanError]) -> None:
    fault = fault_of(build(kind), "request-1")
    assert set(body_of(fault)) == {"code", "message", "details", "requestId"}
    assert body_of(fault)["requestId"] == "request-1"
    assert body_of(fault)["message"]
    assert 400 <= fault.status < 600


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_503_and_429_says_when_to_come_back(kind: type[PointsmanError]) -> None:
    fault = fault_of(build(kind), "")
    assert ("Retry-After" in fault.headers) == (fault.status in (429, 503))


def test_a_pause_is_told_in_whole_seconds_and_never_as_none() -> None:
    assert fault_of(errors.RateLimited(retry_after=2.1), "").headers["Retry-After"] == "3"
    assert fault_of(errors.RateLimited(retry_after=0.0), "").headers["Retry-After"] == "1"


def test_the_intent_that_an_error_is_about_is_named() -> None:
    error = errors.OutcomeUnknown()
    error.dispatch_id = "intent-1"
    assert fault_of(error, "").headers["X-Dispatch-Id"] == "intent-1"


def test_an_end_keeps_its_own_code_and_status() -> None:
    failure = Failure(code="poison", message="three processes died of it", status=502, details={"crashes": 3})
    fault = fault_of(Ended(failure), "")
    assert fault.status == 502
    assert body_of(fault)["code"] == "poison"
    assert body_of(fault)["details"] == {"crashes": 3}


def test_what_nobody_meant_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        fault = fault_of(RuntimeError("password is hunter2"), "request-1")
    assert fault.status == 500
    assert body_of(fault)["code"] == "internal_error"
    assert b"hunter2" not in fault.body
    assert "request-1" in caplog.text


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (falcon.HTTPRouteNotFound(), "not_found", 404),
        (falcon.HTTPMethodNotAllowed(["GET"]), "method_not_allowed", 405),
        (falcon.HTTPBadRequest(description="no"), "invalid_request", 400),
        (falcon.HTTPUnsupportedMediaType(), "invalid_request", 415),
        (falcon.HTTPInternalServerError(), "internal_error", 500),
    ],
    ids=lambda value: value.title if isinstance(value, falcon.HTTPError) else str(value),
)
def test_the_frameworks_refusals_are_told_in_our_words(error: falcon.HTTPError, code: str, status: int) -> None:
    fault = fault_of(error, "")
    assert (fault.status, body_of(fault)["code"]) == (status, code)


def test_a_wrong_method_is_answered_with_the_right_ones() -> None:
    assert fault_of(falcon.HTTPMethodNotAllowed(["GET", "POST"]), "").headers["Allow"] == "GET, POST"
