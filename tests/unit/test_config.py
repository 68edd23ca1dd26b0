"""A configuration file: what is read, and that every mistake in it is told at its place, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel import config
from kernel.config import Rate, Settings
from kernel.errors import Misconfigured


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "hub.yaml"


def mistakes(file: Path, text: str, *sets: str, **environ: str) -> list[str]:
    """What is told about `text`, without the name of the file."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(Misconfigured) as caught:
        config.load(file, sets, environ)
    assert caught.value.details is not None
    told: list[str] = caught.value.details["mistakes"]
    assert all(line in caught.value.message for line in told)
    return [line.removeprefix(f"{file}:") for line in told]


def read(file: Path, text: str, *sets: str, **environ: str) -> Settings:
    file.write_text(text, encoding="utf-8")
    return config.load(file, sets, environ)


def test_empty_file_is_all_defaults(file: Path) -> None:
    assert read(file, "") == Settings()
    assert read(file, "# nothing\n") == Settings()


def test_section_without_a_setting_is_all_defaults(file: Path) -> None:
    assert read(file, "dispatch:\nplugins:\n") == Settings()


def test_values_are_read_by_their_type(file: Path) -> None:
    settings = read(
        file,
        """
        dispatch: {http_wait: 20s, window: 3, durability: all}
        bus: {rekick: [10ms, 1s]}
        channel: {stock_frame_limit: 1KiB, claims: 7/2m}
        server: {host: "::1", public_metrics: no}
        """,
    )
    assert settings.dispatch.http_wait == 20.0
    assert settings.dispatch.window == 3
    assert settings.dispatch.durability == "all"
    assert settings.bus.rekick == (0.01, 1.0)
    assert settings.channel.stock_frame_limit == 1024
    assert settings.channel.claims == Rate(count=7, seconds=120.0)
    assert settings.server.host == "::1"
    assert settings.server.public_metrics is False


def test_every_mistake_is_told_at_once_with_file_line_column_and_key(file: Path) -> None:
    told = mistakes(
        file,
        "dispatch:\n  http_wait: 5\n  windw: 3\nnode: [1]\nserver:\n  port: eighty\nplugins:\n  - befor: x\n",
    )
    assert [line.split(" expected", 1)[0] for line in told] == [
        "2:14: dispatch.http_wait:",
        "3:3: dispatch.windw:",
        "4:7: node:",
        "6:9: server.port:",
        "8:5: plugins[0].befor:",
        "8:5: plugins[0].use:",
    ]


def test_unknown_key_is_told_with_the_nearest_name(file: Path) -> None:
    assert "did you mean rolling_window?" in mistakes(file, "dispatch:\n  rollingwindow: 3m\n")[0]
    assert "did you mean dispatch?" in mistakes(file, "dispath: {}\n")[0]


def test_unknown_key_that_resembles_nothing_is_told_with_all_names(file: Path) -> None:
    assert "there are beat, lost_after, grace, drain" in mistakes(file, "node: {colour: red}\n")[0]


def test_duplicate_key_is_refused(file: Path) -> None:
    told = mistakes(file, "node:\n  beat: 1s\n  beat: 1s\n")
    assert told == ["3:3: node.beat: expected each key once, found it again (first in line 2)"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("server: {host: no}", "expected text, found no, which YAML reads as false: put it in quotes if text is meant"),
        ("server: {host: 127}", "expected text, found 127, a number: put it in quotes"),
        ("server: {host: }", "expected text, found nothing"),
        ("server: {port: 0123}", "expected a whole number, found 0123, which YAML reads in another base"),
        ("server: {port: 1:20}", "expected a whole number, found 1:20, which YAML reads in another base"),
        ("server: {port: '80'}", "expected a whole number, found 80 in quotes: remove them"),
        ("server: {port: 80.5}", "expected a whole number, found 80.5"),
        ("server: {port: 70000}", "expected `int` <= 65535 (found 70000)"),
        ("server: {port: [80]}", "expected a whole number, found a list"),
        ("server: {public_metrics: 1}", "expected true or false, found 1"),
        ("dispatch: {durability: some}", "expected one of intents, all, found some"),
        ("dispatch: {http_wait: 5}", "expected a duration such as 250ms, 5s, 2m or 24h, found 5"),
        ("dispatch: {http_wait: -5s}", "expected a duration such as 250ms, 5s, 2m or 24h, found -5s"),
        ("dispatch: {http_wait: 1:20}", "expected a duration such as 250ms, 5s, 2m or 24h, found 1:20"),
        ("dispatch: {http_wait: 5 s s}", "expected a duration such as 250ms, 5s, 2m or 24h, found 5 s s"),
        ("dispatch: {http_wait: {a: 1}}", "expected a duration such as 250ms, 5s, 2m or 24h, found a mapping"),
        ("server: {body_limit: 1MB}", "expected a size such as 65536, 64KiB or 1MiB, found 1MB"),
        ("limits: {joins: 0/1s}", "expected a rate such as 5/10s, found 0/1s"),
        ("limits: {joins: 5/0s}", "expected a rate such as 5/10s, found 5/0s"),
        ("limits: {joins: 5/s}", "expected a rate such as 5/10s, found 5/s"),
        ("bus: {rekick: 5s}", "expected a list as `[a, b]`, found 5s"),
        ("dispatch: 5s", "expected settings as `name: value`, found 5s"),
    ],
)
def test_wrong_value_is_told_in_words(file: Path, line: str, told: str) -> None:
    assert told in mistakes(file, line)[0]


@pytest.mark.parametrize(
    ("text", "place", "told"),
    [
        ("node: {beat: 1s", "1:16: ", "expected YAML, found"),
        ("node:\n\tbeat: 1s\n", "2:1: ", "indent with spaces, not with tabs"),
        ("a: 1\n---\nb: 2\n", "2:1: ", "another document"),
        ("server: {host: ${HOST}}", "1:17: ", "put ${NAME} in quotes"),
        ("- node\n", "1:1: ", "expected sections such as plugins:, found a list"),
        ("hello\n", "1:1: ", "expected sections such as plugins:, found hello"),
        ("node: &n\n  beat: *n\n", "1:7: node.beat: ", "found an alias of what it stands in"),
        ("node: {beat: !!python/name:os.system x}\n", "1:14: node.beat: ", "remove the tag"),
        ("node: {beat: !mine 1s}\n", "1:14: node.beat: ", "found the tag !mine"),
        ("? [a, b]\n: 1\n", "1:3: ", "expected a name as the key"),
        ("node: \x00\n", "1:1: ", "expected YAML, found"),
        ("plugins: {use: sqlite}\n", "1:10: plugins: ", "expected a list of `- use: …`, found a mapping"),
        ("plugins: [sqlite]\n", "1:11: plugins[0]: ", "expected `use: name`, found sqlite"),
        ("plugins: [{use: a, config: 3}]\n", "1:28: plugins[0].config: ", "expected `name: value`, found 3"),
        ("plugins: [{use: a}, {use: a}]\n", "1:27: plugins: ", "found a again (first in line 1)"),
        ("plugins: [{use: a, before: b}]\n", "1:28: plugins[0].before: ", "expected a list as `[a, b]`, found b"),
    ],
)
def test_what_is_no_configuration_is_told_at_its_place(file: Path, text: str, place: str, told: str) -> None:
    (line, *_) = mistakes(file, text)
    assert line.startswith(place)
    assert told in line


def test_deeply_nested_file_is_a_mistake_and_not_a_crash(file: Path) -> None:
    assert "nested too deeply" in mistakes(file, "[" * 5000)[0]


def test_missing_file_says_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"nowhere\.yaml: expected a configuration, .*--config"):
        config.load(tmp_path / "nowhere.yaml")


def test_file_that_is_not_utf8_is_a_mistake(file: Path) -> None:
    file.write_bytes(b"node: \xff\xfe")
    with pytest.raises(Misconfigured, match="UTF-8"):
        config.load(file)


def test_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="expected a configuration in UTF-8, found that"):
        config.load(tmp_path)


# -- the environment -----------------------------------------------------------------------------------------


def test_environment_fills_texts_numbers_and_parts_of_texts(file: Path) -> None:
    settings = read(
        file,
        "server:\n  host: ${HOST}.example\n  port: ${PORT}\n  public_metrics: '${OPEN}'\n"
        "dispatch: {http_wait: '${WAIT}'}\n",
        HOST="hub",
        PORT="81",
        OPEN="false",
        WAIT="3s",
    )
    assert settings.server.host == "hub.example"
    assert settings.server.port == 81
    assert settings.server.public_metrics is False
    assert settings.dispatch.http_wait == 3.0


def test_value_of_the_environment_is_text_where_text_is_wanted(file: Path) -> None:
    assert read(file, "server:\n  host: ${HOST}", HOST="012").server.host == "012"


def test_missing_variables_are_all_told(file: Path) -> None:
    told = mistakes(file, "server:\n  host: ${HOST}\n  port: ${PORT}\n")
    assert "expected the environment variable HOST, found that it is not set" in told[0]
    assert told[1].startswith("3:9: server.port:")


def test_secret_of_the_environment_is_never_told(file: Path) -> None:
    told = mistakes(file, "server:\n  port: ${SECRET}\n", SECRET="hunter2")
    assert told == ["2:9: server.port: expected a whole number, found ${SECRET}"]


def test_two_dollars_mean_the_text_itself(file: Path) -> None:
    assert read(file, "server:\n  host: $${HOST}").server.host == "${HOST}"


def test_malformed_reference_is_a_mistake(file: Path) -> None:
    assert "expected ${NAME}, found ${a b}" in mistakes(file, "server: {host: '${a b}'}")[0]


# -- --set ---------------------------------------------------------------------------------------------------

PLUGINS = """
node: {beat: 1s}
plugins:
  - use: routes
  - use: routes.local
    config: {region: eu, deep: {a: 1}}
  - use: my_company.sticky:Sticky
  - use: ./some.folder/mine.py
"""


def test_set_lays_a_value_over_the_file(file: Path) -> None:
    settings = read(file, PLUGINS, "node.beat=2s", "dispatch.window=3", "bus.rekick=[1s]")
    assert (settings.node.beat, settings.dispatch.window, settings.bus.rekick) == (2.0, 3, (1.0,))


def test_last_set_of_a_key_wins(file: Path) -> None:
    assert read(file, PLUGINS, "node.beat=2s", "node.beat=1500ms").node.beat == 1.5


@pytest.mark.parametrize(
    ("assignment", "use", "key", "value"),
    [
        ("plugins.routes.local.region=us", "routes.local", "region", "us"),
        ("plugins.routes.region=us", "routes", "region", "us"),
        ("plugins.Sticky.region=us", "my_company.sticky:Sticky", "region", "us"),
        ("plugins.my_company.sticky:Sticky.region=us", "my_company.sticky:Sticky", "region", "us"),
        ("plugins.mine.region=us", "./some.folder/mine.py", "region", "us"),
        ("plugins../some.folder/mine.py.region=us", "./some.folder/mine.py", "region", "us"),
    ],
)
def test_set_reaches_into_the_longest_name_that_fits(
    file: Path, assignment: str, use: str, key: str, value: str
) -> None:
    entries = {entry.use: entry.config.entries for entry in read(file, PLUGINS, assignment).plugins}
    found = entries[use][key]
    assert getattr(found, "text", None) == value
    assert all(key not in config or config[key] != found for name, config in entries.items() if name != use)


def test_set_keeps_what_it_does_not_name(file: Path) -> None:
    entry = read(file, PLUGINS, "plugins.routes.local.deep.b=2").plugins[1]
    deep = entry.config.entries["deep"]
    assert list(getattr(deep, "entries", {})) == ["a", "b"]


def test_set_of_enabled_before_and_after_belongs_to_the_entry(file: Path) -> None:
    entry = read(
        file, PLUGINS, "plugins.mine.enabled=false", "plugins.mine.before=[routes]", "plugins.mine.after=[Sticky]"
    ).plugins[3]
    assert (entry.enabled, entry.before, entry.after, entry.config.entries) == (False, ("routes",), ("Sticky",), {})


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("node.beat", "--set: expected dotted.key=value, found node.beat"),
        ("=3", "--set: expected dotted.key=value, found =3"),
        ("node.=3", "--set: expected dotted.key=value, found node.=3"),
        ("node.beat=", "--set: node.beat: expected a duration such as 250ms, 5s, 2m or 24h, found nothing"),
        ("node.beat=soon", "--set: node.beat: expected a duration such as 250ms, 5s, 2m or 24h, found soon"),
        ("node.heart=1s", "--set: node.heart: expected a known setting, found heart: did you mean beat?"),
        ("nodes.beat=1s", "--set: nodes: expected a known setting, found nodes: did you mean node?"),
        ("node.beat=[1", "--set: node.beat: expected YAML, found"),
        ("node.beat=${GONE}", "--set: node.beat: expected the environment variable GONE, found that it is not set"),
        ("plugins.route.x=1", "--set: expected plugins.<use>.<key> of a listed plugin, found route.x"),
        ("plugins.mine.=1", "--set: expected plugins.<use>.<key> of a listed plugin, found mine."),
        ("plugins.routes=1", "--set: expected plugins.<use>.<key> of a listed plugin, found routes"),
        ("plugins.mine.enabled=5", "--set: plugins[3].enabled: expected true or false, found 5"),
    ],
)
def test_wrong_set_is_told(file: Path, assignment: str, told: str) -> None:
    lines = mistakes(file, PLUGINS, assignment)
    assert any(line.startswith(told) for line in lines), lines


def test_set_refuses_a_short_name_that_two_plugins_go_by(file: Path) -> None:
    told = mistakes(file, "plugins: [{use: a.one}, {use: b.one}]", "plugins.one.x=1")
    assert "a.one and b.one both go by that name" in told[0]


# -- values that do not go together --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("channel:\n  ping: 30s\n", "2:9: channel.ping: expected channel.ping to be less than channel.dead_after"),
        ("channel: {renew: 8s}", "expected channel.renew × 2 to be less than channel.stale_after, found 16s and 15s"),
        ("dispatch: {http_wait: 95s}", "expected dispatch.http_wait to be less than dispatch.rolling_window"),
        ("dispatch: {rolling_window: 1h}", "expected dispatch.rolling_window to be less than dispatch.deadline"),
        ("server: {proxy_timeout: 30s}", "expected dispatch.http_wait to be less than server.proxy_timeout"),
        ("node: {lost_after: 3s}", "expected node.beat × 2 to be less than node.lost_after, found 4s and 3s"),
        ("storage: {pool_max: 1}", "expected at most storage.pool_max (1), found 2"),
        ("dispatch: {window: 0}", "dispatch.window: expected 1 or more, found 0"),
        ("sweep: {stuck: 0s}", "sweep.stuck: expected more than nothing, found 0s"),
        ("server: {database_deadline: 0s}", "server.database_deadline: expected more than nothing, found 0s"),
    ],
)
def test_contradiction_is_told(file: Path, text: str, told: str) -> None:
    assert any(told in line for line in mistakes(file, text))


def test_contradictions_are_told_with_the_other_mistakes(file: Path) -> None:
    told = mistakes(
        file,
        "dispatch:\n  window: 0\n  http_wait: soon\n  rolling_window: 40s\nchannel: {ping: 30s, pong: 1s}\nbus: [1]\n",
    )
    assert [line.split(" expected", 1)[0] for line in told] == [
        "2:11: dispatch.window:",
        "3:14: dispatch.http_wait:",
        "5:22: channel.pong:",
        "5:17: channel.ping:",
        "6:6: bus:",
    ]


def test_contradiction_names_the_place_of_a_set(file: Path) -> None:
    assert mistakes(file, "", "channel.ping=30s")[0].startswith("--set: channel.ping: expected")


# -- which file ----------------------------------------------------------------------------------------------


def test_environment_names_the_default_file() -> None:
    assert config.default_path({"POINTSMAN_CONFIG": "some/where.yaml"}) == Path("some/where.yaml")


def test_default_file_is_that_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/local.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert config.default_path({}) == Path("conf/local.yaml")


def test_without_one_there_it_is_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = config.default_path({})
    assert path.is_absolute()
    assert [entry.use for entry in config.load(path, (), {}).plugins][:2] == ["sqlite", "routes.local"]
