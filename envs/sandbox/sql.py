"""SQL that a model wrote: read-only statements on a copy of a database, each in a process of a sandbox.

    with connect("shop.db", {"timeout_s": 2.0, "max_rows": 100, "max_bytes": 65536}) as database:
        rows = database.execute("SELECT name, price FROM item ORDER BY price")

The file itself is only ever read. `sql_inside.py` says what holds a statement.
"""

from __future__ import annotations

import json
import math
import os
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from envs.names import unknown_name
from envs.sandbox.base import Limits, Opening, Sandbox, SandboxError
from envs.sandbox.blocking import run_blocking
from envs.sandbox.database_file import read_database
from envs.tools import ToolError

_INSIDE = Path(__file__).with_name("sql_inside.py").read_text(encoding="utf-8")
_COPY = "data.db"
_GRACE_S = 1.0  # for the process to say by itself that its time is over, before it is killed
_REPLY_BYTES = 4096  # of an answer besides its rows: a message has 500 characters, of at most 6 bytes each

Row = tuple[int | float | str | bytes | None, ...]


class SqlError(ToolError):
    """A statement that gave no rows, by its own fault. In a tool its text is the policy's observation."""


class SqlQueryError(SqlError):
    """It is no statement that SQLite can run on this database: syntax, an unknown name, a wrong type."""


class SqlDeniedError(SqlError):
    """It does more than read: writes, attaches, sets a pragma, calls what is not listed, or is several."""


class SqlTimeoutError(SqlError):
    """It did not finish within timeout_s."""


class SqlTooManyRowsError(SqlError):
    """It gives more than max_rows."""


class SqlTooManyBytesError(SqlError):
    """Its rows have more than max_bytes, or one of its values more than 1 MiB."""


class SqlMemoryError(SqlError):
    """It needs more memory or temporary space than a statement may have."""


_ERRORS: Mapping[str, type[SqlError]] = {
    "query": SqlQueryError,
    "denied": SqlDeniedError,
    "timeout": SqlTimeoutError,
    "rows": SqlTooManyRowsError,
    "bytes": SqlTooManyBytesError,
    "memory": SqlMemoryError,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlLimits:
    """Bounds of one statement: seconds, rows, and bytes of all its rows as JSON."""

    timeout_s: float = 5.0
    max_rows: int = 1000
    max_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kinds = int | float if field.name == "timeout_s" else int
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
                kind = "a number" if field.name == "timeout_s" else "a whole number"
                raise ValueError(
                    f"SQL limit {field.name} is {value!r}; expected {kind} above 0: none can be switched off"
                )

    @classmethod
    def of(cls, limits: Mapping[str, Any] | None) -> SqlLimits:
        """The limits of a mapping that names all of them; None: the defaults.

        Raises:
            ValueError: one is missing, unknown, or no number above 0.
        """
        if limits is None:
            return cls()
        names = [field.name for field in fields(cls)]
        for name in limits:
            if name not in names:
                raise ValueError(unknown_name("SQL limit", name, names))
        if missing := [name for name in names if name not in limits]:
            raise ValueError(
                f"SQL limits {dict(limits)} lack {', '.join(missing)}; give all, or None for the defaults"
            )
        return cls(**limits)


async def query_in(
    box: Sandbox, query: str, *, database: str = _COPY, limits: Mapping[str, Any] | SqlLimits | None = None
) -> list[Row]:
    """Rows of one read-only statement on a SQLite file of `box`.

    Raises:
        SqlError: the statement's fault, by kind.
        SandboxError: the world's.
    """
    if not isinstance(query, str):
        raise ValueError(f"an SQL statement is a str, not {type(query).__name__}")
    if limits is None:  # the default time, or what this sandbox gives a call
        limits = SqlLimits(timeout_s=min(SqlLimits().timeout_s, box.limits.wall_s / 2))
    bounds = limits if isinstance(limits, SqlLimits) else SqlLimits.of(limits)
    if bounds.timeout_s > box.limits.wall_s:
        raise ValueError(
            f"SQL limit timeout_s is {bounds.timeout_s:g}; expected at most {box.limits.wall_s:g}, "
            "after which this sandbox ends a call"
        )
    request = {"database": database, "query": query} | {
        field.name: getattr(bounds, field.name) for field in fields(bounds)
    }
    return await _ask(box, request, bounds)


async def _ask(box: Sandbox, request: Mapping[str, Any], bounds: SqlLimits) -> list[Row]:
    called = await box.python(
        _INSIDE,
        stdin=json.dumps(request).encode(),
        wall_s=bounds.timeout_s + _GRACE_S,
        max_result_bytes=bounds.max_bytes + _REPLY_BYTES,
    )
    if called.status == "timeout":
        raise SqlTimeoutError(f"no result after {bounds.timeout_s:g} s")
    if called.status in ("oom", "disk_limit"):
        raise SqlMemoryError("it needs more memory or temporary space than it may have")
    if called.status in ("ok", "output_limit") and called.result is None:
        raise SqlTooManyBytesError(f"rows of more than {bounds.max_bytes} bytes; ask for less")
    if called.status == "signal":
        raise SqlQueryError(f"the statement ended SQLite's process by signal {called.signal}")
    if called.status != "ok" or not called.result:
        raise SandboxError(f"the SQL program ended with {called.status}: {called.stderr[-500:]}")
    return _rows(called.result)


def _rows(result: bytes) -> list[Row]:
    """The rows of an answer, or the error that it tells."""
    try:
        told = json.loads(result)
        if "error" in told:
            problem: SqlError = _ERRORS[told["error"]](told["message"])
        else:
            return [tuple(_value(cell) for cell in row) for row in told["rows"]]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise SandboxError(f"the SQL program answered {result[:200]!r}") from error
    raise problem


def _value(cell: Any) -> int | float | str | bytes | None:
    """One value of a row; `sql_inside.cell` says how it was written."""
    match cell:
        case {"b64": str(text)}:
            return b64decode(text)
        case {"float": str(text)}:
            return float(text)
        case None | int() | float() | str():
            return cell
    raise ValueError(f"no value of SQLite: {cell!r}")


class SqlDatabase:
    """A database as `connect` gives it: a copy in a sandbox of its own until `close`."""

    def __init__(self, box: Sandbox, limits: SqlLimits) -> None:
        self._box: Sandbox | None = box
        self._limits = limits

    def execute(self, sql: str) -> list[Row]:
        """Rows of one read-only statement. After an error the next statement works.

        Raises:
            SqlError: the statement's fault: SqlQueryError, SqlDeniedError, SqlTimeoutError,
                SqlTooManyRowsError, SqlTooManyBytesError or SqlMemoryError.
            SandboxError: the world's fault.
            ValueError: the database was closed.
        """
        if self._box is None:
            raise ValueError("the database is closed; connect again")
        return run_blocking(query_in(self._box, sql, limits=self._limits))

    def close(self) -> None:
        """End the sandbox. Idempotent."""
        box, self._box = self._box, None
        if box is not None:
            run_blocking(box.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def connect(
    db_path: str | os.PathLike[str],
    limits: Mapping[str, Any] | None = None,
    *,
    backend: str | None = None,
    min_level: int | None = None,
    allow_weak: bool | None = None,
) -> SqlDatabase:
    """A copy of the SQLite database at `db_path`, to be asked from code that is not async.

    `limits` are {"timeout_s", "max_rows", "max_bytes"} of each statement, all of them; None: the defaults of
    SqlLimits. What others write to the file later is not seen. The rest is what `Sandbox.open` takes.

    Raises:
        FileNotFoundError, ValueError: the file is not there or cannot be copied; a limit is wrong.
        SandboxTooWeakError: the machine cannot give `min_level`.
        SandboxError: the sandbox could not be opened.
    """
    bounds = SqlLimits.of(limits)
    files = read_database(db_path, _COPY)
    size_mb = sum(map(len, files.values())) >> 20
    opening = Sandbox.open(
        Limits(
            wall_s=bounds.timeout_s + _GRACE_S,
            mem_mb=256 + 3 * size_mb,
            disk_mb=64 + 3 * size_mb,
            procs=16,
        ),
        files=files,
        backend=backend,
        min_level=min_level,
        allow_weak=allow_weak,
    )
    return run_blocking(_opened(opening, bounds, has_journal=len(files) > 1))


async def _opened(opening: Opening, bounds: SqlLimits, *, has_journal: bool) -> SqlDatabase:
    box = await opening
    try:
        if has_journal:
            await _ask(box, {"settle": _COPY}, bounds)
    except BaseException:
        await box.close()
        raise
    return SqlDatabase(box, bounds)
