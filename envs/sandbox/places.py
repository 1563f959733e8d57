"""Which folders of the host a sandbox may read: the system's, the interpreter's, nothing of ours in them."""

from __future__ import annotations

import os
import site
import sys

SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc/alternatives",
    "/etc/ld.so.cache",
)
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
"""What our packages lie in: the project, or an environment's site-packages."""

OUR_PACKAGES = ("envs", "rewards", "rollout", "rl", "recipes")


def readable_places() -> list[str]:
    """The folders of the interpreter and of its environment."""
    places = dict.fromkeys(os.path.realpath(path) for path in (sys.base_prefix, sys.prefix))
    return [path for path in places if path != "/usr"]


def package_places() -> list[str]:
    """The folders that programs import installed packages from."""
    return [os.path.realpath(path) for path in site.getsitepackages() if os.path.isdir(path)]


def hidden_places() -> list[str]:
    """What lies in a readable folder and is not for programs: our environments know their answers.

    Our packages, where they are installed; all of a project that lies below /usr, say, but the interpreter.
    """
    readable, packages = readable_places(), package_places()
    installed = [f"{folder}/{name}" for folder in packages for name in OUR_PACKAGES]
    own = []
    if ROOT not in packages and any(is_below(ROOT, place) for place in (*SYSTEM, *readable)):
        own = [f"{ROOT}/{name}" for name in sorted(os.listdir(ROOT))]
    return [
        path
        for path in (*installed, *own)
        if os.path.exists(path) and not any(is_below(place, path) for place in readable)
    ]


def is_below(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or in it."""
    return path == folder or path.startswith(f"{folder}/")
