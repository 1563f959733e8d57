"""A small project with the real installer in it and a lock of packages that are made here; no network."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

# An in-tree build backend. While a file `hold` lies in the project it waits: an install can be caught.
BACKEND = """
import os, time, zipfile
def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    while os.path.exists("hold"):
        time.sleep(0.02)
    name, info = "whetstone-0.1.0-py3-none-any.whl", "whetstone-0.1.0.dist-info/"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as wheel:
        wheel.writestr("_whetstone.pth", os.getcwd())
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: whetstone\\nVersion: 0.1.0\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "whetstone"
version = "0.1.0"
"""


def add_wheel(project: Path, name: str, version: str, *, folder: str = "wheels") -> Path:
    """A wheel of one module, which knows its version."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{info}/RECORD,,\n"
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    wheel = project / folder / f"{name}-{version}-py3-none-any.whl"
    wheel.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return wheel


def make_project(folder: Path) -> Path:
    """A project with the real installer, whose lock asks for two small packages."""
    project = folder / "a project"  # with a space, as people have it
    (project / "requirements").mkdir(parents=True)
    shutil.copytree(SCRIPTS, project / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (project / "pyproject.toml").write_text(PYPROJECT)
    (project / "backend.py").write_text(BACKEND)
    write_lock(project, "leaf==1.0", "stem==2.0")
    for name, version in (("leaf", "1.0"), ("leaf", "1.1"), ("stem", "2.0"), ("triton", "3.7")):
        add_wheel(project, name, version)
    return project


def write_lock(project: Path, *pins: str, name: str = "cpu", needs_gib: float = 0.01) -> None:
    (project / "requirements" / f"{name}.lock").write_text(
        "\n".join([f"# needs-gib: {needs_gib}", *pins, ""])
    )


def environment(project: Path, **variables: str) -> dict[str, str]:
    """Only the project's wheels, none of this machine's pip settings."""
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "WHETSTONE_"))
    }
    pip = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": (project / "wheels").as_uri(),
        "PIP_CONFIG_FILE": os.devnull,
    }
    return inherited | pip | {"WHETSTONE_DEVICE": "cpu", "PIP_NO_CACHE_DIR": "1"} | variables


def start(project: Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "scripts/install.py"],
        cwd=project,
        env=environment(project, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def install(project: Path, **variables: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of one run."""
    process = start(project, **variables)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def installed(project: Path, *names: str) -> list[str]:
    """The versions that the environment imports, "-" for none."""
    program = "import importlib.util as u, json, sys\n"
    program += "find = lambda n: __import__(n).VERSION if u.find_spec(n) else '-'\n"
    program += "print(json.dumps([find(n) for n in sys.argv[1:]]))"
    command = [project / ".venv/bin/python", "-c", program, *names]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout)


def site_packages(project: Path) -> Path:
    return next((project / ".venv/lib").glob("python3.*/site-packages"))
