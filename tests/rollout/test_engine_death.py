"""An engine that dies ends what is asked of it."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import psutil
import pytest

from rollout.engine import EngineError, VllmEngine
from tests.rollout.test_engine import engine_spec
from tests.tiny import make_tiny_model


async def test_a_call_under_way_when_the_engine_is_killed_fails_at_once(tmp_path: Path) -> None:
    """vLLM's own client would wait for the answer for ever."""
    make_tiny_model(tmp_path, tied=True)
    engine = VllmEngine(engine_spec(tmp_path))
    await engine.start()
    (core,) = [child for child in psutil.Process().children(recursive=True) if "EngineCore" in child.name()]
    core.send_signal(signal.SIGSTOP)  # it hears the call and does not answer
    call = asyncio.ensure_future(engine.sketch_served_weights(0))
    _, waiting = await asyncio.wait({call}, timeout=2)
    assert waiting
    core.kill()
    started = time.monotonic()
    with pytest.raises(EngineError, match="engine is dead: a process of vLLM's was killed"):
        await asyncio.wait_for(call, 30)
    assert time.monotonic() - started < 10
    await engine.stop()
