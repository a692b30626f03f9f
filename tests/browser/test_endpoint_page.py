"""The endpoint's page in a real browser, over the endpoint's routes and engines that are made up."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from actors.serving.app import make_app
from actors.serving.service import Service
from symoe_ray.core import Request
from symoe_ray.serving.keys import Key, hash_of
from symoe_ray.serving.testing import FakeEngines
from tests.unit.test_live_question import DIED, NAMES
from tests.unit.test_serving_app import SECRET, service

QUESTION = "Why is the sky blue?"


class Running:
    """A service behind a real port, in a thread of its own."""

    def __init__(self, of: Service) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        self._server = uvicorn.Server(uvicorn.Config(make_app(of), log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


@pytest.fixture
def serve() -> Iterator[Any]:
    """Serves services until the test ends."""
    running: list[Running] = []

    def start(of: Service) -> str:
        running.append(Running(of))
        return running[-1].url

    yield start
    for each in running:
        each.stop()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Opens an address; what the page complains of fails the test."""
    contexts, complaints = [], []

    def opened(url: str, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda r: r.url.startswith((url, "data:")) or complaints.append(f"request: {r.url}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        page.wait_for_selector("#model option:nth-child(2), #access[open]", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def ask(page: Any, state: str = "done") -> None:
    page.fill("#question", QUESTION)
    page.click("#send")
    page.wait_for_selector(f"#state:text-is('{state}')")


def test_a_question_is_answered_and_explained(serve: Any, visit: Any) -> None:
    page = visit(serve(service()))
    ask(page)
    assert "The answer is" in page.inner_text("#answer")
    assert [s.split(":")[0] for s in page.locator("#steps li").all_inner_texts()] == ["annotate", "answer", "aggregate"]
    assert page.locator("#skills span").count() > 0
    names = page.locator("#experts summary").all_inner_texts()
    assert names
    assert all("answered after" in name for name in names)
    page.locator("#experts summary").first.click()
    assert "The answer is" in page.locator("#experts details p").first.inner_text()
    heads = page.locator("#scores th[scope=col]").all_inner_texts()
    assert sorted(heads[1:]) == sorted(NAMES)
    assert page.locator("#scores th.seated").count() > 0
    assert page.locator("#usage th[scope=row]").all_inner_texts() == ["annotate", "answer", "aggregate"]


def test_it_is_used_with_the_keyboard_alone(serve: Any, visit: Any) -> None:
    page = visit(serve(service()))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the question"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.evaluate("document.activeElement.id === 'question' || document.getElementById('question').focus()")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#state:text-is('done')")
    assert page.inner_text("#answer")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(scheme: str, serve: Any, visit: Any) -> None:
    page = visit(serve(service()), viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True)
    ask(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")


def test_what_an_expert_writes_is_text_and_never_markup(serve: Any, visit: Any) -> None:
    page = visit(serve(service()))
    page.evaluate("""take('data: {"choices":[{"delta":{"content":"<img src=x onerror=alert(1)>"}}]}')""")
    assert page.locator("#answer img").count() == 0
    assert "<img" in page.evaluate("document.getElementById('answer').textContent")


def test_a_failure_is_said(serve: Any, visit: Any) -> None:
    page = visit(serve(service(FakeEngines(failures=dict.fromkeys(NAMES, DIED)))))
    ask(page, "stopped")
    assert "0 of 3 experts answered" in page.inner_text("#error")


def test_a_key_is_asked_for(serve: Any, visit: Any) -> None:
    page = visit(serve(service(keys=(Key(name="anna", sha256=hash_of(SECRET)),))))
    assert page.inner_text("#state") == "an API key is needed"
    page.fill("#key", SECRET)
    page.press("#key", "Tab")
    page.wait_for_selector("#model option:nth-child(2)", state="attached")
    ask(page)
    assert page.inner_text("#answer")


def test_a_question_can_be_stopped(serve: Any, visit: Any) -> None:
    async def pause(_: Request) -> None:
        await asyncio.Event().wait()  # until it is cancelled

    engines = FakeEngines(pause=pause)
    page = visit(serve(service(engines)))
    page.fill("#question", QUESTION)
    page.click("#send")
    page.wait_for_selector("#steps li")
    page.click("#stop")
    page.wait_for_selector("#state:text-is('stopped')")
    page.wait_for_selector("#send:enabled")
    while not engines.given_up:
        page.wait_for_timeout(50)
    assert engines.given_up == ["A"]
