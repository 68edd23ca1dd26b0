"""What keeps something from being a plugin, told in words that name the plugin and the hook."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

from kernel.loader.check import shape_of


def complaints(body: str, *, module: bool = False) -> list[tuple[str, str]]:
    """What is said about a class with `body`."""
    source = textwrap.dedent(body)
    if not module:
        source = "class Plugin:\n    api = 1\n" + textwrap.indent(source, "    ")
    scope: dict[str, Any] = {"__name__": "mine"}
    exec("import msgspec\nfrom kernel import hookimpl\n" + source, scope)
    told: list[tuple[str, str]] = []
    shape_of(scope["Plugin"], "mine", lambda part, complaint: told.append((part, complaint)))
    return told


@pytest.mark.parametrize(
    ("body", "part", "told"),
    [
        (
            "@hookimpl\ndef rank_rout(self, request): ...",
            "rank_rout",
            "expected the name of a hook, found rank_rout: did you mean rank_route?",
        ),
        (
            "@hookimpl\ndef rank_route(self, requests): ...",
            "rank_route",
            "expected arguments among request, found requests: did you mean request?",
        ),
        (
            "@hookimpl\ndef offer_token(self, hub): ...",
            "offer_token",
            "expected arguments among no arguments, found hub: remove it",
        ),
        (
            "@hookimpl\nasync def rank_route(self, request): ...",
            "rank_route",
            "expected `def rank_route`, found async def: it must answer at once, without I/O",
        ),
        (
            "@hookimpl\ndef around_dispatch(self, intent, call_next): ...",
            "around_dispatch",
            "expected `async def around_dispatch`, found def: it is awaited",
        ),
        (
            "@hookimpl\nasync def on_transition(self, transition): ...",
            "on_transition",
            "expected `def on_transition`, found async def: nobody awaits it; hand the work to a task of your own",
        ),
        (
            "@hookimpl\nasync def around_dispatch(self, intent, call_next): yield",
            "around_dispatch",
            "expected `async def around_dispatch`, found an asynchronous generator: it is awaited",
        ),
        (
            "@hookimpl\ndef on_request(self, *, route): ...",
            "on_request",
            "expected route by position, found it after *: remove the *",
        ),
        (
            "@hookimpl(tryfirst=True)\ndef rank_route(self, request): ...",
            "rank_route",
            "expected no tryfirst, found it: the order is the YAML file's: write `before:` or move the line",
        ),
        (
            "@hookimpl(trylast=True)\ndef rank_route(self, request): ...",
            "rank_route",
            "expected no trylast, found it: the order is the YAML file's: write `after:` or move the line",
        ),
        (
            "@hookimpl(wrapper=True)\ndef rank_route(self, request): yield",
            "rank_route",
            "expected no wrapper, found it: implement around_dispatch, or a hook of your own",
        ),
        (
            "@hookimpl(hookwrapper=True)\ndef rank_route(self, request): yield",
            "rank_route",
            "expected no hookwrapper, found it: implement around_dispatch, or a hook of your own",
        ),
        (
            "def rank_route(self, request): ...\n@hookimpl\ndef on_stage(self): ...",
            "rank_route",
            "expected @hookimpl on it, found none: mark it, or call it something else",
        ),
        ("", "", "expected at least one function marked @hookimpl, found none"),
        (
            "api = 2\n@hookimpl\ndef on_stage(self): ...",
            "api",
            "expected `api = 1`, found 2: this pointsman speaks version 1",
        ),
        (
            "api = None\n@hookimpl\ndef on_stage(self): ...",
            "api",
            "expected `api = 1`, found None: this pointsman speaks version 1",
        ),
        (
            "class Config: ...\n@hookimpl\ndef on_stage(self): ...",
            "Config",
            "expected a msgspec.Struct, found <class 'mine.Plugin.Config'>",
        ),
    ],
)
def test_misfit_is_told(body: str, part: str, told: str) -> None:
    assert complaints(body) == [(part, told)]


def test_all_misfits_are_told_at_once() -> None:
    body = """
    @hookimpl
    async def rank_route(self, question): ...
    @hookimpl
    def rank_broker(self): ...
    """
    assert [part for part, _ in complaints(body)] == ["rank_broker", "rank_route", "rank_route"]


@pytest.mark.parametrize(
    "body",
    [
        "@hookimpl\ndef on_request(self, status, route): ...",
        "@hookimpl\ndef on_request(self, status, more=3): ...",
        "@hookimpl\ndef on_stage(self): ...",
        "@hookimpl(specname='on_stage')\ndef measured(self, seconds): ...",
        "@hookimpl(optionalhook=True)\ndef of_a_later_version(self, thing): ...\n@hookimpl\ndef on_stage(self): ...",
        "def helper(self, rank_route): ...\n@hookimpl\ndef on_stage(self): ...",
    ],
)
def test_fit_is_not_complained_about(body: str) -> None:
    assert complaints(body) == []
