"""Headless Chromium for tests: the system's own, with a profile that is thrown away."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",  # Chromium refuses its sandbox to root, who CI often is; the page is our own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str:
    """Its path; skips the test where there is none, or no playwright."""
    pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    return path


@contextmanager
def open_page(profile: Path, *, dark: bool = False, width: int = 1400, height: int = 900) -> Iterator[Any]:
    """A page; an error in its scripts, or anything that its policy blocked, fails the test at the end."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    wrong: list[str] = []
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile),
            executable_path=path,
            args=list(FLAGS),
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            offline=False,
        )
        try:
            page = context.new_page()
            page.set_default_timeout(30_000)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
            yield page
        finally:
            context.close()
    assert wrong == []


def go(page: Any, url: str, place: str) -> None:
    """Open a place of the page, "#/list/0", and wait until it is drawn."""
    page.goto(url + place)
    page.locator(f"main[data-shown='{place}']").wait_for()
