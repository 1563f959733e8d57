"""What scripts/install.py knows about .venv: what is in it, whether it is whole, how it is made and filled.

A package counts as present when it has one .dist-info, of the right version, and every file in its RECORD is
there in full: what a killed pip leaves behind does not count. Standard library only; parses on Python 3.6.
"""

import csv
import glob
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from typing import Any, Dict, List

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
SITE = os.path.join(VENV, "lib", "python3.*", "site-packages")
SCRATCH = os.path.join(VENV, "tmp")  # pip's temporary files: /tmp may be small
LOG = os.path.join(ROOT, ".venv.log")
START = time.monotonic()

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# PyPI has it as source only, and it is pure Python. All others must be wheels: no compiler is needed.
SOURCE_ONLY = "deepspeed"
OFFLINE = re.compile(r"Retry\(total=0|Max retries exceeded|Read timed out|IncompleteRead|Connection broken")


class Stop(Exception):
    """The install cannot go on; the message says why and what to do, in one line."""


class Offline(Stop):
    """The package index was not reached."""


def distributions() -> Dict[str, List[str]]:
    """Installed packages -> their .dist-info folders."""
    found: Dict[str, List[str]] = {}
    for folder in sorted(glob.glob(os.path.join(SITE, "*.dist-info"))):
        name = re.sub(r"[-_.]+", "-", os.path.basename(folder).split("-")[0]).lower()
        found.setdefault(name, []).append(folder)
    return found


def missing(pins: Dict[str, str]) -> List[str]:
    """The packages that are not there, whole and in the version that their `name===version` asks for."""
    present, absent = distributions(), []
    for name, requirement in pins.items():
        _, exact, version = requirement.partition("===")
        folders = present.get(name, [])
        right = len(folders) == 1 and folders[0].endswith(f"-{version}.dist-info" if exact else "")
        if not (right and is_whole(folders[0])):
            absent.append(name)
    return absent


def is_whole(folder: str) -> bool:
    """Whether pip finished this .dist-info (it writes INSTALLER last) and recorded files have their size."""
    try:
        with open(os.path.join(folder, "RECORD"), newline="") as file:
            rows = [row for row in csv.reader(file) if row and row[2]]
        # Byte code is left out: Python writes it anew, also where a wheel ships it (numpy).
        sizes = {path: int(size) for path, _, size in rows if not path.endswith(".pyc")}
        paths = {path: os.path.join(os.path.dirname(folder), path) for path in sizes}
        finished = os.path.basename(folder) + "/INSTALLER" in sizes
        return finished and all(os.path.getsize(paths[path]) == size for path, size in sizes.items())
    except (OSError, ValueError, IndexError):
        return False


def is_sound() -> bool:
    """Whether .venv has a supported Python that can run pip, and lies where it was made."""
    probe = [PYTHON, "-c", "import pip, sys; print(sys.prefix, *sys.version_info[:2])"]
    try:
        found = subprocess.run(probe, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
        with open(os.path.join(VENV, "bin", "pip"), "rb") as script:
            same_place = PYTHON.encode() in script.read(1024)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return same_place and found.stdout.decode().strip() in (VENV + " 3 11", VENV + " 3 12")


def make_venv() -> None:
    """A virtual environment with pip, also where Python comes without ensurepip (Debian, Ubuntu)."""
    python = getattr(sys, "_base_executable", sys.executable)
    if run([python, "-m", "venv", VENV]):
        borrow = [python, "-m", "pip", "--python", PYTHON, "install", "pip"]
        if run([python, "-m", "venv", "--clear", "--without-pip", VENV]) or run(borrow):
            raise Stop(f"{python} cannot make a virtual environment; Debian: apt install python3-venv")


def clear_remains(names: List[str]) -> None:
    """Remove what a killed pip left of these packages: it would pass for installed."""
    os.makedirs(SCRATCH, exist_ok=True)
    remains = glob.glob(os.path.join(SITE, "~*")) + glob.glob(os.path.join(SCRATCH, "*"))
    for name, folders in distributions().items():
        if name in names and not (len(folders) == 1 and is_whole(folders[0])):
            remains += folders
    for path in remains:
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


def fetch(requirements: List[str]) -> None:
    """Install these requirements and nothing that they depend on."""
    options = ["install", "--no-deps", "--only-binary=:all:", "--no-binary=" + SOURCE_ONLY]
    # torch+cpu is not on PyPI: the configured sources first, PyTorch's own index only when they lack it.
    builds = [requirement for requirement in requirements if re.search(r"===.*\+", requirement)]
    if builds:
        try:
            pip(*options, *builds)
        except Offline:
            raise
        except Stop:
            pip(*options, "--extra-index-url", TORCH_CPU_INDEX, *builds)
    others = [requirement for requirement in requirements if requirement not in builds]
    if others:
        # Built in isolation, as beside a CUDA torch its setup looks for CUDA; with the locked setuptools.
        constraints = os.path.join(SCRATCH, "constraints.txt")
        with open(constraints, "w") as file:
            file.writelines(
                line.replace("===", "==") + "\n" for line in others if line.startswith("setuptools=")
            )
        pip(*options, *others, PIP_CONSTRAINT=pathlib.Path(constraints).as_uri())


def pip(*arguments: str, **environment: str) -> None:
    """Run .venv's pip; its output goes to the log, and its failure becomes one line."""
    begin = os.path.getsize(LOG)
    if run([PYTHON, "-m", "pip", "--no-input", *arguments], **environment) == 0:
        return
    with open(LOG, errors="replace") as file:
        file.seek(begin)
        output = file.read()
    if "No space left on device" in output:
        raise Stop("the disk is full; free some space, then run it again")
    if OFFLINE.search(output):
        raise Offline(
            "no network: pip cannot reach its index; connect or set PIP_INDEX_URL, then run it again"
        )
    errors = re.findall(r"^error: (.*)", output, re.MULTILINE | re.IGNORECASE) or [
        "it ended without a reason"
    ]
    raise Stop(f"pip: {errors[-1]}; all it said is in {LOG}")


def run(command: List[str], **environment: str) -> int:
    """Run a command into the log, with a line of progress every ten seconds; its exit status."""
    settings = dict(
        os.environ,
        TMPDIR=SCRATCH,
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        PIP_USER="0",
        PYTHONPATH="",
        PYTHONUNBUFFERED="1",
    )
    settings.update(environment)
    told = time.monotonic()
    with open(LOG, "ab") as log:
        # close_fds: the child holds the install lock too, so that nobody meets the pip of a killed installer.
        child = subprocess.Popen(command, stdout=log, stderr=log, env=settings, close_fds=False)
        try:
            while child.poll() is None:
                time.sleep(0.05)
                if time.monotonic() > told + 10:
                    told = time.monotonic()
                    with open(LOG, errors="replace") as output:
                        fetched = len(re.findall("^(?:Collecting|Processing) ", output.read(), re.MULTILINE))
                    say(f"{fetched} fetched, {len(distributions())} installed, {told - START:.0f} s")
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    return child.returncode


def read_json(path: str) -> Dict[str, Any]:
    """What write_json wrote, or nothing when it is not there."""
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def write_json(path: str, content: Dict[str, Any]) -> None:
    """All of it or nothing, also when the power fails."""
    with open(path + ".partial", "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".partial", path)


def say(text: str) -> None:
    """One line of progress."""
    print("install: " + text, flush=True)
