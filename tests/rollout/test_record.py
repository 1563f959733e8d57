import logging
import resource
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs.episode import Episode, Score
from envs.messages import ParseStatus, StopReason, Task, ToolCall, message
from envs.tools import dispatch, parse_calls, tool
from rollout.jsonl import JsonlWriter, read_jsonl
from rollout.record import Record, TrajectoryRecorder, decode_record, encode_record, read_records
from rollout.trajectory import Completion, Trajectory, TrajectoryError, Turn, VersionSpan
from tests.made_trajectories import completion, trajectory

NO_LIMIT = 10**9


def full_trajectory() -> Trajectory:
    """Every field differs from its default: a fork, two versions in one completion, a call that failed."""
    call = ToolCall(id="call_1", name="add", arguments={"a": 1, "b": [2.5, None]}, text="add 1 [2.5,null]")
    wrong = ToolCall(id="call_2", name="ad", status=ParseStatus.UNKNOWN_TOOL, text="ad", problem="no ad")
    transcript = (
        message("user", "1+2=? \ud800 ü 漢 \x1b[31m\n\u2028"),  # a lone surrogate, controls, a line separator
        message("assistant", "", tool_calls=(call, wrong)),
        message("tool", "3", tool_call_id="call_1"),
        message("tool", "error: no ad", tool_call_id="call_2", is_error=True),
    )
    logprobs = tuple(float(x) for x in np.float32([-0.1, -1e-30, -3.4028235e38]))
    forked = Completion(
        token_ids=(10, 11, 12),
        logprobs=logprobs,
        version_spans=(VersionSpan(version=3, start=0, end=1), VersionSpan(version=4, start=1, end=3)),
        finish_reason="length",
    )
    task = Task(
        id="x",
        env="my.py:E",
        messages=transcript[:1],
        answer="3",
        metadata={"k": [1, {"z": None}]},
        level=2,
        seed=9,
    )
    return Trajectory(
        id="5-17-2",
        episode=Episode(
            task=task,
            transcript=transcript,
            stop_reason=StopReason.MAX_TURN_TOKENS,
            final_state={"files": ["a", "b"]},
            metrics={"tool_calls": 2.0},
        ),
        turns=(
            Turn(parent=None, context_ids=(1, 2), completion=forked),
            Turn(parent=0, context_ids=(3,), completion=forked, reward=0.5),
            Turn(parent=0, context_ids=(4, 5), completion=forked),
        ),
        score=Score(
            value=0.5,
            parts={"format": 0.25},
            success=0.0,
            error="judge was slow",
            explanation="so so",
            error_kind="judge",
        ),
        error=TrajectoryError(kind="WorldError", message="gone"),
        timings_s={"generate": 1.25, "tools": 0.1},
    )


def record(member: int = 0, **fields) -> Record:
    return Record(step=5, split="train", group=17, member=member, trajectory=full_trajectory(), **fields)


def write(path: Path, *records: Record, max_bytes: int = NO_LIMIT) -> int:
    recorder = TrajectoryRecorder(path, max_bytes=max_bytes)
    try:
        return recorder.write(records)
    finally:
        recorder.close()


def test_a_record_comes_back_equal_in_every_field(tmp_path: Path):
    old = ((-0.1, -0.2, -0.3), (-1.0, -2.0, -3.0), (-4.0, -5.0, -6.0))
    weights = ((0.5, 0.5, 0.5), (0.5, -0.5, 0.25), (-0.0, -0.0, -0.0))
    given = [record(0, old_logprobs=old, advantages=weights), record(1)]
    write(tmp_path / "t.jsonl", *given)
    assert list(read_records(tmp_path / "t.jsonl")) == given


def test_a_trajectory_without_a_turn_and_without_a_score_comes_back_equal(tmp_path: Path):
    empty = replace(record(), trajectory=trajectory(turns=(), reward=None), old_logprobs=())
    write(tmp_path / "t.jsonl", empty)
    assert list(read_records(tmp_path / "t.jsonl")) == [empty]


def test_every_float32_logprob_comes_back_bit_equal(tmp_path: Path):
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32)
    floats = bits.view(np.float32)
    floats = floats[np.isfinite(floats)]
    spoken = Completion(
        token_ids=tuple(range(len(floats))),
        logprobs=tuple(floats),  # np.float32, as an engine may hand them over
        version_spans=(VersionSpan(version=0, start=0, end=len(floats)),),
        finish_reason="stop",
    )
    turns = (Turn(parent=None, context_ids=(1,), completion=spoken),)
    write(tmp_path / "t.jsonl", replace(record(), trajectory=trajectory(turns=turns)))
    (back,) = read_records(tmp_path / "t.jsonl")
    read = back.trajectory.turns[0].completion.logprobs
    assert struct.pack(f"{len(read)}f", *read) == floats.tobytes()


def test_kept_ids_come_back_equal_and_an_older_record_has_none(tmp_path: Path):
    spoken = replace(completion([10, 11]), kept_ids=((7, 10), (11,)))
    turns = (Turn(parent=None, context_ids=(1,), completion=spoken),)
    kept = replace(record(), trajectory=trajectory(turns=turns))
    write(tmp_path / "t.jsonl", kept)
    assert list(read_records(tmp_path / "t.jsonl")) == [kept]
    row = encode_record(kept)
    del row["turns"][0]["kept_ids"]
    assert decode_record(row).trajectory.turns[0].completion.kept_ids is None


def test_a_score_of_an_older_record_has_no_explanation_and_no_kind_of_error():
    row = encode_record(record())
    assert decode_record(row).trajectory.score == full_trajectory().score
    del row["score"]["explanation"], row["score"]["error_kind"]
    score = decode_record(row).trajectory.score
    assert (score.explanation, score.error_kind, score.error) == ("", "", "judge was slow")


def test_old_logprobs_of_the_wrong_length_are_refused():
    with pytest.raises(ValueError, match=r"\[3, 3, 2\].*\[3, 3, 3\]"):
        record(old_logprobs=((0.0,) * 3, (0.0,) * 3, (0.0,) * 2))


async def test_a_call_that_did_not_run_has_no_time():
    @tool
    def look(where: str) -> str:
        """Look."""
        return where

    calls = parse_calls("[look here] [lok here] [look there", [look.spec])
    told = await dispatch(calls, {"look": look})
    assert list(told.call_s) == ["call_0"]
    assert told.call_s["call_0"] >= 0


def test_advantages_that_a_turn_shares_take_one_number_and_come_back_for_every_token():
    nan = float("nan")
    given = record(advantages=((0.5, 0.5, 0.5), (0.0, -0.0, 0.0), (nan, nan, nan)))
    row = encode_record(given)
    assert row["advantages"][0] == 0.5
    assert repr(row["advantages"][1:]) == "[[0.0, -0.0, 0.0], nan]"
    assert repr(decode_record(row).advantages) == repr(given.advantages)


def test_an_older_record_has_no_advantages():
    row = encode_record(record(advantages=((0.5,) * 3,) * 3))
    del row["advantages"]
    assert decode_record(row).advantages is None


def test_advantages_of_the_wrong_length_are_refused():
    with pytest.raises(ValueError, match=r"advantages has \[3, 3\].*\[3, 3, 3\]"):
        record(advantages=((0.0,) * 3, (0.0,) * 3))


def test_a_value_that_is_not_json_names_the_trajectory(tmp_path: Path):
    odd = full_trajectory()
    odd = replace(odd, episode=replace(odd.episode, final_state={"x": {1, 2}}))
    with pytest.raises(TypeError) as caught:
        write(tmp_path / "t.jsonl", replace(record(), trajectory=odd))
    assert "5-17-2" in str(caught.value.__notes__)


def test_recording_stops_before_the_limit_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "t.jsonl"
    write(path, record())
    size = path.stat().st_size
    recorder = TrajectoryRecorder(path, max_bytes=size * 3)
    with caplog.at_level(logging.WARNING):
        assert recorder.write([record(), record(), record()]) == 2
        assert recorder.write([record()]) == 0
    recorder.close()
    assert path.stat().st_size == size * 3
    assert len(caplog.records) == 1
    assert f"max_bytes = {size * 3}" in caplog.text


def test_half_a_line_of_a_killed_writer_is_not_read_and_is_cut_off_by_the_next(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a":1}\n{"a":2}\n{"a":' + b"3" * 100_000)
    assert [row["a"] for row in read_jsonl(path)] == [1, 2]
    with JsonlWriter(path) as writer:
        writer.append([{"a": 4}])
    assert path.read_bytes() == b'{"a":1}\n{"a":2}\n{"a":4}\n'


def test_a_damaged_line_names_file_and_line(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a":1}\n{"a":\n{"a":3}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2"):
        list(read_jsonl(path))


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path):
    # A real write error: the kernel refuses to let the file grow past RLIMIT_FSIZE.
    path = tmp_path / "rows.jsonl"
    program = f"""
import resource, signal
from pathlib import Path
from rollout.jsonl import JsonlWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = JsonlWriter(Path({str(path)!r}))
writer.append([{{"a": 1}}])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    writer.append([{{"a": "x" * 5000}}])
except OSError as error:
    print(error.strerror, error.__notes__)
writer.append([{{"a": 2}}])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert "left as it was" in done.stdout
    assert path.read_bytes() == b'{"a":1}\n{"a":2}\n'
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
