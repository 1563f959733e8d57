"""The viewer's command line: what it refuses, and the file that it exports."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.viewer.server import SCRIPTS
from tests.running import ROOT
from tests.scripts.made_run import HOSTILE, Made, make_run


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make_run(tmp_path / "run")


def view(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.view", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_bad_input_on_the_command_line_says_what_to_do(made: Made, tmp_path: Path):
    out, taken_name = tmp_path / "out.html", tmp_path / "taken.html"
    taken_name.write_text("mine")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for arguments, says in (
            ((tmp_path / "nowhere",), "there is no such directory"),
            ((made.path, "--port", taken.getsockname()[1]), "give another --port, or --port 0"),
            ((made.path, "--step", 1), "--export FILE.html"),
            ((made.path, "--export", out), "either --step N or --trajectory LINE"),
            ((made.path, "--export", out, "--step", 9), "step 9 has no recorded trajectory"),
            ((made.path, "--export", taken_name, "--step", 9), "taken.html exists already"),
            (
                (made.path, "--export", tmp_path / ("x" * 300), "--step", 1),
                "cannot be written (File name too long)",
            ),
        ):
            done = view(*arguments)
            assert done.returncode == 2
            assert says in done.stderr
            assert "Traceback" not in done.stderr
    assert not out.exists()
    assert taken_name.read_text() == "mine"


def test_half_an_export_is_not_left_and_none_is_overwritten(made: Made, tmp_path: Path):
    # A real write error: the kernel refuses to let a file grow past RLIMIT_FSIZE.
    program = f"""
import resource, signal
from pathlib import Path
from scripts.viewer.api import Answers
from scripts.viewer.export import NotWritten, chosen_rows, write_export
from scripts.viewer.run import ViewedRun
run = ViewedRun(Path({str(made.path)!r}))
run.refresh_fully()
chosen = chosen_rows(run, step=1, trajectory=None)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for name in ("out.html", "taken.html"):
    try:
        write_export(Path({str(tmp_path)!r}) / name, Answers([run]), chosen)
    except NotWritten as error:
        print(error)
"""
    (tmp_path / "taken.html").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "out.html cannot be written (File too large); nothing is left" in done.stdout
    assert "taken.html exists already" in done.stdout
    assert not (tmp_path / "out.html").exists()
    assert (tmp_path / "taken.html").read_text() == "mine"


def test_an_export_is_one_file_that_names_no_other(made: Made, tmp_path: Path):
    lines = (made.path / "trajectories.jsonl").read_bytes().splitlines(keepends=True)
    lines[3] = b"broken\n"
    (made.path / "trajectories.jsonl").write_bytes(b"".join(lines))
    out = tmp_path / "step.html"
    done = view(made.path, "--export", out, "--step", 2)
    assert done.returncode == 0, done.stderr
    assert "trajectories.jsonl, line 4: " in done.stderr
    html = out.read_text(encoding="utf-8")
    assert "8 trajectories" in done.stdout
    assert "/static/" not in html
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", html)
    assert html.count("<script") == len(SCRIPTS) + 1  # the model's own is "\u003cscript"
    block = re.search(r'id="embedded">(.*?)</script>', html)
    assert block is not None
    data = json.loads(block.group(1))
    assert data["/api/runs/0/trajectories/18"]["messages"][-1]["text"].startswith(HOSTILE[:8])
    assert [row["line"] for row in data["/api/runs/0/rows"]] == list(range(11, 19))
    one = tmp_path / "one.html"
    assert "1 trajectory, " in view(made.path, "--export", one, "--trajectory", 11).stdout
