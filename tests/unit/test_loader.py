"""From the lines under `plugins:` to plugins that are called, in the order of the file."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel import config
from kernel.errors import Misconfigured
from kernel.loader import Loaded, checked_settings, load
from kernel.node import NodeId

pytestmark = pytest.mark.anyio

STORAGE = """
from kernel import hookimpl

class Plugin:
    name = "store"
    api = 1

    @hookimpl
    async def open_storage(self, config):
        return {"settings": config}
"""

SAYS = """
from kernel import Route, RouteAdvice, hookimpl

class Plugin:
    api = 1
    name = "{name}"

    @hookimpl
    def rank_route(self, request):
        return None
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a backend in it, on the import path; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "store.py").write_text(STORAGE)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def start(folder: Path, plugins: str, *sets: str, **environ: str) -> Loaded:
    path = write(
        folder, "hub.yaml", "plugins:\n  - use: ./store.py\n" + textwrap.indent(textwrap.dedent(plugins), "  ")
    )
    return load(config.load(path, sets, environ), environ=environ)


def mistakes(folder: Path, plugins: str, *sets: str, **environ: str) -> list[str]:
    with pytest.raises(Misconfigured) as caught:
        start(folder, plugins, *sets, **environ)
    assert caught.value.details is not None
    told: list[str] = caught.value.details["mistakes"]
    return [line.removeprefix(f"{folder}/hub.yaml:") for line in told]


def names(loaded: Loaded) -> list[str]:
    return [row.name for row in loaded.rows() if row.state == "on"]


# -- what `use` may name -------------------------------------------------------------------------------------


def test_file_is_loaded_from_the_working_directory(folder: Path) -> None:
    write(folder, "sub/mine.py", SAYS.format(name="mine"))
    loaded = start(folder, "- use: ./sub/mine.py")
    assert loaded.hooks.rank_route.plugins == ("mine",)
    assert [row.origin for row in loaded.rows()] == ["store.py", "sub/mine.py"]


def test_two_files_of_one_name_are_two_plugins(folder: Path) -> None:
    write(folder, "a/mine.py", SAYS.format(name="a"))
    write(folder, "b/mine.py", SAYS.format(name="b"))
    assert start(folder, "- use: ./a/mine.py\n- use: ./b/mine.py").hooks.rank_route.plugins == ("a", "b")


def test_module_is_loaded_by_its_dotted_name(folder: Path) -> None:
    write(folder, "my_company/__init__.py", "")
    write(folder, "my_company/sticky.py", SAYS.format(name="sticky"))
    assert names(start(folder, "- use: my_company.sticky")) == ["store", "sticky"]


def test_attribute_of_a_module_is_loaded(folder: Path) -> None:
    write(folder, "my_company.py", SAYS.format(name="sticky").replace("class Plugin", "class Sticky"))
    assert names(start(folder, "- use: my_company:Sticky")) == ["store", "sticky"]
    assert names(start(folder, "- use: ./my_company.py:Sticky")) == ["store", "sticky"]


def test_declared_name_is_loaded_from_the_distribution_that_declares_it(folder: Path) -> None:
    write(folder, "their_routes.py", SAYS.format(name="theirs"))
    write(folder, "their-2.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: their\nVersion: 2.0\n")
    write(folder, "their-2.0.dist-info/entry_points.txt", "[pointsman.plugins]\ntheirs = their_routes\n")
    loaded = start(folder, "- use: theirs")
    assert [(row.name, row.origin) for row in loaded.rows()][1] == ("theirs", "their 2.0")


def test_name_that_two_distributions_declare_is_refused(folder: Path) -> None:
    for name in ("one", "two"):
        write(folder, f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        write(folder, f"{name}-1.0.dist-info/entry_points.txt", f"[pointsman.plugins]\nsame = {name}_routes\n")
    (told,) = mistakes(folder, "- use: same")
    assert "one (one_routes) and two (two_routes) both declare it: write the module instead" in told


def test_nobody_takes_the_place_of_what_ships_with_pointsman(folder: Path) -> None:
    write(folder, "raises.py", "1 / 0")
    write(folder, "evil-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    write(folder, "evil-1.0.dist-info/entry_points.txt", "[pointsman.plugins]\nroutes.local = raises\n")
    assert start(folder, "- use: routes.local").rows()[1].origin.startswith("pointsman ")


def test_module_of_functions_is_a_plugin(folder: Path) -> None:
    write(
        folder,
        "functions.py",
        """
        from kernel import hookimpl
        api = 1
        name = "functions"

        @hookimpl
        def rank_route(request):
            return None

        @hookimpl
        def on_stage(seconds, stage):
            pass
        """,
    )
    loaded = start(folder, "- use: functions")
    assert loaded.hooks.rank_route.plugins == loaded.hooks.on_stage.plugins == ("functions",)
    loaded.hooks.on_stage.tell("route", 0.1)
    assert not any(stat.faults for stat in loaded.hooks.stats())


def test_plugin_without_a_name_goes_by_its_use(folder: Path) -> None:
    write(folder, "mine.py", SAYS.replace('    name = "{name}"\n', ""))
    assert names(start(folder, "- use: mine")) == ["store", "mine"]


def test_inherited_hooks_count(folder: Path) -> None:
    write(folder, "mine.py", SAYS.format(name="mine") + "\nclass More(Plugin):\n    name = 'more'\n")
    assert start(folder, "- use: mine:More").hooks.rank_route.plugins == ("more",)


def test_static_and_class_methods_are_implementations(folder: Path) -> None:
    write(
        folder,
        "mine.py",
        """
        from kernel import hookimpl

        class Plugin:
            api = 1

            @staticmethod
            @hookimpl
            def on_stage(seconds):
                assert seconds == 2.0

            @classmethod
            @hookimpl
            def rank_route(cls, request):
                assert cls is Plugin and request == 1
        """,
    )
    hooks = start(folder, "- use: mine").hooks
    hooks.on_stage.tell("route", 2.0)
    hooks.rank_route.ask(1)
    assert [(stat.calls, stat.faults) for stat in hooks.stats() if stat.plugin == "mine"] == [(1, 0), (1, 0)]


# -- what is not there ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "told"),
    [
        ("./nowhere.py", "expected a plugin, found no file nowhere.py (relative paths start at the working directory)"),
        ("routes.locl", "nor a module of that name: did you mean routes.local?"),
        ("no_such_module_anywhere", "found neither a plugin that an installed package declares nor a module"),
        ("mine:Plugn", "found no Plugn in mine: did you mean Plugin?"),
        ("mine:Plugin.x", "found no x in Plugin"),
        ("mine:VALUE", "expected a class, or a module with Plugin or hooks in it, found a int"),
        ("missing_import", "raised ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("missing_sibling", "raised ModuleNotFoundError: No module named 'missing_sibling.other'"),
        ("raises", "found that importing raises raised ZeroDivisionError: division by zero"),
        ("./raises.py", "found that importing raises.py raised ZeroDivisionError: division by zero"),
        ("exits", "raised SystemExit: 3"),
        ("syntax", "raised SyntaxError"),
    ],
)
def test_what_cannot_be_imported_is_told_at_its_line(folder: Path, use: str, told: str) -> None:
    write(folder, "mine.py", SAYS.format(name="mine") + "\nVALUE = 5\n")
    write(folder, "missing_import.py", "import not_installed_anywhere")
    write(folder, "missing_sibling.py", "import missing_sibling.other")
    write(folder, "raises.py", "1 / 0")
    write(folder, "exits.py", "raise SystemExit(3)")
    write(folder, "syntax.py", "def (")
    (line,) = mistakes(folder, f"- use: {use}")
    assert line.startswith(f"3:10: plugins.{use}")
    assert told in line


def test_mistakes_of_all_plugins_are_told_at_once(folder: Path) -> None:
    write(folder, "raises.py", "1 / 0")
    told = mistakes(folder, "- use: ./gone.py\n- use: raises\n- use: routes.nowhere\n  before: [nobody]\n")
    assert [line.split(": ")[0] for line in told] == ["3:10", "4:10", "5:10", "6:14"]


def test_backend_is_needed(folder: Path) -> None:
    path = write(folder, "hub.yaml", "plugins: []")
    with pytest.raises(Misconfigured, match="expected one plugin that implements open_storage, found none"):
        load(config.load(path))


def test_second_backend_is_refused(folder: Path) -> None:
    write(folder, "other.py", STORAGE.replace('"store"', '"other"'))
    (told,) = mistakes(folder, "- use: other")
    assert told == "3:10: plugins.other.open_storage: expected one storage backend, found ./store.py too"


def test_two_plugins_of_one_name_are_refused(folder: Path) -> None:
    write(folder, "a.py", SAYS.format(name="same"))
    write(folder, "b.py", SAYS.format(name="same"))
    (told,) = mistakes(folder, "- use: a\n- use: b")
    assert told == "4:10: plugins.b.name: expected a name of its own, found same, as a is called"


# -- what is not loaded --------------------------------------------------------------------------------------


def test_only_what_is_listed_is_imported(folder: Path) -> None:
    write(folder, "unlisted.py", "raise AssertionError")
    start(folder, "- use: routes.local")
    assert "unlisted" not in sys.modules
    assert "plugins.metrics.log" not in sys.modules or "plugins.routes.local" in sys.modules


@pytest.mark.parametrize(
    ("plugins", "sets", "environ", "reason"),
    [
        ("- use: raises\n  enabled: false\n", (), {}, "enabled: false"),
        ("- use: raises\n", ("plugins.raises.enabled=false",), {}, "enabled: false"),
        ("- use: raises\n", (), {"POINTSMAN_PLUGINS_DISABLE": "nobody, raises"}, "POINTSMAN_PLUGINS_DISABLE"),
        ("- use: ./raises.py\n", (), {"POINTSMAN_PLUGINS_DISABLE": "raises"}, "POINTSMAN_PLUGINS_DISABLE"),
        ("- use: ./raises.py\n", (), {"POINTSMAN_PLUGINS_DISABLE": "./raises.py,"}, "POINTSMAN_PLUGINS_DISABLE"),
    ],
)
def test_what_is_disabled_is_not_imported(
    folder: Path, plugins: str, sets: tuple[str, ...], environ: dict[str, str], reason: str
) -> None:
    write(folder, "raises.py", "1 / 0")
    row = start(folder, plugins, *sets, **environ).rows()[1]
    assert (row.state, row.reason, row.hooks) == ("disabled", reason, ())


def test_safe_mode_loads_only_what_ships_with_pointsman(folder: Path) -> None:
    write(folder, "raises.py", "1 / 0")
    path = write(
        folder,
        "hub.yaml",
        "plugins: [{use: ./raises.py}, {use: raises}, {use: routes.local}, {use: plugins.routes.hold}]",
    )
    with pytest.raises(Misconfigured, match="found none: list a backend") as caught:
        load(config.load(path), safe_mode=True)
    assert "raises" not in caught.value.message


# -- configuration -------------------------------------------------------------------------------------------

CONFIGURED = """
import msgspec
from kernel import Duration, hookimpl

class Plugin:
    api = 1

    class Config(msgspec.Struct, frozen=True, kw_only=True):
        region: str
        every: Duration = 1.0

    def __init__(self, config):
        self.config = config

    @hookimpl
    def rank_route(self, request):
        request.append(self.config)
"""


def test_plugin_is_given_its_typed_configuration(folder: Path) -> None:
    write(folder, "mine.py", CONFIGURED)
    told: list[object] = []
    hooks = start(folder, "- use: mine\n  config: {region: eu}\n", "plugins.mine.every=5m").hooks
    hooks.rank_route.ask(told)
    assert repr(told) == "[Config(region='eu', every=300.0)]"


def test_mistakes_in_a_configuration_are_told_at_their_places(folder: Path) -> None:
    write(folder, "mine.py", CONFIGURED)
    assert mistakes(folder, "- use: mine\n  config:\n    regio: eu\n    every: 5\n") == [
        "5:7: plugins.mine.regio: expected a known setting, found regio: did you mean region?",
        "5:7: plugins.mine.region: expected a value, found nothing",
        "6:14: plugins.mine.every: expected a duration such as 250ms, 5s, 2m or 24h, found 5",
    ]


def test_configuration_of_a_plugin_that_reads_none_is_a_mistake(folder: Path) -> None:
    write(folder, "mine.py", SAYS.format(name="mine"))
    assert mistakes(folder, "- use: mine\n  config: {region: eu}\n") == [
        "4:14: plugins.mine.region: expected nothing, found region: mine reads no configuration"
    ]


def test_plugin_that_refuses_its_configuration_is_told_at_its_line(folder: Path) -> None:
    write(
        folder,
        "mine.py",
        CONFIGURED.replace("self.config = config", "raise Misconfigured('no such region')").replace(
            "import Duration", "import Duration, Misconfigured"
        ),
    )
    (told,) = mistakes(folder, "- use: mine\n  config: {region: eu}\n")
    assert told == "3:10: plugins.mine: cannot be built: no such region"


def test_plugin_that_cannot_be_built_is_told_at_its_line(folder: Path) -> None:
    write(folder, "mine.py", CONFIGURED.replace("self.config = config", "1 / 0"))
    (told,) = mistakes(folder, "- use: mine\n  config: {region: eu}\n")
    assert told == "3:10: plugins.mine: cannot be built: raised ZeroDivisionError: division by zero"


# -- the whole -----------------------------------------------------------------------------------------------


async def test_backend_is_opened_with_the_settings(folder: Path) -> None:
    path = write(folder, "hub.yaml", "plugins: [{use: ./store.py}]")
    settings = config.load(path)
    storage = await load(settings).open_storage(settings, NodeId("n"))
    assert storage == {"settings": settings}  # type: ignore[comparison-overlap]


def test_rows_tell_who_is_on_off_and_switched_off(folder: Path) -> None:
    write(folder, "broken.py", SAYS.format(name="broken").replace("return None", "raise ValueError"))
    write(folder, "other.py", SAYS.format(name="other"))
    loaded = start(folder, "- use: other\n  enabled: false\n- use: broken\n", "breaker.faults=2")
    for _ in range(5):
        loaded.hooks.rank_route.ask(object())
    assert [(row.name, row.state) for row in loaded.rows()] == [
        ("store", "on"),
        ("other", "disabled"),
        ("broken", "switched_off"),
    ]
    row = loaded.rows()[2]
    assert "2 faults within 60 s" in row.reason
    assert [(stat.hook, stat.calls, stat.faults) for stat in row.hooks] == [("rank_route", 2, 2)]


def test_token_is_that_of_the_first_plugin_that_offers_one(folder: Path) -> None:
    write(
        folder,
        "token.py",
        """
        from kernel import hookimpl
        api = 1

        @hookimpl
        def offer_token():
            return "secret"
        """,
    )
    assert start(folder, "").local_token() is None
    assert start(folder, "- use: ./token.py").local_token() == "secret"


def test_mistakes_of_settings_and_of_plugins_are_told_at_once(folder: Path) -> None:
    write(folder, "mine.py", CONFIGURED)
    path = write(
        folder,
        "hub.yaml",
        """
        node: {beat: 5}
        plugins:
          - use: ./store.py
          - use: mine
            config: {regio: eu}
          - use: routes.locl
        """,
    )
    with pytest.raises(Misconfigured) as caught:
        checked_settings(path, ["sweep.stuck=now"], environ={})
    assert caught.value.details is not None
    told = [line.removeprefix(f"{path}:").split(" expected")[0] for line in caught.value.details["mistakes"]]
    assert told == [
        "--set: sweep.stuck:",
        "2:14: node.beat:",
        "6:14: plugins.mine.regio:",
        "6:13: plugins.mine.region:",
        "7:10: plugins.routes.locl.use:",
    ]


def test_entry_that_cannot_be_read_hides_no_other_mistake(folder: Path) -> None:
    path = write(
        folder,
        "hub.yaml",
        """
        plugins:
          - ues: ./store.py
          - use: ./gone.py
          - use: routes.local
            before: [nobody]
        """,
    )
    with pytest.raises(Misconfigured) as caught:
        checked_settings(path, environ={})
    assert caught.value.details is not None
    told = [line.removeprefix(f"{path}:").split(" expected")[0] for line in caught.value.details["mistakes"]]
    assert told == [
        "3:5: plugins[0].ues:",
        "3:5: plugins[0].use:",
        "4:10: plugins../gone.py.use:",
        "6:14: plugins.routes.local:",
    ]


def test_file_that_is_no_yaml_is_not_blamed_for_what_it_would_have_listed(folder: Path) -> None:
    path = write(folder, "hub.yaml", "plugins: [{use: ./store.py}")
    with pytest.raises(Misconfigured, match="expected YAML") as caught:
        checked_settings(path, environ={})
    assert caught.value.details is not None
    assert len(caught.value.details["mistakes"]) == 1


def test_good_file_is_read_as_it_would_be_without_the_look_at_its_plugins(folder: Path) -> None:
    path = write(folder, "hub.yaml", "node: {beat: 1s}\nplugins: [{use: ./store.py}]")
    assert checked_settings(path, environ={}) == config.load(path, (), {})


def test_file_is_run_once_until_it_changes(folder: Path) -> None:
    write(folder, "mine.py", SAYS.format(name="mine") + "\nfrom store import TIMES\nTIMES.append(1)\n")
    write(folder, "store.py", STORAGE + "\nTIMES = []\n")
    path = write(folder, "hub.yaml", "plugins: [{use: store}, {use: ./mine.py}]")
    load(checked_settings(path, environ={}), environ={})
    assert sys.modules["store"].TIMES == [1]
    write(folder, "mine.py", SAYS.format(name="other"))
    assert names(load(checked_settings(path, environ={}), environ={})) == ["store", "other"]
