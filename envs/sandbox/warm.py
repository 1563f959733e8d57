"""The warm interpreter that every call is a copy of."""

from __future__ import annotations

import builtins
import importlib
import site
from contextlib import suppress

_STANDARD = (
    "_sitebuiltins abc bisect collections.abc contextlib copy dataclasses datetime enum functools heapq io "
    "itertools json keyword linecache math numbers operator random re string textwrap threading time "
    "traceback types typing"
)
"""Standard modules that most programs import: loaded once, and every call has them. No more than these, since
each module makes every call's process slower to copy and to end: all of the usual ones double that."""


def warm_up() -> None:
    """Make this interpreter what a program expects to find itself in."""
    for name in _STANDARD.split():
        with suppress(ImportError):  # an interpreter may be built without some
            importlib.import_module(name)
    site.setquit()
    site.setcopyright()
    site.sethelper()
    del builtins.copyright, builtins.credits  # they look for files where there are none
