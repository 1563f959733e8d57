"""Things that are named by strings: the nearest name for a wrong one, and loading `file.py:attr`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from types import ModuleType


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that `name` was most likely meant to be, None when nothing is near."""
    return next(iter(get_close_matches(name, list(choices), n=1)), None)


def unknown_name(kind: str, name: object, choices: Iterable[object]) -> str:
    """The error text for a name that is not among `choices`."""
    known = [str(choice) for choice in choices]
    guess = nearest(str(name), known)
    hint = f"; did you mean {guess!r}?" if guess else ""
    return f"unknown {kind} {str(name)!r}{hint} (known: {', '.join(known) or 'none'})"


def load_object(spec: str) -> object:
    """The object that `path/to/file.py:attr` or `package.module:attr` names.

    Raises ValueError when the file, module or attribute does not exist; what the file itself raises while it
    is imported is passed on unchanged.
    """
    where, _, attr = spec.rpartition(":")
    if not where or not attr.isidentifier():
        raise ValueError(f"cannot load {spec!r}: expected 'file.py:name' or 'package.module:name'")
    module = _load_file(Path(where)) if where.endswith(".py") else _load_module(where)
    try:
        return getattr(module, attr)
    except AttributeError:
        public = [name for name in vars(module) if not name.startswith("_")]
        raise ValueError(f"{where}: {unknown_name('name', attr, public)}") from None


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that exists and misses one of its own imports is its author's error, told as it is.
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        raise ValueError(f"no module {error.name!r} to load {name!r} from; a file needs its .py") from None


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        siblings = [file.name for file in path.parent.glob("*.py")]
        raise ValueError(f"no file {path}: {unknown_name('file', path.name, siblings)}")
    # One module a file and process: two imports would make two classes of one name.
    name = f"_loaded_{path.stem}_{blake2b(str(path).encode(), digest_size=6).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a .py path always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it is executed
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
