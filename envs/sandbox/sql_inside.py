"""The program that runs one SQL statement inside a sandbox: `envs/sandbox/sql.py` sends it there as text.

Reads a request as JSON from stdin and writes its answer as JSON to descriptor 3:
    {"rows": [[1, "a", {"b64": "AA=="}, {"float": "inf"}, null]]}       or
    {"error": "denied", "message": "not authorized: ATTACH"}

What holds a statement: a read-only database that SQLite takes to be unchangeable, an authorizer that lets
through reading and listed functions only, SQLite's own limits, a deadline that is looked at every 2000
instructions, a limit on SQLite's memory, and the sandbox around all of it, since authorizers have had bugs.
Standard library only.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import sys
import time
from base64 import b64encode
from contextlib import suppress
from typing import Any
from urllib.parse import quote

HEAP_BYTES = 64 << 20
INSTRUCTIONS_A_LOOK = 2000
_BESIDE = ("-wal", "-journal")
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1 << 20,  # bytes of one value or row: bounds zeroblob, printf, replace
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 50_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 100,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 100,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
# A list of what may be called, so that a function that a newer SQLite adds is refused until it was looked at.
_FUNCTIONS = """
    abs char coalesce concat concat_ws format glob hex if ifnull iif instr length like likelihood likely lower
    ltrim max min nullif octet_length printf quote random randomblob replace round rtrim sign soundex
    sqlite_version substr substring trim typeof unhex unicode unlikely upper zeroblob match
    date datetime julianday strftime time timediff unixepoch current_date current_time current_timestamp
    avg count group_concat string_agg sum total median percentile percentile_cont percentile_disc
    row_number rank dense_rank percent_rank cume_dist ntile lag lead first_value last_value nth_value
    acos acosh asin asinh atan atan2 atanh ceil ceiling cos cosh degrees exp floor ln log log10 log2 mod pi
    pow power radians sin sinh sqrt tan tanh trunc -> ->> bm25 highlight snippet
    json json_array json_array_length json_error_position json_extract json_group_array json_group_object
    json_insert json_object json_patch json_pretty json_quote json_remove json_replace json_set json_type
    json_valid
"""
FUNCTIONS = frozenset(_FUNCTIONS.split())
TABLE_FUNCTIONS = frozenset({"json_each", "json_tree", "generate_series"})
_ACTIONS = """
    ALTER_TABLE ANALYZE ATTACH CREATE_INDEX CREATE_TABLE CREATE_TEMP_INDEX CREATE_TEMP_TABLE
    CREATE_TEMP_TRIGGER CREATE_TEMP_VIEW CREATE_TRIGGER CREATE_VIEW CREATE_VTABLE DELETE DETACH DROP_INDEX
    DROP_TABLE DROP_TEMP_INDEX DROP_TEMP_TABLE DROP_TEMP_TRIGGER DROP_TEMP_VIEW DROP_TRIGGER DROP_VIEW
    DROP_VTABLE INSERT PRAGMA REINDEX SAVEPOINT TRANSACTION UPDATE
"""
ACTIONS = {getattr(sqlite3, f"SQLITE_{name}"): name.replace("_", " ") for name in _ACTIONS.split()}
_OK = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE})
_KINDS = {
    sqlite3.SQLITE_TOOBIG: "bytes",
    sqlite3.SQLITE_NOMEM: "memory",
    sqlite3.SQLITE_FULL: "memory",  # a sort that was spilled to disk meets the end of that
    sqlite3.SQLITE_IOERR: "memory",
    sqlite3.SQLITE_AUTH: "denied",
    sqlite3.SQLITE_READONLY: "denied",
    sqlite3.SQLITE_INTERRUPT: "timeout",
}


class Refused(Exception):
    """The statement, or what it gave, is over a limit; `kind` says which."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


def open_read_only(database: str) -> sqlite3.Connection:
    """The database, never written, locked or looked for a journal of."""
    for suffix in _BESIDE:
        if os.path.exists(database + suffix) and os.path.getsize(database + suffix) > 0:
            raise Refused(
                "query", f"{database} is being written to ({suffix[1:]} beside it); close its writer first"
            )
    path = quote(os.path.abspath(database))
    return sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, isolation_level=None)


def guard(connection: sqlite3.Connection, deadline: float) -> list[str]:
    """Harden `connection`; the list that it returns is told what was refused."""
    refused: list[str] = []
    for pragma in (
        f"hard_heap_limit={HEAP_BYTES}",
        "trusted_schema=OFF",
        "cell_size_check=ON",
        "mmap_size=0",
    ):
        connection.execute(f"PRAGMA {pragma}")
    # Virtual tables that exist without being created: dbstat and the like.
    modules = {name.lower() for (name,) in connection.execute("SELECT name FROM pragma_module_list")}
    own = {name.lower(): sql or "" for name, sql in connection.execute("SELECT name, sql FROM sqlite_master")}
    hidden = modules - own.keys() - TABLE_FUNCTIONS
    virtual = [name for name, sql in own.items() if sql.upper().split()[:2] == ["CREATE", "VIRTUAL"]]

    def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action in _OK:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ:
            table = (first or "").lower()
            if table not in hidden and not table.startswith("pragma_"):
                return sqlite3.SQLITE_OK
            refused.append(f"table {first}")
        elif action == sqlite3.SQLITE_FUNCTION:
            if (second or "").lower() in FUNCTIONS:
                return sqlite3.SQLITE_OK
            refused.append(f"function {second}")
        elif virtual and (action, first, second) == (sqlite3.SQLITE_PRAGMA, "data_version", None):
            return sqlite3.SQLITE_OK  # full-text tables ask it themselves
        elif (action, first) == (sqlite3.SQLITE_UPDATE, "sqlite_master"):
            refused.append("a change of the schema, or a table that SQLite makes up")
        else:
            refused.append(ACTIONS.get(action, f"action {action}"))
        return sqlite3.SQLITE_DENY

    for limit, value in LIMITS.items():
        connection.setlimit(limit, value)
    connection.text_factory = lambda raw: raw.decode("utf-8", "backslashreplace")
    connection.set_progress_handler(lambda: time.monotonic() > deadline, INSTRUCTIONS_A_LOOK)
    # A virtual table's first use declares it, which an authorizer sees as a change of the schema.
    for table in [*(modules & TABLE_FUNCTIONS), *virtual]:
        with suppress(sqlite3.Error):  # a damaged one fails where it is asked for
            connection.execute('SELECT 1 FROM "{}" LIMIT 0'.format(table.replace('"', '""'))).fetchall()
    connection.set_authorizer(authorize)
    return refused


def cell(value: Any) -> Any:
    """One value of SQLite as JSON."""
    if isinstance(value, bytes):
        return {"b64": b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def fetch(cursor: sqlite3.Cursor, max_rows: int, max_bytes: int) -> str:
    """All rows as a JSON list; Refused when there are more than that."""
    rows: list[str] = []
    num_bytes = 0
    for row in cursor:
        if len(rows) == max_rows:
            raise Refused("rows", f"more than {max_rows} rows; ask for fewer (LIMIT) or raise max_rows")
        rows.append(json.dumps([cell(value) for value in row], ensure_ascii=False, allow_nan=False))
        num_bytes += len(rows[-1].encode()) + (len(rows) > 1)  # a comma before each but the first
        if num_bytes > max_bytes:
            raise Refused("bytes", f"rows of more than {max_bytes} bytes; ask for less or raise max_bytes")
    return f"[{','.join(rows)}]"


def answer(request: dict[str, Any]) -> str:
    """The answer to a request, as JSON."""
    deadline = time.monotonic() + request["timeout_s"]
    refused: list[str] = []
    try:
        connection = open_read_only(request["database"])
        refused = guard(connection, deadline)
        cursor = connection.execute(request["query"])
        if cursor.description is None:
            raise Refused("query", "there is no statement that gives rows")
        return f'{{"rows":{fetch(cursor, request["max_rows"], request["max_bytes"])}}}'
    except Refused as error:
        kind, text = error.kind, str(error)
    except MemoryError:
        kind, text = "memory", "out of memory"
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        code = getattr(error, "sqlite_errorcode", None)
        kind, text = _KINDS.get(-1 if code is None else code & 0xFF, "query"), str(error)
        if refused:
            kind, text = (
                "denied",
                f"not allowed: {', '.join(dict.fromkeys(refused))}; reading is all there is",
            )
        elif "one statement at a time" in text:
            kind = "denied"
    if kind == "memory":
        text = f"it needs more memory or temporary space than it may have ({text})"
    if kind == "timeout":
        text = f"no result after {request['timeout_s']:g} s"
    return json.dumps({"error": kind, "message": text[:500]}, ensure_ascii=False)


def settle(database: str) -> str:
    """Bring what a journal or write-ahead log beside the copy holds into it."""
    try:
        connection = sqlite3.connect(database, isolation_level=None)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.execute("PRAGMA journal_mode=DELETE").fetchall()
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()  # rolls back what has to be
        connection.close()
        for suffix in _BESIDE:
            with suppress(FileNotFoundError):
                os.remove(database + suffix)  # of a transaction that had changed nothing yet
    except sqlite3.Error as error:
        return json.dumps({"error": "query", "message": f"its journal cannot be read: {error}"})
    return '{"rows":[]}'


def main() -> None:
    request = json.load(sys.stdin)
    text = settle(request["settle"]) if "settle" in request else answer(request)
    with open(3, "wb", closefd=False) as out:
        out.write(text.encode("utf-8", "backslashreplace"))


if __name__ == "__main__":
    main()
