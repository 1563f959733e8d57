import asyncio
import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from rl.metrics import METRICS
from rollout.record import TrajectoryRecorder
from scripts.viewer.api import Answers
from scripts.viewer.run import open_runs
from scripts.viewer.server import SCRIPTS, STATIC, loopback_socket, make_app
from tests.running import HEARS_CTRL_C, ROOT
from tests.scripts.made_run import Made, make_run, step_records


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make_run(tmp_path / "run")


@pytest.fixture
async def url(made: Made) -> AsyncIterator[str]:
    runs = open_runs([made.path])
    runs[0].refresh_fully()
    listener = loopback_socket(0)
    port = listener.getsockname()[1]
    runner = web.AppRunner(make_app(Answers(runs), port))
    await runner.setup()
    await web.SockSite(runner, listener).start()
    yield f"http://127.0.0.1:{port}"
    await runner.cleanup()


async def fetch(url: str, status: int = 200, **headers: str) -> tuple[str, dict[str, str]]:
    async with ClientSession() as session, session.get(url, headers=headers) as reply:
        text = await reply.text()
        assert reply.status == status, text
        return text, dict(reply.headers)


async def read(url: str, status: int = 200) -> object:
    return json.loads((await fetch(url, status))[0])


async def test_every_answer_has_a_policy_that_lets_nothing_else_run_or_load(url: str):
    for path in ("/", "/static/main.js", "/static/style.css", "/api/runs", "/nowhere"):
        _, headers = await fetch(url + path, 404 if path == "/nowhere" else 200)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"


async def test_another_host_name_is_refused(url: str):
    port = url.rsplit(":", 1)[1]
    for host in (
        f"evil.example:{port}",
        "127.0.0.1",
        f"127.0.0.1.evil.example:{port}",
        f"localhost:{int(port) + 1}",
    ):
        text, _ = await fetch(url + "/api/runs", 421, Host=host)
        assert "trajectories" not in text
    await fetch(url + "/api/runs", 200, Host=f"localhost:{port}")


async def test_only_its_own_files_are_served(url: str):
    for name in ("..%2fserver.py", "server.py", "%2e%2e/%2e%2e/view.py", "page.html"):
        await fetch(f"{url}/static/{name}", 404)


async def test_a_token_has_its_numbers(made: Made, url: str):
    found = await read(f"{url}/api/runs/0/trajectories/3")
    turn = found["turns"][0]
    assert "".join(turn["sampled"]["texts"]) == "calc 1+2"
    assert "".join(turn["context"]["texts"]) == "user\n1+2=?"
    assert turn["sampled"]["engine"][:2] == [-0.125, -0.25]
    assert turn["sampled"]["learner"][:2] == [-0.135, -0.25]
    assert turn["sampled"]["versions"] == [[0, 0, 4], [1, 4, 8]]
    assert (found["row"]["reward"], found["row"]["stop_reason"], found["score"]["parts"]) == (
        1.0,
        "answered",
        {"answer": 1.0},
    )
    held_out = await read(f"{url}/api/runs/0/trajectories/1")
    assert held_out["turns"][0]["sampled"]["learner"] is None
    assert not held_out["is_trained"]


async def test_what_a_model_wrote_arrives_printable_and_numbers_that_are_none_by_name(url: str):
    text, _ = await fetch(f"{url}/api/runs/0/trajectories/18")
    found = json.loads(text)
    said = found["messages"][-1]["text"]
    assert said.startswith("<script>")  # text: the page never makes markup of it
    assert "\\u202eevil \\ud800 \\x1b[31m 漢ü" in said
    assert found["turns"][0]["sampled"]["engine"][0] == "nan"
    assert (
        json.loads(json.dumps(found), parse_constant=lambda name: pytest.fail(f"{name} in an answer"))
        == found
    )


async def test_a_search_through_text_lets_others_be_answered_meanwhile(
    made: Made, url: str, monkeypatch: pytest.MonkeyPatch
):
    started, goes_on = threading.Event(), threading.Event()

    def slow(*given: object) -> dict[str, object]:
        started.set()
        assert goes_on.wait(20)
        return {"rows": [], "next_row": None}

    monkeypatch.setattr(Answers, "rows", slow)
    searched = asyncio.create_task(read(f"{url}/api/runs/0/rows?text=so"))
    assert await asyncio.to_thread(started.wait, 20)
    assert len(await read(f"{url}/api/runs")) == 1
    goes_on.set()
    assert (await searched)["rows"] == []


async def test_a_poll_goes_through_no_row_and_only_a_step_that_has_grown_is_summed_up_again(made: Made):
    class Counted(list):
        times = 0

        def __iter__(self):
            self.times += 1
            return super().__iter__()

    (run,) = open_runs([made.path])
    run.refresh_fully()
    answers = Answers([run])
    before = answers.steps(run)
    run.index.rows = Counted(run.index.rows)
    kept = {key: Counted(rows) for key, rows in run.index.by_step.items()}
    run.index.by_step = {**kept}
    (summary,) = answers.summaries()
    assert (summary["envs"], summary["stop_reasons"]) == (["calc"], ["answered", "error", "max_turns"])
    assert answers.steps(run) == before
    assert [rows.times for rows in (run.index.rows, *kept.values())] == [0, 0, 0, 0]
    kept[2, "train"].append(kept[2, "train"][0])
    assert [step["trajectories"] for step in answers.steps(run)] == [2, 8, 9]
    assert kept[1, "train"].times == 0


async def test_groups_steps_and_rows(url: str):
    steps = await read(f"{url}/api/runs/0/steps")
    assert [(s["step"], s["split"], s["trajectories"], s["groups"]) for s in steps] == [
        (0, "eval", 2, 2),
        (1, "train", 8, 2),
        (2, "train", 8, 2),
    ]
    assert steps[1]["reward"] == 0.5
    assert steps[2]["unscored"] == 1
    assert steps[0]["interval"][0] == pytest.approx(0.3424, abs=1e-4)  # Wilson, 2 of 2: 1 / (1 + 1.96²/2)
    groups = await read(f"{url}/api/runs/0/groups?step=2&split=train")
    assert [(g["group"], g["task"], [r["reward"] for r in g["rows"]]) for g in groups] == [
        (4, "1+2=?", [1.0, 0.0, 0.0, 1.0]),
        (5, "1+2=?", [1.0, 0.0, 0.0, None]),
    ]
    page = await read(f"{url}/api/runs/0/rows?stop_reason=max_turns&step=1")
    assert [row["line"] for row in page["rows"]] == [4, 5, 8, 9]


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/api/runs/7/steps", 404, "there is no run '7'"),
        ("/api/runs/0/trajectories/99", 404, "no readable trajectory on line 99"),
        ("/api/runs/0/trajectories/x", 400, "expected a number"),
        ("/api/runs/0/rows?stop=x", 400, "unknown filter 'stop'"),
        ("/api/runs/0/rows?start=-1", 400, "expected a place"),
        ("/api/runs/0/groups", 400, "step = ''"),
    ],
)
async def test_a_wrong_question_is_answered_with_what_is_wrong(url: str, path: str, status: int, says: str):
    assert says in (await read(url + path, status))["error"]


async def test_metrics_come_in_words_and_from_a_place_on(url: str):
    rows = await read(f"{url}/api/runs/0/metrics?start=1")
    assert [(row["step"], row["rollout/reward_mean"]) for row in rows] == [(2, 0.45)]
    assert await read(f"{url}/api/words") == METRICS


def test_no_script_makes_markup_of_text():
    assert {path.name for path in STATIC.glob("*.js")} == set(SCRIPTS)
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 300
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|DOMParser", text
        )
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []  # nothing from the network


def test_the_page_is_served_until_ctrl_c_and_shows_what_a_live_run_appends(made: Made):
    command = [*HEARS_CTRL_C, "-m", "scripts.view", str(made.path), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[0]
            port = int(address.rsplit(":", 1)[1].rstrip("/"))
            assert b" 200 " in request(port, "/").splitlines()[0]
            recorder = TrajectoryRecorder(made.path / "trajectories.jsonl", max_bytes=10**9)
            recorder.write(step_records(3))
            recorder.close()
            for _ in range(100):
                steps = json.loads(request(port, "/api/runs/0/steps").split(b"\r\n\r\n", 1)[1])
                if steps[-1:] and steps[-1]["step"] == 3:
                    break
            assert (steps[-1]["step"], steps[-1]["trajectories"]) == (3, 8)
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def request(port: int, path: str) -> bytes:
    """One request with nothing between us and the socket, a tenth of a second after the last."""
    time.sleep(0.1)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode()
        )
        return b"".join(iter(lambda: connection.recv(65536), b""))
