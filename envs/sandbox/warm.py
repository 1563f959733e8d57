"""The warm interpreter that every call is a copy of."""

from __future__ import annotations

import builtins
import importlib
import site
from contextlib import suppress

_STANDARD = (
    "_sitebuiltins abc argparse array ast base64 bisect calendar cmath collections.abc contextlib copy "
    "csv dataclasses datetime decimal difflib enum fractions functools glob hashlib heapq html io "
    "itertools json keyword locale logging math numbers operator os.path pathlib pickle platform pprint "
    "queue random re secrets shlex shutil sqlite3 statistics string struct subprocess tempfile textwrap "
    "threading time traceback types typing unicodedata unittest urllib.parse uuid zlib "
)
"""Standard modules that programs import: loaded once, and every call has them."""


def warm_up() -> None:
    """Make this interpreter what a program expects to find itself in."""
    for name in _STANDARD.split():
        with suppress(ImportError):  # an interpreter may be built without some
            importlib.import_module(name)
    site.setquit()
    site.setcopyright()
    site.sethelper()
    del builtins.copyright, builtins.credits  # they look for files where there are none
