"""A page in the machine's Chromium, without network."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@contextlib.contextmanager
def opened(address: str | Path, width: int = 1300) -> Iterator[Any]:
    """A page that is loaded, of a file or a local server; afterwards it has asked for nothing else, and shown no error.

    Skips the test where there is no Chromium or no driver for it.
    """
    driver = pytest.importorskip("playwright.sync_api", reason="playwright, which drives a browser, is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    address = address.resolve().as_uri() if isinstance(address, Path) else address
    problems: list[str] = []
    options = ["--no-sandbox", "--disable-gpu", "--mute-audio", "--autoplay-policy=no-user-gesture-required"]
    with driver.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=options)
        try:
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on(
                "request",
                lambda request: (
                    None
                    if request.url.startswith(("file:", "data:", "blob:", "http://127.0.0.1", "ws://127.0.0.1"))
                    else problems.append(request.url)
                ),
            )
            page.goto(address)
            yield page
            assert not problems
        finally:
            browser.close()
