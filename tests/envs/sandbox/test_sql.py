"""SQL in a sandbox: reading works, nothing else does, and the file is as it was."""

import hashlib
import math
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.sandbox.base import Limits, Sandbox
from envs.sandbox.sql import (
    SqlDatabase,
    SqlDeniedError,
    SqlError,
    SqlMemoryError,
    SqlQueryError,
    SqlTimeoutError,
    SqlTooManyBytesError,
    SqlTooManyRowsError,
    connect,
    query_in,
)

LIMITS = {"timeout_s": 2.0, "max_rows": 500, "max_bytes": 100_000}
SCHEMA = """
CREATE TABLE person(id INTEGER PRIMARY KEY, name TEXT, city TEXT, born TEXT);
CREATE TABLE bill(id INTEGER PRIMARY KEY, person INTEGER REFERENCES person(id), amount REAL, note BLOB);
INSERT INTO person VALUES (1, 'Ada', 'Köln', '1990-05-01'), (2, 'Bob', NULL, '1985-12-31'),
    (9007199254740993, '李雷', 'Oslo', '2001-02-28');
INSERT INTO bill VALUES (1, 1, 10.5, x'00ff'), (2, 1, 4.5, NULL), (3, 2, 100, x'');
CREATE VIEW total AS SELECT person, sum(amount) AS amount FROM bill GROUP BY person;
CREATE TRIGGER into_total INSTEAD OF INSERT ON total BEGIN INSERT INTO bill VALUES (99, 1, 1, NULL); END;
CREATE VIRTUAL TABLE document USING fts5(body);
INSERT INTO document VALUES ('a quick fox'), ('a lazy dog');
"""


def make_database(path: Path) -> Path:
    connection = sqlite3.connect(path)
    connection.executescript(SCHEMA)
    connection.close()
    return path


def digest(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.is_file()
    }


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Iterator[tuple[SqlDatabase, Path]]:
    """One connection for the module: every statement, hostile ones included, must leave it as it was."""
    path = make_database(tmp_path_factory.mktemp("sql") / "shop.db")
    before = digest(path.parent)
    with connect(path, LIMITS) as database:
        yield database, path
        assert database.execute("SELECT count(*) FROM bill") == [(3,)]
    assert digest(path.parent) == before


HARMLESS = [
    ("SELECT name FROM person ORDER BY id LIMIT 2", [("Ada",), ("Bob",)]),
    ("SELECT id FROM person WHERE name = '李雷'", [(9007199254740993,)]),
    ("SELECT 9223372036854775807, -9223372036854775808", [(2**63 - 1, -(2**63))]),
    ("SELECT note FROM bill ORDER BY id", [(b"\0\xff",), (None,), (b"",)]),
    ("SELECT name, amount FROM person p JOIN total t ON t.person = p.id", [("Ada", 15.0), ("Bob", 100.0)]),
    ("SELECT p.name, count(b.id) FROM person p LEFT JOIN bill b ON b.person = p.id GROUP BY p.id HAVING "
     "count(b.id) = 0", [("李雷", 0)]),
    ("WITH RECURSIVE n(i) AS (SELECT 1 UNION SELECT i + 1 FROM n WHERE i < 5) SELECT sum(i) FROM n", [(15,)]),
    ("WITH c AS (SELECT max(amount) m FROM bill) SELECT id FROM bill, c WHERE amount = m", [(3,)]),
    ("SELECT id, sum(amount) OVER (ORDER BY id) FROM bill", [(1, 10.5), (2, 15.0), (3, 115.0)]),
    ("SELECT rank() OVER (PARTITION BY person ORDER BY amount) FROM bill ORDER BY id", [(2,), (1,), (1,)]),
    ("SELECT city FROM person WHERE city LIKE 'k%' OR city GLOB 'O*' ORDER BY id", [("Köln",), ("Oslo",)]),
    ("SELECT name FROM person WHERE city IS NULL", [("Bob",)]),
    ("SELECT id FROM bill WHERE person IN (SELECT id FROM person WHERE name > 'A')", [(1,), (2,), (3,)]),
    ("SELECT 1 UNION SELECT 2 UNION SELECT 1 ORDER BY 1", [(1,), (2,)]),
    ("SELECT id FROM bill EXCEPT SELECT 2 INTERSECT SELECT 3", [(3,)]),
    ("SELECT date('2024-01-31', '+1 month'), strftime('%Y', '1990-05-01')", [("2024-03-02", "1990")]),
    ("SELECT julianday(born) > 0 FROM person WHERE id = 2", [(1,)]),
    ("SELECT json_extract('{\"a\": [1, 2]}', '$.a[1]'), '{\"b\": \"x\"}' ->> 'b'", [(2, "x")]),
    ("SELECT value FROM json_each('[3, 4]')", [(3,), (4,)]),
    ("SELECT json_group_array(name) FROM person WHERE id < 3", [('["Ada","Bob"]',)]),
    ("SELECT CASE WHEN amount > 50 THEN 'much' ELSE 'little' END FROM bill WHERE id = 3", [("much",)]),
    ("SELECT upper(name) || length(name), coalesce(city, '?') FROM person WHERE id = 2", [("BOB3", "?")]),
    ("SELECT group_concat(name, ';') FROM person WHERE id < 3", [("Ada;Bob",)]),
    ("SELECT round(avg(amount), 2), min(amount), total(amount) FROM bill", [(38.33, 4.5, 115.0)]),
    ("SELECT printf('%05.1f', 3.14159), sqrt(16), 7 / 2, 7 % 4, 7 / 2.0", [("003.1", 4.0, 3, 3, 3.5)]),
    ("SELECT CAST('12' AS INTEGER), typeof(1.0), hex(x'0f')", [(12, "real", "0F")]),
    ("SELECT 1; -- and a comment", [(1,)]),
    ("SELECT name FROM sqlite_master WHERE type = 'view'", [("total",)]),
    ("SELECT body FROM document WHERE document MATCH 'fox'", [("a quick fox",)]),
    ("SELECT 9e999, -9e999, 'a' || char(0) || 'b'", [(math.inf, -math.inf, "a\0b")]),
    ("VALUES (1, 'x'), (2, 'y')", [(1, "x"), (2, "y")]),
    ("SELECT id FROM person p WHERE EXISTS (SELECT 1 FROM bill WHERE person = p.id) LIMIT 1", [(1,)]),
    ("SELECT 1 FROM person WHERE 0", []),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "rows"), HARMLESS)
def test_reading_works(shop, sql: str, rows: list[tuple]):
    assert shop[0].execute(sql) == rows


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
HOSTILE = [
    ("ATTACH '/etc/passwd' AS p", SqlDeniedError),
    ("ATTACH 'file:/work/new.db?mode=rwc' AS p", SqlDeniedError),
    ("DETACH main", SqlDeniedError),
    ("VACUUM INTO '/work/copy.db'", SqlDeniedError),
    ("VACUUM", SqlDeniedError),
    ("PRAGMA writable_schema = 1", SqlDeniedError),
    ("PRAGMA query_only = 0", SqlDeniedError),
    ("PRAGMA journal_mode = WAL", SqlDeniedError),
    ("PRAGMA hard_heap_limit = 0", SqlDeniedError),
    ("PRAGMA temp_store_directory = '/'", SqlDeniedError),
    ("/* a */ PRAGMA -- b\n table_info(person)", SqlDeniedError),
    ("SELECT * FROM pragma_table_info('person')", SqlDeniedError),
    ("SELECT * FROM pragma_database_list", SqlDeniedError),
    ("SELECT * FROM pragma_hard_heap_limit(0)", SqlDeniedError),
    ("SELECT load_extension('/lib/x86_64-linux-gnu/libc.so.6')", SqlDeniedError),
    ("SELECT LOAD_extension('x', 'y')", SqlDeniedError),
    ("SELECT fts3_tokenizer('simple')", SqlDeniedError),
    ("SELECT fts3_tokenizer('simple', x'4141414141414141')", SqlDeniedError),
    ("SELECT readfile('/etc/passwd')", SqlError),
    ("SELECT writefile('/work/x', 'y')", SqlError),
    ("SELECT edit('x')", SqlError),
    ("INSERT INTO person VALUES (7, 'x', 'y', 'z')", SqlDeniedError),
    ("INSERT INTO total VALUES (1, 1)", SqlDeniedError),
    ("UPDATE person SET name = 'x'", SqlDeniedError),
    ("DELETE FROM bill", SqlDeniedError),
    ("REPLACE INTO person(id) VALUES (1)", SqlDeniedError),
    ("WITH x AS (SELECT 1) DELETE FROM bill", SqlDeniedError),
    ("DELETE FROM bill RETURNING *", SqlDeniedError),
    ("DROP TABLE person", SqlDeniedError),
    ("ALTER TABLE person RENAME TO p", SqlDeniedError),
    ("CREATE TABLE t AS SELECT * FROM person", SqlDeniedError),
    ("CREATE TEMP TABLE t(a)", SqlDeniedError),
    ("CREATE TEMP TRIGGER t AFTER DELETE ON person BEGIN SELECT 1; END", SqlDeniedError),
    ("CREATE TEMP VIEW v AS SELECT 1", SqlDeniedError),
    ("CREATE VIRTUAL TABLE temp.f USING fts5(a)", SqlDeniedError),
    ("CREATE INDEX i ON person(name)", SqlDeniedError),
    ("DELETE FROM sqlite_master", SqlError),
    ("UPDATE sqlite_schema SET sql = 'x'", SqlError),
    ("INSERT INTO document(document) VALUES ('rebuild')", SqlDeniedError),
    ("ANALYZE", SqlDeniedError),
    ("REINDEX", SqlDeniedError),
    ("BEGIN EXCLUSIVE", SqlDeniedError),
    ("SAVEPOINT a", SqlDeniedError),
    ("EXPLAIN DELETE FROM bill", SqlDeniedError),
    ("SELECT 1; DROP TABLE person", SqlDeniedError),
    ("SELECT 1; SELECT 2", SqlDeniedError),
    ("SELECT 1\0; DROP TABLE person", SqlQueryError),
    ("SELECT '\ud800'", SqlError),
    ("", SqlQueryError),
    ("-- nothing", SqlQueryError),
    ("SELEC 1", SqlQueryError),
    ("SELECT nothing FROM person", SqlQueryError),
    ("SELECT * FROM dbstat", SqlDeniedError),
    ("SELECT * FROM sqlite_stmt", SqlDeniedError),
    ("SELECT * FROM sqlite_dbpage", SqlError),
    (f"{ENDLESS} SELECT count(*) FROM n", SqlTimeoutError),
    (f"{ENDLESS} SELECT i FROM n WHERE i < 0", SqlTimeoutError),
    (f"{ENDLESS} SELECT i FROM n LIMIT 5000000", SqlTooManyRowsError),
    (f"{ENDLESS} SELECT hex(zeroblob(400000)) FROM n", SqlTooManyBytesError),
    ("WITH RECURSIVE n(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM n) SELECT length(s) FROM n", SqlError),
    (f"{ENDLESS} SELECT group_concat(i) FROM n", SqlError),
    (f"{ENDLESS} SELECT sum(length(hex(randomblob(500000)))) FROM n", SqlTimeoutError),
    (f"{ENDLESS} SELECT json_group_array(hex(randomblob(400000))) FROM n", SqlError),
    ("SELECT zeroblob(1100000000)", SqlTooManyBytesError),
    ("SELECT hex(randomblob(1000000))", SqlTooManyBytesError),
    ("SELECT replace(hex(zeroblob(400000)), '0', 'xxxxxxxxxx')", SqlTooManyBytesError),
    ("SELECT 1 WHERE '" + "a" * 5000 + "' LIKE '" + "%a" * 150 + "%b'", SqlError),
    ("SELECT " + "(" * 500 + "1" + ")" * 500, SqlError),
    ("SELECT " + "+".join(["1"] * 5000), SqlError),
    (" UNION ALL ".join(["SELECT 1"] * 300), SqlError),
    ("SELECT '" + "x" * 200_000 + "'", SqlError),
    ("SELECT 1 WHERE 'a' REGEXP '(a+)+$'", SqlError),
    ("SELECT count(*) FROM " + ",".join(f"person p{i}" for i in range(40)), SqlError),
    (f"{ENDLESS} SELECT i FROM (SELECT i FROM n LIMIT 3000000) ORDER BY random()", SqlError),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "error"), HOSTILE)
def test_nothing_but_reading_works(shop, sql: str, error: type[SqlError]):
    started = time.monotonic()
    with pytest.raises(error):
        shop[0].execute(sql)
    assert time.monotonic() - started < 5
    assert shop[0].execute("SELECT sum(amount) FROM bill") == [(115.0,)]


def test_one_printf_cannot_fill_the_memory(shop):
    """SQLite gives NULL where a formatted text would be too long."""
    assert shop[0].execute("SELECT length(printf('%.*c', 100000000, 'x'))") in ([(None,)], [(0,)])


def test_rows_and_bytes_at_the_limit_pass_and_one_more_does_not(shop):
    path = shop[1]
    with connect(path, LIMITS | {"max_rows": 3, "max_bytes": 40}) as database:
        assert len(database.execute("SELECT 1 FROM person")) == 3
        with pytest.raises(SqlTooManyRowsError, match="more than 3 rows"):
            database.execute("SELECT 1 FROM person UNION ALL SELECT 1")
        assert database.execute("SELECT printf('%.36c', 'x')") == [("x" * 36,)]  # ["xx"]: four more
        with pytest.raises(SqlTooManyBytesError, match="more than 40 bytes"):
            database.execute("SELECT printf('%.37c', 'x')")


def given(database: SqlDatabase, sql: str) -> list | SqlError:
    try:
        return database.execute(sql)
    except SqlError as error:
        return error


@pytest.mark.parametrize(("sql", "max_bytes", "kind"), [
    (f"{ENDLESS} SELECT i FROM n LIMIT 100000", 1 << 20, list),  # 688,895 bytes of rows, 99,999 of commas
    (f"{ENDLESS} SELECT i FROM n LIMIT 130000", 1 << 20, SqlTooManyBytesError),  # without commas: less
    (f"{ENDLESS} SELECT i FROM n LIMIT 130000", 1 << 21, list),
    ("SELECT 1 FROM person", 11, list),  # [1],[1],[1]
    ("SELECT 1 FROM person", 10, SqlTooManyBytesError),
    ("SELECT " + "\U0001f600" * 600, 1, SqlQueryError),  # the message is the longest that there can be
    ("SELECT [" + "\x01" * 600 + "]", 1, SqlQueryError),
])  # fmt: skip
def test_whatever_a_statement_gives_is_no_failure_of_the_sandbox(shop, sql: str, max_bytes: int, kind: type):
    limits = {"timeout_s": 20, "max_rows": 200_000, "max_bytes": max_bytes}
    with connect(shop[1], limits) as database:
        assert type(given(database, sql)) is kind


def test_memory_is_bounded(shop):
    """SQLite spills what it cannot keep, and meets the end of the sandbox's disk, or of its time."""
    with pytest.raises((SqlMemoryError, SqlTimeoutError)):
        shop[0].execute(f"{ENDLESS} SELECT count(DISTINCT a) FROM (SELECT hex(randomblob(1000)) AS a FROM n)")


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({}, "lack timeout_s, max_rows, max_bytes"),
        ({"timeout_s": 1, "max_rows": 5}, "lack max_bytes"),
        (LIMITS | {"max_row": 5}, "unknown SQL limit 'max_row'; did you mean 'max_rows'"),
        (LIMITS | {"max_rows": 0}, "max_rows is 0; expected a whole number above 0"),
        (LIMITS | {"max_rows": None}, "max_rows is None"),
        (LIMITS | {"max_bytes": -1}, "max_bytes is -1"),
        (LIMITS | {"max_bytes": 1.5}, "max_bytes is 1.5"),
        (LIMITS | {"max_bytes": True}, "max_bytes is True"),
        (LIMITS | {"timeout_s": math.inf}, "timeout_s is inf"),
        (LIMITS | {"timeout_s": 0}, "timeout_s is 0"),
    ],
)
def test_limits_cannot_be_switched_off(tmp_path: Path, limits: dict, problem: str):
    with pytest.raises(ValueError, match=problem):
        connect(make_database(tmp_path / "shop.db"), limits)


def test_a_closed_database_says_so(tmp_path: Path):
    database = connect(make_database(tmp_path / "shop.db"))
    database.close()
    database.close()
    with pytest.raises(ValueError, match="is closed; connect again"):
        database.execute("SELECT 1")


async def test_an_episodes_own_sandbox_is_asked_the_same_way(tmp_path: Path):
    data = make_database(tmp_path / "shop.db").read_bytes()
    async with Sandbox.open(Limits(wall_s=5), files={"data.db": data}) as box:
        assert await box.sql("SELECT count(*) FROM person") == [(3,)]
        with pytest.raises(SqlDeniedError, match="not allowed: DELETE"):
            await query_in(box, "DELETE FROM person")
        with pytest.raises(ValueError, match="expected at most 5"):
            await query_in(box, "SELECT 1", limits=LIMITS | {"timeout_s": 9})
        with pytest.raises(SqlQueryError, match="unable to open"):
            await box.sql("SELECT 1", database="other.db")
