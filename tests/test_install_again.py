"""scripts/install.py on an environment that is damaged, outdated or being made by another run."""

import fcntl
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.small_project import (
    add_wheel,
    environment,
    install,
    installed,
    make_project,
    site_packages,
    start,
    write_lock,
)


@pytest.fixture(scope="module")
def used_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the tests of this file: `complete` mends what the last one did, a new one takes seconds."""
    return make_project(tmp_path_factory.mktemp("used"))


@pytest.fixture
def complete(used_project: Path) -> Iterator[Path]:
    """The shared project with its lock complete in .venv."""
    write_lock(used_project, "leaf==1.0", "stem==2.0")
    status, _, err = install(used_project)
    assert (status, err) == (0, "")
    yield used_project
    (used_project / "hold").unlink(missing_ok=True)  # a test that failed leaves nobody waiting for it


def lose_the_stamp(project: Path) -> None:
    (project / ".venv/whetstone.stamp").unlink()


def tear_the_stamp(project: Path) -> None:
    (project / ".venv/whetstone.stamp").write_text('{"key": ')


def lose_a_package(project: Path) -> None:
    """Behind the stamp's back."""
    shutil.rmtree(site_packages(project) / "leaf-1.0.dist-info")
    (site_packages(project) / "leaf.py").unlink()


def die_while_unpacking(project: Path) -> None:
    """pip writes RECORD when a package is in place; before that its files may be short."""
    lose_the_stamp(project)
    (site_packages(project) / "leaf-1.0.dist-info/RECORD").unlink()
    (site_packages(project) / "leaf.py").write_text("VERS")


def die_before_the_scripts(project: Path) -> None:
    """All files of the wheel are there, its own RECORD too; what pip adds, and INSTALLER, is not."""
    lose_the_stamp(project)
    info = site_packages(project) / "leaf-1.0.dist-info"
    (info / "RECORD").write_text("leaf.py,sha256=x,16\nleaf-1.0.dist-info/RECORD,,\n")
    (info / "INSTALLER").unlink()


def die_while_replacing(project: Path) -> None:
    """Two versions of one package, and what pip had set aside of a third."""
    lose_the_stamp(project)
    site = site_packages(project)
    shutil.copytree(site / "leaf-1.0.dist-info", site / "leaf-1.1.dist-info")
    (site / "~eaf-0.9.dist-info").mkdir()
    (site / "leaf.py").write_text("VERSION = 'torn'\n")


def lose_bytes(project: Path) -> None:
    """A power failure: the file has its name and not its content."""
    lose_the_stamp(project)
    (site_packages(project) / "stem.py").write_text("")


def lose_python(project: Path) -> None:
    """The Python that the environment was made with is gone."""
    for link in ("python", "python3"):
        path = project / ".venv/bin" / link
        path.unlink()
        path.symlink_to("/nowhere/python3.11")


def serve_another_device(project: Path) -> None:
    lose_the_stamp(project)
    state = json.loads((project / ".venv/whetstone.state").read_text())
    (project / ".venv/whetstone.state").write_text(json.dumps(state | {"device": "cuda"}))


def die_while_making_it(project: Path) -> None:
    """`python -m venv`, killed before it had pip."""
    shutil.rmtree(project / ".venv")
    (project / ".venv/bin").mkdir(parents=True)


@pytest.mark.parametrize(
    "damage",
    [
        lose_the_stamp,
        tear_the_stamp,
        lose_a_package,
        die_while_unpacking,
        die_before_the_scripts,
        die_while_replacing,
        lose_bytes,
        pytest.param(lose_python, marks=pytest.mark.slow),  # each slow one makes a new environment
        die_while_making_it,
        pytest.param(serve_another_device, marks=pytest.mark.slow),
    ],
)
def test_a_half_made_environment_is_mended(complete: Path, damage: Callable[[Path], None]) -> None:
    damage(complete)
    status, out, err = install(complete)
    assert (status, err) == (0, "")
    assert "ready in" in out
    assert installed(complete, "leaf", "stem") == ["1.0", "2.0"]
    assert sorted(path.name for path in site_packages(complete).glob("*leaf*info")) == ["leaf-1.0.dist-info"]
    assert "is complete" in install(complete)[1]


@pytest.mark.slow
def test_a_moved_project_gets_a_new_environment(complete: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(complete, tmp_path / "moved", symlinks=True)
    status, out, _ = install(moved)
    assert (status, "making it anew" in out) == (0, True)
    pip = subprocess.run([moved / ".venv/bin/pip", "--version"], capture_output=True, text=True, check=True)
    assert str(moved) in pip.stdout


def test_a_new_lock_upgrades_and_removes(complete: Path) -> None:
    user_owned = [complete / ".venv/bin/python", "-m", "pip", "install", "-q", "--no-deps"]
    extra = add_wheel(complete, "mine", "9.0", folder="elsewhere")
    subprocess.run([*user_owned, extra], check=True, env=environment(complete))
    write_lock(complete, "leaf==1.1")
    assert install(complete)[0] == 0
    assert installed(complete, "leaf", "stem", "mine") == ["1.1", "-", "9.0"]


def test_a_package_that_breaks_the_environment_is_noticed_and_removed(complete: Path) -> None:
    wheel = complete / "wheels/triton-3.7-py3-none-any.whl"
    pip = [complete / ".venv/bin/python", "-m", "pip", "install", "-q", wheel]
    subprocess.run(pip, check=True, env=environment(complete))
    assert installed(complete, "triton") == ["3.7"]
    assert install(complete)[0] == 0
    assert installed(complete, "leaf", "triton") == ["1.0", "-"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, "waited a minute for nothing"
        time.sleep(0.02)


def start_and_hold(project: Path) -> subprocess.Popen[str]:
    """An install that has got as far as building the project, and waits there until `hold` is removed."""
    lose_the_stamp(project)
    (project / ".venv.log").unlink()
    (project / "hold").touch()
    process = start(project)
    log = project / ".venv.log"
    wait_for(lambda: log.exists() and "Preparing editable" in log.read_text())
    return process


def test_two_installs_at_once_take_turns(complete: Path) -> None:
    first = start_and_hold(complete)
    second = start(complete)
    assert second.stdout is not None
    assert "another install is at work" in second.stdout.readline()
    (complete / "hold").unlink()
    assert [process.wait(timeout=60) for process in (first, second)] == [0, 0]
    assert installed(complete, "leaf", "stem") == ["1.0", "2.0"]


def test_a_killed_install_keeps_its_lock_until_its_pip_ends_and_the_next_run_completes(
    complete: Path,
) -> None:
    process = start_and_hold(complete)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    status, _, err = install(complete, WHETSTONE_INSTALL_WAIT_S="0.2")
    assert (status, err.count("\n")) == (1, 1)
    assert "another install held" in err
    assert not (complete / ".venv/whetstone.stamp").exists()
    (complete / "hold").unlink()
    assert install(complete)[0] == 0
    assert installed(complete, "leaf", "stem") == ["1.0", "2.0"]


def test_ctrl_c_leaves_one_line(complete: Path) -> None:
    process = start_and_hold(complete)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    (complete / "hold").unlink()
    assert (process.returncode, err.count("\n")) == (130, 1)
    with open(complete / ".venv.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its pip is gone too
    assert install(complete)[0] == 0
