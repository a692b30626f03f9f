"""A headless Chromium, and pages opened in it from files; skipped where there is none (`make browser` gets one)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.browser import find

ARGUMENTS = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run"]

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Of a module, as Playwright's event loop counts as running until it ends: later tests have loops of their own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = find()
    if not path:
        pytest.skip("no Chromium here: `make browser` gets one")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens HTML text from a file. Whatever the page asks of the network, complains of or pops up fails the test."""
    contexts, complaints = [], []

    def opened(html: str, *, hash: str = "", script: str = "", **options: Any) -> Any:
        file = tmp_path / "page.html"
        file.write_text(html)
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda request: _local(request.url) or complaints.append(f"request: {request.url}"))
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        if script:
            page.add_init_script(script)
        page.goto(file.as_uri() + hash)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def _local(url: str) -> bool:
    return url.startswith(("file:", "blob:", "data:"))
