"""The only names that a plugin may import."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernel.agent import *
    from kernel.broker import *
    from kernel.clock import *
    from kernel.config import BusSettings as BusSettings
    from kernel.config import Duration as Duration
    from kernel.config import Rate as Rate
    from kernel.config import Settings as Settings
    from kernel.config import Size as Size
    from kernel.credentials import open_secret as open_secret
    from kernel.environment import *
    from kernel.errors import *
    from kernel.finding import *
    from kernel.hookspecs import hookimpl as hookimpl
    from kernel.host import *
    from kernel.intent import *
    from kernel.keyring import *
    from kernel.message import *
    from kernel.node import *
    from kernel.project import *
    from kernel.route import *
    from kernel.session import *
    from kernel.signals import *
    from kernel.storage import *
    from kernel.tokens import AGENT_AUDIENCE as AGENT_AUDIENCE
    from kernel.tokens import AGENT_ISSUER as AGENT_ISSUER
    from kernel.tokens import agent_key as agent_key
    from kernel.transition import *
    from kernel.wire import CLOCK_WINDOW as CLOCK_WINDOW
    from kernel.wire import canonical_string as canonical_string
    from kernel.wire import covered as covered
    from kernel.wire import is_nonce as is_nonce
    from kernel.wire import is_signed as is_signed

# Imported at first use: who needs `kernel.wire` alone, as the broker does, does not pay for the rest.
_NAMES = {
    "agent": (
        "ACTIVITIES Agent AgentChange AgentId EDGES HOLDS_MESSAGES LASTING Phase RESTING Report Reported "
        "applied is_current"
    ),
    "broker": "Broker BrokerId Epoch Kind Provider Session SessionId",
    "clock": "Clock Instant SYSTEM is_uuid",
    "config": "BusSettings Duration Rate Settings Size",
    "credentials": "open_secret",
    "environment": "Environment Secret merged",
    "errors": (
        "AlreadyExists BrokerAuthFailed BrokerOffline BrokerPaused BrokerTimeout ClockSkew Conflict Draining "
        "Ended ExpiredJoinToken Failure Forbidden HeadersTooLarge IdempotencyConflict Invalid "
        "InvalidJoinToken InvalidSignature InvalidState LinkLost Malformed MethodNotAllowed Misbehaved "
        "Misconfigured NoRuntimeBroker NotFound OutcomeUnknown OutcomeUnrecorded Overtaken PayloadTooLarge "
        "PointsmanError RateLimited Refused ReplayDetected RuntimeFailed StorageUnavailable "
        "Unauthenticated Unavailable Unprocessable VersionConflict WrongNode"
    ),
    "finding": "Finding Level",
    "hookspecs": "hookimpl",
    "host": "Gauges Host",
    "intent": "ENDED ENDS_RUN Intent IntentId Lane Op STARTS STEPS State lane_of",
    "keyring": "AGENT_TOKENS BROKER_SECRETS INTENT_VALUES Keyring known_secret session_secret",
    "message": "Message TEXT_LIMIT",
    "node": "Node NodeId",
    "project": "Project is_slug slug_of",
    "route": (
        "PREDICATES PlacementRequest Route RouteAdvice RouteRequest advice_for agrees direct_applies "
        "forward_applies hold_applies local_applies refuse_applies standard"
    ),
    "session": "Decision Principal PrincipalKind Request Resource",
    "signals": "BusState InProcessSignals Mailbox Signal SignalKind Signals",
    "storage": (
        "AgentEdit AgentFilter AgentView Agents BrokerEdit BrokerJoin BrokerRegistration Brokers Cancelled "
        "Changed ClaimRequest Claims End Era Held IdempotencyKey IntentFilter Intents Keyset Known LaneView NewIntent "
        "Nodes Page Progress ProjectEdit Projects PutBack Reaped Recorded Recording Recovered Registered Released "
        "Repeated ReportOutcome SchemaState SealedSecret SessionClaim SessionClaimed Sessions Settled Sql Storage "
        "Unfinished User"
    ),
    "tokens": "AGENT_AUDIENCE AGENT_ISSUER agent_key",
    "transition": "ACCEPTED REFUSED ROUTED Transition",
    "wire": "CLOCK_WINDOW canonical_string covered is_nonce is_signed",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}


if not TYPE_CHECKING:  # a type checker would take it for a promise that every name exists

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"kernel has no {name} for plugins; `dir(kernel)` lists what it has")
        value = getattr(import_module(f"kernel.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(_HOME)
