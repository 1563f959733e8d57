import pytest

from envs.names import load_object, nearest
from envs.registry import EnvDefinition, resolve_env, shipped_envs, split_level


def test_shipped_environments_resolve_by_their_own_names():
    assert {"arith", "calc", "coding", "grid", "guess"} <= set(shipped_envs())
    for name in shipped_envs():
        assert resolve_env(name).name == name


def test_a_wrong_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown environment 'clac'; did you mean 'calc'\?"):
        resolve_env("clac")
    with pytest.raises(ValueError, match=r"unknown level of environment 'calc' '9' \(known: 1, 2, 3, 4, 5\)"):
        resolve_env("calc").require_level(9)
    assert resolve_env("calc").require_level(2) == 2
    with pytest.raises(ValueError, match=r"envs\.tasks\.calc: unknown name 'ENVS'; did you mean 'ENV'\?"):
        resolve_env("envs.tasks.calc:ENVS")
    with pytest.raises(ValueError, match=r"no module 'envs\.tusks' to load 'envs\.tusks\.calc' from"):
        resolve_env("envs.tusks.calc:ENV")
    with pytest.raises(ValueError, match=r"is a function; expected an envs\.registry\.EnvDefinition"):
        resolve_env("envs.tasks.calc:score")


def test_an_environment_in_a_file_resolves(tmp_path):
    file = tmp_path / "my_env.py"
    file.write_text(
        "from dataclasses import replace\n"
        "from envs.tasks.calc import ENV as CALC\n"
        "ENV = replace(CALC, name='mine')\n"
    )
    definition = resolve_env(f"{file}:ENV")
    assert isinstance(definition, EnvDefinition)
    assert definition.name == "mine"
    assert resolve_env(f"{file}:ENV") is definition  # one module a file, so one class a name
    with pytest.raises(ValueError, match=r"unknown file 'my_enw\.py'; did you mean 'my_env\.py'\?"):
        resolve_env(f"{tmp_path}/my_enw.py:ENV")


def test_what_a_users_file_raises_is_told_as_it_is(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("import no_such_dependency\n")
    for _ in range(2):  # a half-executed module must not be found the second time
        with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
            load_object(f"{file}:ENV")


@pytest.mark.parametrize("spec", ["calc", ":ENV", "my_env.py:", "my_env.py:not a name"])
def test_a_string_that_names_nothing_is_refused(spec):
    with pytest.raises(ValueError, match=r"expected 'file\.py:name' or 'package\.module:name'"):
        load_object(spec)


def test_nothing_near_gives_no_guess():
    assert nearest("zzz", ["calc"]) is None


@pytest.mark.parametrize(
    ("spec", "env", "level"),
    [
        ("calc", "calc", None),
        ("calc:2", "calc", 2),
        ("grid:0", "grid", 0),
        ("my_env.py:ENV", "my_env.py:ENV", None),
        ("my_env.py:ENV:12", "my_env.py:ENV", 12),
        ("module:ENV", "module:ENV", None),
        ("package.module:ENV:0", "package.module:ENV", 0),
    ],
)
def test_a_level_may_stand_behind_a_name(spec: str, env: str, level: int | None):
    assert split_level(spec) == (env, level)


@pytest.mark.parametrize("spec", ["calc:", "calc:x", "calc:1.5", "my_env.py:ENV:-1", "my_env.py:ENV:²"])
def test_what_is_no_level_is_refused(spec: str):
    with pytest.raises(ValueError, match=r"is no level; expected a whole number, as in '(calc|my_env)"):
        split_level(spec)


def test_a_level_is_refused_where_the_environment_alone_is_named():
    with pytest.raises(ValueError, match=r"'grid:0' names a level too; here give 'grid', and the level, 0"):
        resolve_env("grid:0")
