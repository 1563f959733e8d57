"""The viewer in headless Chromium: what a person does with it, and what a hostile model may not do to it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout.record import TrajectoryRecorder
from tests.running import ROOT
from tests.scripts.browser import chromium, go, open_page
from tests.scripts.made_run import Made, make_run, step_records

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    chromium()
    return make_run(tmp_path_factory.mktemp("runs") / "run", num_steps=3)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_run(tmp_path_factory.mktemp("runs") / "other", algorithm="rloo")


@pytest.fixture(scope="module")
def url(made: Made, other: Made) -> Iterator[str]:
    command = [sys.executable, "-m", "scripts.view", str(made.path), str(other.path), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0]
        process.terminate()


def field(page, name: str) -> str:
    return page.locator(f"#inspector [data-field='{name}'] dd").inner_text()


def lines(page) -> list[str]:
    return page.locator("#rows tbody tr td:first-child").all_inner_texts()


def test_filter_open_a_trajectory_and_read_a_tokens_numbers(url: str, tmp_path: Path):
    with open_page(tmp_path) as page:
        go(page, url, "#/")
        page.get_by_role("link", name="All trajectories").first.click()
        page.locator("#filters [name=stop_reason]").select_option("answered")
        page.locator("#filters [name=step]").fill("2")
        page.locator("#filters [name=min_reward]").fill("0.5")
        page.locator("#filters [name=text]").fill("SO 1")
        page.get_by_role("button", name="Filter", exact=True).click()
        page.locator("main[data-shown*='text=SO+1']").wait_for()
        assert lines(page) == ["11", "14", "15", "18"]
        page.get_by_role("link", name="14", exact=True).click()
        page.locator(".tokens .token.sampled").nth(0).wait_for()
        assert "".join(page.locator(".tokens .token.sampled").all_inner_texts()) == "calc 1+2so 3"
        assert page.locator("h2").inner_text().startswith("Trajectory 1-4-3")
        page.locator(".tokens .token.sampled").nth(
            4
        ).hover()  # the fifth of "calc 1+2": the policy changed there
        page.locator("#inspector [data-field='advantage'] dd", has_text="0.75").wait_for()
        assert field(page, "engine log-prob") == "−0.625000"
        assert field(page, "learner log-prob") == "−0.625000"
        assert (field(page, "gap"), field(page, "ratio")) == ("0", "1.000000")
        assert field(page, "policy version") == "2"
        page.locator(".tokens .token.sampled").nth(0).hover()
        assert field(page, "learner log-prob") == "−0.135000"
        assert field(page, "advantage") == "0.5"
        assert (field(page, "gap"), field(page, "ratio")) == ("−0.01", "0.990050")  # exp(-0.01)
        assert field(page, "policy version") == "1"


def test_the_keyboard_goes_to_the_next_trajectory_and_the_next_token(url: str, tmp_path: Path):
    with open_page(tmp_path) as page:
        go(page, url, "#/trajectory/0/4?stop_reason=max_turns&step=1")
        page.locator("[data-jump=next][href]").wait_for()
        page.keyboard.press("j")
        page.locator("main[data-shown*='/5?']").wait_for()
        page.keyboard.press("j")
        page.locator("main[data-shown*='/8?']").wait_for()  # lines 6 and 7 do not pass the filters
        page.keyboard.press("k")
        page.locator("main[data-shown*='/5?']").wait_for()
        page.locator("#neighbours", has_text="number 2 with stop_reason max_turns, step 1").wait_for()
        page.locator(".tokens .token.sampled").nth(0).click()
        assert field(page, "turn") == "0, token 0"
        page.keyboard.press("ArrowRight")
        assert field(page, "turn") == "0, token 1"
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert page.locator("#inspector .kind").inner_text() == "prompt: not trained on"
        page.keyboard.press("u")
        page.locator("main[data-shown^='#/list/0?']").wait_for()
        assert lines(page) == ["4", "5", "8", "9"]


def test_a_tool_call_has_its_time_or_says_that_there_is_none(url: str, tmp_path: Path):
    with open_page(tmp_path) as page:
        go(page, url, "#/trajectory/0/3")
        assert page.locator(".call .call-time").all_inner_texts() == [" 125 ms"]
        # Of the next one, a call was cut off while it ran, and another one never ran.
        go(page, url, "#/trajectory/0/4")
        assert page.locator(".call .call-time").all_inner_texts() == [" 125 ms", " no time recorded", ""]


def test_the_ratio_says_which_one_it_is(url: str, tmp_path: Path):
    with open_page(tmp_path) as page:
        go(page, url, "#/trajectory/0/3")
        page.locator(".tokens .token.sampled").nth(0).hover()
        assert "not the π_new/π_old that the loss clips" in page.locator("#ratio-note").inner_text()


def test_an_unknown_metric_names_the_nearest(url: str, tmp_path: Path):
    with open_page(tmp_path) as page:
        go(page, url, "#/")
        for typed, said in (
            ("polcy/los", "; nearest: policy/loss."),
            ("rewrad", "; nearest: rollout/reward_mean."),
            ("xyzzy", "No metric has that in its name."),
        ):
            page.locator("#metric").fill(typed)
            page.locator("#curves p", has_text=said).wait_for()


def test_groups_show_each_members_reward_and_lead_to_it(url: str, tmp_path: Path):
    with open_page(tmp_path) as page:
        go(page, url, "#/groups/0?step=3&split=train")
        assert page.locator("#groups .cells").all_inner_texts() == ["1\n0\n0\n1", "1\n0\n0\n×"]
        page.locator("[data-jump=prev]").click()
        page.locator("main[data-shown*='step=2']").wait_for()
        page.locator("#groups .cell").nth(1).click()
        page.locator("main[data-shown*='/trajectory/0/12']").wait_for()
        assert "reward\n0" in page.locator(".facts").first.inner_text()


def test_what_a_hostile_model_wrote_stays_text(url: str, tmp_path: Path):
    with open_page(tmp_path) as page:
        go(page, url, "#/trajectory/0/26")
        assert "<script>document.title='owned'</script>" in page.locator(".message").last.inner_text()
        assert "\\u202eevil \\ud800 \\x1b[31m" in page.locator(".message").last.inner_text()
        assert page.locator("main script, main img").count() == 0
        assert page.title() != "owned"
        assert page.locator(".tokens .token.masked").count() == 12
        page.locator(".tokens .token.masked").nth(0).hover()
        assert (field(page, "engine log-prob"), field(page, "gap")) == ("nan", "–")


def test_two_runs_are_overlaid_zoomed_and_their_settings_compared(url: str, tmp_path: Path):
    with open_page(tmp_path) as page:
        go(page, url, "#/")
        reward = page.locator(".chart[data-metric='rollout/reward_mean']")
        assert reward.locator("polyline").count() == 2
        assert "run from 0.35 to 0.55; other from 0.35 to 0.45" in reward.locator("svg").get_attribute(
            "aria-label"
        )
        assert (
            "algorithm\tgrpo\trloo"
            in page.locator("section", has_text="Settings that differ").locator("table").inner_text()
        )
        page.locator("#from").fill("2")
        page.locator("#to").fill("3")
        page.keyboard.press("Tab")
        assert "steps 2 to 3: run from 0.45 to 0.55" in reward.locator("svg").get_attribute("aria-label")
        page.locator("#unzoom").click()
        box = reward.locator("svg").bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
        assert "step 2" in page.locator("#tip").inner_text()
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.98, box["y"] + 40)
        page.mouse.up()
        assert "steps 2 to 3" in reward.locator("svg").get_attribute("aria-label")


def test_a_live_run_grows_on_the_page(url: str, other: Made, tmp_path: Path):
    with open_page(tmp_path) as page:
        go(page, url, "#/")
        card = page.locator(".card").nth(1)
        assert "trajectories\n18" in card.inner_text()
        recorder = TrajectoryRecorder(other.path / "trajectories.jsonl", max_bytes=10**9)
        recorder.write(step_records(3))
        recorder.close()
        page.locator(".card:nth-child(2)", has_text="trajectories26").wait_for()


def test_an_export_opens_from_a_file_without_a_server(made: Made, tmp_path: Path):
    out = tmp_path / "step.html"
    command = [sys.executable, "-m", "scripts.view", str(made.path), "--export", str(out), "--step", "3"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    with open_page(tmp_path / "profile") as page:
        page.context.set_offline(True)
        go(page, f"file://{out}", "#/")
        assert page.locator("#status").inner_text() == "exported file"
        assert page.locator(".chart[data-metric='policy/loss'] polyline").count() == 1
        go(page, f"file://{out}", "#/list/0?error=tool")
        assert lines(page) == ["20", "21", "24", "25"]
        page.get_by_role("link", name="20", exact=True).click()
        page.locator(".tokens .token.sampled").nth(1).hover()
        page.locator("#inspector [data-field='advantage'] dd", has_text="−0.75").wait_for()
        assert field(page, "engine log-prob") == "−0.250000"
        go(page, f"file://{out}", "#/groups/0?step=3&split=train")
        assert page.locator("#groups .cells").count() == 2
        go(page, f"file://{out}", "#/trajectory/0/26")
        assert "<script>" in page.locator(".message").last.inner_text()
        assert page.title() != "owned"
