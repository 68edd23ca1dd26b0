"""The far end: a program of its own that runs agents and imports only `kernel.wire`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker.run import run_broker as run_broker
    from broker.settings import BrokerSettings as BrokerSettings
    from broker.settings import Registration as Registration
    from broker.settings import Unusable as Unusable

_HOMES = {"run_broker": "run", "BrokerSettings": "settings", "Registration": "settings", "Unusable": "settings"}

__all__ = ["BrokerSettings", "Registration", "Unusable", "run_broker"]


def __getattr__(name: str) -> Any:
    """Lazily: the keeper, which lives as long as an agent, imports this package too and needs none of it."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'broker' has no attribute {name!r}")
    return getattr(import_module(f"broker.{_HOMES[name]}"), name)
