import json
import os
from pathlib import Path
from typing import Any

import pytest

from rl.run_lock import LOCK_NAME as LOCK_OF_A_RUN
from rollout.record import Record, TrajectoryRecorder, encode_record
from scripts.viewer.api import Answers
from scripts.viewer.index import TrajectoryIndex, UnknownLine
from scripts.viewer.query import FilterError, Filters, beside, parse_filters, search
from scripts.viewer.run import LOCK_NAME, NotViewable, ViewedRun, is_locked, open_runs
from tests.scripts.made_run import HELD, Made, make_run, step_records


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make_run(tmp_path / "run")


def indexed(path: Path) -> TrajectoryIndex:
    index = TrajectoryIndex(path / "trajectories.jsonl")
    while index.refresh(budget_s=5.0):
        pass
    return index


def same(records: list[Record]) -> list[str]:
    return [json.dumps(encode_record(record)) for record in records]  # NaN equals NaN in text


def test_every_row_opens_as_the_record_that_was_written(made: Made):
    index = indexed(made.path)
    assert [row.line for row in index.rows] == list(range(1, 19))
    assert same([*index.records(index.rows)]) == same(made.records)
    assert same([*index.records(index.rows[::-1])]) == same(made.records[::-1])
    row, record = index.rows[5], made.records[5]
    assert (row.step, row.split, row.group, row.member) == (1, "train", 2, 3)
    assert (row.reward, row.stop_reason, row.env, row.level) == (1.0, "answered", "calc", 1)
    assert row.num_tokens == record.trajectory.num_sampled_tokens
    assert (row.num_turns, row.oldest, row.newest, row.error) == (2, 0, 1, None)
    assert (index.rows[-1].reward, index.rows[-1].error) == (None, "SandboxDied")


def test_a_corrupt_line_is_named_and_the_rest_still_opens(made: Made):
    path = made.path / "trajectories.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3][: len(lines[3]) // 2] + b"\n"  # cut
    lines[7] = b'{"step": 1}\n'  # JSON, and no record
    lines[11] = b"\xff\xfe\x00\n"
    path.write_bytes(b"".join(lines))
    index = indexed(made.path)
    assert [problem.line for problem in index.problems.first] == [4, 8, 12]
    assert "trajectories.jsonl, line 4: " in str(index.problems.first[0])
    assert [row.line for row in index.rows] == [n for n in range(1, 19) if n not in (4, 8, 12)]
    assert same([*index.records([index.row(18)])]) == same(made.records[-1:])
    with pytest.raises(UnknownLine, match="no readable trajectory on line 8"):
        index.row(8)


def test_damage_where_the_index_does_not_look_is_named_when_the_line_is_opened(made: Made):
    path = made.path / "trajectories.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"rollout_logprobs"', b'"rollout_xxxxxxxx"')
    path.write_bytes(b"".join(lines))
    index = indexed(made.path)
    with pytest.raises(ValueError, match=r"trajectories.jsonl, line 3: no trajectory \(KeyError"):
        next(index.records([index.row(3)]))


def test_half_a_line_is_left_until_it_is_finished(made: Made):
    path = made.path / "trajectories.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    index = indexed(made.path)
    assert (len(index.rows), index.problems.count) == (17, 0)
    with path.open("ab") as file:
        file.write(whole[-10:])
    assert index.refresh(5.0)
    assert same([*index.records(index.rows)]) == same(made.records)


def test_what_a_live_run_appends_is_read_on_and_a_replaced_file_is_read_anew(made: Made):
    index = indexed(made.path)
    recorder = TrajectoryRecorder(made.path / "trajectories.jsonl", max_bytes=10**9)
    recorder.write(step_records(3))
    recorder.close()
    assert index.refresh(5.0)
    assert [row.step for row in index.rows[18:]] == [3] * 8
    path = made.path / "trajectories.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:10]))  # a resumed run steps back
    assert index.refresh(5.0)
    assert (len(index.rows), index.generation) == (10, 1)
    assert same([*index.records(index.rows)]) == same(made.records[:10])


def test_the_index_is_built_in_slices(made: Made):
    index = TrajectoryIndex(made.path / "trajectories.jsonl")
    assert index.refresh(budget_s=0.0)
    assert len(index.rows) == 1
    assert index.file.is_behind


def obvious(made: Made, **wanted: object) -> list[int]:
    """Filters by their definition, on the records."""
    lines = []
    for line, record in enumerate(made.records, 1):
        score = record.trajectory.score.value
        said = [m.text for m in record.trajectory.episode.transcript]
        said += [c.text for m in record.trajectory.episode.transcript for c in m.tool_calls]
        tool_failed = any(m.is_error for m in record.trajectory.episode.transcript)
        checks = {
            "group": lambda v, r=record: r.group == v,
            "step": lambda v, r=record: r.step == v,
            "split": lambda v, r=record: r.split == v,
            "stop_reason": lambda v, r=record: r.trajectory.episode.stop_reason == v,
            "min_reward": lambda v, s=score: s is not None and s >= v,
            "max_reward": lambda v, s=score: s is not None and s <= v,
            "error": lambda v, s=score, t=tool_failed: {
                "none": s is not None and not t,
                "tool": t,
                "world": s is None,
            }[v],
            "text": lambda v, said=said: any(v.casefold() in text.casefold() for text in said),
        }
        if all(checks[name](value) for name, value in wanted.items()):
            lines.append(line)
    return lines


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"step": 1},
        {"split": "eval"},
        {"stop_reason": "max_turns"},
        {"min_reward": 0.5},
        {"max_reward": 0.5},
        {"max_reward": 0.0},  # the limits are included
        {"min_reward": 1.0},
        {"error": "none"},
        {"error": "tool"},
        {"error": "world"},
        {"text": "SO 1"},
        {"text": "1+2"},
        {"text": "so 0", "step": 2},
        {"text": "<SCRIPT>"},
        {"text": "漢Ü"},
        {"text": "evil"},
        {"text": "role"},  # a name in the file's format, said by nobody
    ],
)
def test_filters_find_what_their_definition_finds(made: Made, wanted: dict[str, object]):
    page = search(indexed(made.path), Filters(**wanted))
    assert [row.line for row in page.rows] == obvious(made, **wanted)
    assert page.next_row is None


def test_pages_of_a_search_join_without_gap_or_repetition(made: Made):
    index = indexed(made.path)
    found, start = [], 0
    while start is not None:
        page = search(index, Filters(split="train"), start=start, limit=5)
        assert len(page.rows) <= 5
        found += [row.line for row in page.rows]
        start = page.next_row
    assert found == list(range(3, 19))


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"stop_reason": "max_turns"},
        {"step": 2, "split": "train", "group": 5},
        {"step": 9},
        {"error": "world"},
        {"text": "so 1"},
    ],
)
@pytest.mark.parametrize("budget_s", [0.0, 1.0])
def test_the_neighbours_of_a_line_are_those_of_the_whole_list(
    made: Made, wanted: dict[str, Any], budget_s: float
):
    index, passing = indexed(made.path), obvious(made, **wanted)
    for line in range(1, 19):
        found = beside(index, Filters(**wanted), line, budget_s=budget_s)
        ends = [found.previous, found.next]
        while (found.earlier, found.later) != (None, None):
            earlier, later = found.earlier or 0, found.later or 10**9
            found = beside(index, Filters(**wanted), line, earlier=earlier, later=later, budget_s=budget_s)
            ends = [ends[0] or found.previous, ends[1] or found.next]
        before = [other for other in passing if other < line]
        expected = [before[-1:], [other for other in passing if other > line][:1]]
        assert [[row.line] if row else [] for row in ends] == expected
        counted = line in passing and "text" not in wanted
        assert found.number == (len(before) + 1 if counted else None)


def test_a_wrong_filter_names_the_near_one():
    with pytest.raises(FilterError, match="did you mean 'stop_reason'"):
        parse_filters({"stop_reson": "x"})
    with pytest.raises(FilterError, match="expected int"):
        parse_filters({"step": "two"})
    with pytest.raises(FilterError, match="did you mean 'tool'"):
        parse_filters({"error": "tools"})
    assert parse_filters({"step": "", "text": "a b"}) == Filters(text="a b")


def test_what_is_no_run_is_refused(made: Made, tmp_path: Path):
    with pytest.raises(NotViewable, match="no such directory"):
        ViewedRun(tmp_path / "nowhere")
    with pytest.raises(NotViewable, match=r"holds no config.json.*it holds runs, give one of them: run"):
        ViewedRun(tmp_path)
    (made.path / "config.json").write_text("{")
    with pytest.raises(NotViewable, match=r"config.json is not JSON"):
        ViewedRun(made.path)


def test_a_run_from_a_newer_version_is_refused(made: Made):
    path = made.path / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"versions": {"whetstone": "999.0"}}))
    with pytest.raises(NotViewable, match=r"written by whetstone 999.0, and this is \d"):
        ViewedRun(made.path)
    path.write_text(json.dumps(manifest | {"versions": {"whetstone": "0.0.1"}}))
    assert ViewedRun(made.path).name == "run"


def test_a_run_is_live_while_its_lock_is_held_and_looking_takes_no_lock(tmp_path: Path):
    run = ViewedRun(make_run(tmp_path / "run", hold=True).path)
    assert run.is_live
    HELD.pop().close()
    assert not run.is_live
    assert LOCK_NAME == LOCK_OF_A_RUN


def test_a_lock_on_the_same_inode_of_another_device_is_another_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, table = tmp_path / ".lock", tmp_path / "locks"
    path.touch()
    monkeypatch.setattr("scripts.viewer.run.LOCKS", table)
    device, inode = os.stat(path).st_dev, os.stat(path).st_ino
    own = f"{os.major(device):02x}:{os.minor(device):02x}"
    for line, is_held in (
        (f"1: FLOCK  ADVISORY  WRITE 4242 {own}:{inode} 0 EOF", True),
        (f"1: FLOCK  ADVISORY  WRITE 4242 fe:fe:{inode} 0 EOF", False),
        (f"1: FLOCK  ADVISORY  WRITE 4242 {own}:1{inode} 0 EOF", False),
        (f"1: -> FLOCK  ADVISORY  WRITE 4242 {own}:{inode} 0 EOF", False),
    ):
        table.write_text(line + "\n")
        assert is_locked(path) is is_held
    assert is_locked(tmp_path / "none") is False


def test_where_the_kernel_shows_no_locks_it_is_said_not_guessed(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("scripts.viewer.run.LOCKS", tmp_path / "nowhere")
    (summary,) = Answers([ViewedRun(made.path)]).summaries()
    assert summary["live"] is None


def test_names_of_runs_in_different_folders_differ(tmp_path: Path):
    paths = [tmp_path / name for name in ("a/seed_0/run", "b/seed_0/run", "b/seed_1/run", "c")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        make_run(path, num_steps=1)
    names = [run.name for run in open_runs(paths)]
    assert names == ["a/seed_0/run", "b/seed_0/run", "seed_1/run", "c"]


def test_without_a_tokenizer_ids_are_shown_and_it_is_said(made: Made):
    (made.path.parent / "model" / "tokenizer.json").unlink()
    run = ViewedRun(made.path)
    run.refresh_fully()
    assert "token ids are shown without text" in run.texts.note
    turn = Answers([run]).trajectory(run, 3)["turns"][0]
    assert turn["sampled"]["texts"] == [None] * 8
    assert turn["sampled"]["ids"] == list(made.records[2].trajectory.turns[0].completion.token_ids)
