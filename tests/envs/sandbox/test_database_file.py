"""Copying a database: all that was committed is there, and the file never notices."""

import hashlib
import os
import sqlite3
from pathlib import Path

import pytest

from envs.sandbox.sql import connect


def make_database(path: Path) -> Path:
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE bill(id INTEGER); INSERT INTO bill VALUES (1), (2), (3);")
    connection.close()
    return path


def digest(folder: Path) -> dict[str, str]:
    files = (file for file in folder.iterdir() if file.is_file())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_two_connections_and_a_writer_do_not_meet(tmp_path: Path):
    path = make_database(tmp_path / "shop.db")
    with connect(path) as first:
        writer = sqlite3.connect(path, timeout=0.1)
        writer.execute("BEGIN EXCLUSIVE")  # would fail if a connection held a lock
        writer.execute("DELETE FROM bill")
        with connect(path) as second:
            writer.execute("COMMIT")
            assert first.execute("SELECT count(*) FROM bill") == second.execute("SELECT count(*) FROM bill")
        writer.close()
        with connect(path) as third:
            assert third.execute("SELECT count(*) FROM bill") == [(0,)]
        assert first.execute("SELECT count(*) FROM bill") == [(3,)]


def test_what_a_write_ahead_log_holds_is_read_and_the_log_is_left_alone(tmp_path: Path):
    path = make_database(tmp_path / "wal.db")
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("INSERT INTO bill VALUES (4)")
    before = digest(tmp_path)
    assert before.keys() == {"wal.db", "wal.db-wal", "wal.db-shm"}
    with connect(path) as database:
        assert database.execute("SELECT count(*) FROM bill") == [(4,)]
    assert digest(tmp_path) == before
    writer.close()
    with connect(path) as database:  # closed cleanly: no log, but a header that says WAL
        assert database.execute("SELECT count(*) FROM bill") == [(4,)]


def test_a_file_that_cannot_be_copied_is_refused(tmp_path: Path):
    path = make_database(tmp_path / "shop.db")
    (tmp_path / "link.db").symlink_to(path)
    (tmp_path / "notes.db").write_text("not a database at all")
    os.mkfifo(tmp_path / "fifo.db")
    for name, problem in {
        "link.db": "is a link; give the file",
        "notes.db": "is no SQLite database",
        "fifo.db": "is no regular file",
        ".": "is no regular file",
    }.items():
        with pytest.raises(ValueError, match=problem):
            connect(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no database"):
        connect(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "empty.db").touch()
    with connect(tmp_path / "empty.db") as database:
        assert database.execute("SELECT count(*) FROM sqlite_master") == [(0,)]
