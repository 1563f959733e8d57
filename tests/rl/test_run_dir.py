import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl.config import Config
from rl.durable import atomic_folder, atomic_write_json, require_free_bytes
from rl.machine import Machine
from rl.run_dir import RunDir, RunState, default_run_dir
from rl.run_lock import RunDirError
from rollout.jsonl import read_jsonl

# A checkpoint writer that is killed at the point named in argv[2]: "write" half-way through a file, "between"
# two files, "sync" before the fsyncs, "rename" just before the rename, "parent" just after it.
WRITER = """
import os, signal, sys
from pathlib import Path
import rl.durable as durable
path, point = Path(sys.argv[1]), sys.argv[2]

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

if point == "sync":
    durable._fsync_tree = die
if point == "rename":
    Path.rename = die
if point == "parent":
    sync = durable.fsync_folder
    durable.fsync_folder = lambda folder: die() if folder == path.parent else sync(folder)
with durable.atomic_folder(path) as folder:
    with (folder / "model.safetensors").open("wb") as file:
        file.write(b"w" * 100_000)
        file.flush()
        if point == "write":
            die()
        file.write(b"w" * 100_000)
    if point == "between":
        die()
    (folder / "sub").mkdir()
    (folder / "sub" / "config.json").write_text("{}")
"""


def test_a_temporary_of_our_own_number_was_left_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / "step_000001"
    left = tmp_path / f".step_000001.{platform.node()}.{os.getpid()}.tmp"  # a container that began again
    left.mkdir()
    (left / "half").write_text("")
    with atomic_folder(path) as folder:
        (folder / "whole").write_text("")
    assert [file.name for file in path.iterdir()] == ["whole"]
    assert not left.exists()


def test_a_resumed_run_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run") as run:
        left = run.checkpoints / ".step_000001.another-host.7.tmp"
        left.mkdir()
    with RunDir(tmp_path / "run", resumed=True):
        assert not left.exists()


KILL_POINTS = ("write", "between", "sync", "rename", "parent")


def write_checkpoint(path: Path, kill_at: str = "never") -> int:
    return subprocess.run([sys.executable, "-c", WRITER, str(path), kill_at], check=False).returncode


def assert_whole(path: Path):
    assert (path / "model.safetensors").read_bytes() == b"w" * 200_000
    assert (path / "sub" / "config.json").read_text() == "{}"


@pytest.mark.parametrize("point", KILL_POINTS)
def test_a_writer_killed_anywhere_leaves_no_half_checkpoint(tmp_path: Path, point: str):
    path = tmp_path / "step_000010"
    assert write_checkpoint(path, kill_at=point) == -signal.SIGKILL
    if path.exists():
        assert point == "parent"
        assert_whole(path)
    else:
        # The next writer of the same name clears what was left and succeeds.
        assert write_checkpoint(path) == 0
        assert_whole(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_000010"]


def test_an_exception_removes_the_temporary_and_is_passed_on(tmp_path: Path):
    def fail():
        with atomic_folder(tmp_path / "a") as folder:
            (folder / "x").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_never_overwritten(tmp_path: Path):
    path = tmp_path / "a"
    with atomic_folder(path) as folder:
        (folder / "x").write_text("first")
    with pytest.raises(FileExistsError, match="never overwritten"), atomic_folder(path) as folder:
        pytest.fail("the block must not run: its work would be lost")
    assert (path / "x").read_text() == "first"


def test_of_two_writers_the_slower_one_loses_and_the_first_folder_stays(tmp_path: Path):
    path = tmp_path / "a"

    def write_slowly():
        with atomic_folder(path) as folder:
            (folder / "x").write_text("slow")
            assert write_checkpoint(path) == 0

    with pytest.raises(FileExistsError):
        write_slowly()
    assert_whole(path)


def test_a_live_writer_is_not_disturbed_by_another(tmp_path: Path):
    path = tmp_path / "a"
    with atomic_folder(path) as folder:
        (folder / "x").write_text("mine")
        subprocess.run(
            [sys.executable, "-c", WRITER, str(path), "write"], check=False
        )  # clears what dead writers left, then dies
        assert (folder / "x").read_text() == "mine"
    assert (path / "x").read_text() == "mine"


def test_a_failed_write_leaves_the_old_json(tmp_path: Path):
    # A real write error: the kernel refuses to let a file grow past RLIMIT_FSIZE.
    path = tmp_path / "state.json"
    atomic_write_json(path, {"step": 1})
    program = f"""
import resource, signal
from pathlib import Path
from rl.durable import atomic_write_json
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
atomic_write_json(Path({str(path)!r}), {{"step": "x" * 5000}})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert done.returncode == 1
    assert json.loads(path.read_text()) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_too_little_disk_is_refused_with_the_shortfall(tmp_path: Path):
    require_free_bytes(tmp_path, 1, "a checkpoint")
    with pytest.raises(OSError, match=r"MB needed for a checkpoint; free [\d,]+ MB"):
        require_free_bytes(tmp_path, 10**18, "a checkpoint")


def test_a_directory_in_use_is_refused_with_its_owner_and_is_free_when_the_owner_is_killed(tmp_path: Path):
    path = tmp_path / "run"
    program = f"""
import sys, time
from pathlib import Path
from rl.run_dir import RunDir
run = RunDir(Path({str(path)!r}))
print("taken", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "taken\n"
        with pytest.raises(RunDirError, match=f"in use by process {owner.pid} on .*--run-dir"):
            RunDir(path)
        owner.kill()
    # Its files remain, so the directory is still refused, now for that reason.
    with pytest.raises(RunDirError, match="is not empty"):
        RunDir(path)


def test_a_child_process_does_not_keep_the_directory_locked(tmp_path: Path):
    run = RunDir(tmp_path / "run")
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    run.close()
    try:
        with pytest.raises(RunDirError, match="is not empty"):  # and not "in use"
            RunDir(tmp_path / "run")
    finally:
        child.kill()
        child.wait()


def test_a_folder_with_anything_in_it_is_refused_and_untouched(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(RunDirError, match=r"thesis\.tex"):
        RunDir(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_config_manifest_metrics_and_state_are_on_disk(tmp_path: Path):
    machine = Machine(host="h", cores=2, memory_bytes=8 << 30, gpus=("H200",))
    config = Config(env="calc", reward="shuffled:calc")
    state = RunState(step=3, next_task_index=48, policy_version=3, num_optimizer_steps=3, wall_s=1.5)
    with RunDir(tmp_path / "run") as run:
        run.write_config(config)
        run.write_manifest(config, machine)
        run.append_metrics(1, {"rollout/reward_mean": 0.1})
        run.append_metrics(2, {"rollout/reward_mean": 0.2})
        run.write_state(state)
        assert run.read_state() == state
    assert Config(**json.loads((run.path / "config.json").read_text())) == config
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["env"] == "calc"
    assert manifest["reward"] == "shuffled:calc"
    assert manifest["machine"]["cores"] == 2
    assert manifest["versions"]["torch"].startswith("2.")
    assert Path(manifest["command_line"][0]).name.startswith("python")
    assert [row["rollout/reward_mean"] for row in read_jsonl(run.path / "metrics.jsonl")] == [0.1, 0.2]
    assert list(run.checkpoints.iterdir()) == []


def test_two_runs_in_one_second_get_two_directories(tmp_path: Path):
    paths = []
    deadline = time.monotonic() + 5
    while len(paths) < 3 and time.monotonic() < deadline:
        paths.append(default_run_dir("calc_grpo", tmp_path))
        paths[-1].mkdir()
    assert len(set(paths)) == 3
    assert all(path.name.startswith("calc_grpo-") for path in paths)
    assert os.listdir(tmp_path)
