"""What a run writes and says of its steps."""

from __future__ import annotations

import io
from pathlib import Path

from rl.config import Config
from rl.console import RunConsole
from rl.journal import Journal
from rl.run_dir import RunDir


def test_large_rewards_are_warned_of_once(tmp_path: Path) -> None:
    said = io.StringIO()
    with RunDir(tmp_path / "run") as directory, RunConsole(4, file=said) as console:
        journal = Journal(directory, Config(), console, decode=lambda ids: "")
        for step, largest in enumerate((20.0, 30.0, 40.0), start=1):
            journal.step(step, {"rollout/reward_abs_max": largest})
    warnings = [line for line in said.getvalue().splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert warnings[0].startswith("WARNING: step 2: a reward of size 30, above 20; none is clipped")
