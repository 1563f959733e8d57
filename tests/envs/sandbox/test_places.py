"""What of a readable folder programs do not see: our own packages, where they lie in one."""

import subprocess
import sys

import pytest

from envs.sandbox import places
from envs.sandbox.base import Limits
from envs.sandbox.choosing import probed
from envs.sandbox.client import Box
from envs.sandbox.spawning import Launcher

BACKENDS = ("ns", "bwrap", "landlock")
PROGRAM = """
import six, numpy
print("six")
try:
    import {package}
    print({package}.__file__, getattr({package}, "__version__", None))
    print(open({path!r} + "/__init__.py").read())
except (ImportError, OSError) as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_hidden_package_cannot_be_read_and_its_neighbours_can(backend):
    if (probe := await probed(backend)).missing:
        pytest.skip(probe.missing)
    path = f"{places.package_places()[0]}/scipy"
    launcher = Launcher(backend, hidden=[path])
    try:
        box = Box(launcher, Limits(), probe.level, 0)
        await box.start({})
        async with box:
            result = await box.python(PROGRAM.format(package="scipy.version", path=path))
    finally:
        launcher.stop()
    assert result.stdout.splitlines()[0] == "six", result.stderr
    assert result.stdout.splitlines()[-1] in ("ModuleNotFoundError", "ImportError", "PermissionError")


def test_installed_packages_of_ours_are_hidden_and_an_interpreter_never_is(tmp_path):
    """Our tree as a wheel lays it out in an environment, and as a project below a readable folder."""
    code = "\n".join(
        [
            "import sys",
            f"sys.path.insert(0, {places.ROOT!r})",
            "from pathlib import Path",
            "from envs.sandbox import places",
            "packages = places.package_places()[0]",
            f"root = Path({str(tmp_path)!r})",
            "places.ROOT = str(root)",
            "places.package_places = lambda: [str(root)]",
            "print(places.hidden_places())",
            "places.package_places = lambda: [packages]",
            "places.readable_places = lambda: [str(root.parent), str(root / '.venv')]",
            "print(places.hidden_places())",
        ]
    )
    for name in ("envs", "rl", "other", ".venv"):
        (tmp_path / name).mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    installed, project = done.stdout.splitlines()
    assert installed == str([f"{tmp_path}/envs", f"{tmp_path}/rl"])
    assert project == str([f"{tmp_path}/envs", f"{tmp_path}/other", f"{tmp_path}/rl"])
