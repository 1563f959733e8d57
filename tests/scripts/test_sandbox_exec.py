"""python -m scripts.sandbox_exec: output and exit codes pass through; what went wrong has its own code."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.sandbox_exec import MEMORY, SANDBOX_ERROR, TIMEOUT


def execute(tmp_path: Path, code: str, *options: str, **kwargs) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "program.py"
    file.write_text(code)
    command = [sys.executable, "-m", "scripts.sandbox_exec", *options, str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **kwargs)


def test_output_and_exit_code_pass_through(tmp_path):
    done = execute(tmp_path, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


@pytest.mark.parametrize(
    ("code", "options", "expected"),
    [
        ("while True: pass", ("--wall-s", "0.5"), TIMEOUT),
        ("held = []\nwhile True: held.append(bytearray(10 << 20))", ("--mem-mb", "100"), MEMORY),
        ("bytearray(4 << 30)", ("--mem-mb", "100"), MEMORY),
        ("import os; os.kill(os.getpid(), 11)", (), 128 + 11),
        ("raise KeyError('k')", (), 1),
    ],
)
def test_each_end_has_its_code(tmp_path, code, options, expected):
    assert execute(tmp_path, code, *options).returncode == expected


def test_what_it_printed_before_its_end_is_there(tmp_path):
    done = execute(tmp_path, "print('so far', flush=True)\nwhile True: pass", "--wall-s", "0.5")
    assert done.stdout == "so far\n"
    assert "timeout" in done.stderr


def test_a_traceback_shows_the_line_that_raised(tmp_path):
    done = execute(tmp_path, "def f():\n    return {}['missing']\nf()\n")
    assert "return {}['missing']" in done.stderr
    assert "KeyError: 'missing'" in done.stderr
    assert "envs/sandbox" not in done.stderr


def test_output_is_bounded_and_says_so(tmp_path):
    done = execute(tmp_path, "print('x' * 5000)", "--output-kb", "1")
    assert len(done.stdout) == 1024
    assert "cut" in done.stderr


def test_it_starts_with_the_files_of_its_workdir_and_leaves_the_folder_alone(tmp_path):
    folder = tmp_path / "work"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "in.txt").write_bytes(b"\x00\xff data")
    (folder / "link").symlink_to("/etc/passwd")
    code = "import os; print(open('deep/in.txt', 'rb').read(), os.path.lexists('link')); open('new', 'w')"
    done = execute(tmp_path, code, "--workdir", str(folder))
    assert done.stdout == "b'\\x00\\xff data' False\n"
    assert sorted(path.name for path in folder.rglob("*")) == ["deep", "in.txt", "link"]


def test_standard_input_reaches_it_when_it_is_asked_for(tmp_path):
    assert execute(tmp_path, "print(input())", "--stdin", input="hello\n").stdout == "hello\n"
    assert "EOFError" in execute(tmp_path, "print(input())", input="hello\n").stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--wall-s", "0"), "wall_s is 0.0; expected more than 0"),
        (("--mem-mb", "-1"), "mem_mb is -1"),
        (("--wall-s", "inf"), "less than infinity"),
        (("--backend", "landlok"), "did you mean 'landlock'"),
        (("--min-level", "4"), "level 4"),
        (("--backend", "rlimits", "--min-level", "1"), "two consents"),
        (("--workdir", "/nowhere"), "no folder"),
    ],
)
def test_what_cannot_be_had_is_refused_in_words(tmp_path, options, words):
    done = execute(tmp_path, "print('ran')", *options)
    assert done.returncode == SANDBOX_ERROR
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_missing_file_is_no_traceback():
    command = [sys.executable, "-m", "scripts.sandbox_exec", "/nowhere.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == SANDBOX_ERROR
    assert done.stderr.startswith("sandbox_exec: ")
