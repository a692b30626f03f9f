"""`symoe ask "question"`: a client for the endpoint. Answers go to standard output, what happens to standard error."""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

from pipelines.signals import DONE, FAILED, MISSING, USAGE, Signals
from symoe_ray.config import load

KEY_VARIABLE = "SYMOE_API_KEY"
TIMEOUT_S = 900.0


def add_command(commands: Any) -> None:
    """Add `ask` to the parser's commands."""
    parser = commands.add_parser("ask", help="put a question to a running endpoint")
    parser.add_argument("question", help="the question, or - for standard input")
    parser.add_argument("--url", help="the endpoint (http://serve.host:serve.port of the settings)")
    parser.add_argument("--model", default="symoe", help="symoe, symoe:AGGREGATOR or an expert (symoe)")
    parser.add_argument("--explain", action="store_true", help="skills, experts, scores and usage on standard error")
    parser.add_argument("--json", action="store_true", help="the whole answer as one JSON object")
    parser.set_defaults(function=_run)


def _run(options: argparse.Namespace, overrides: list[str], _: Signals) -> int:
    settings = load(overrides).serve
    url = (options.url or f"http://{settings.host}:{settings.port}").rstrip("/")
    question = sys.stdin.read() if options.question == "-" else options.question
    body = {
        "model": options.model, "messages": [{"role": "user", "content": question}], "stream": not options.json,
        "symoe": {"drafts": options.json},
    }  # fmt: skip
    headers = {"content-type": "application/json"}
    if key := os.environ.get(KEY_VARIABLE):
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return _show_whole(answer.read()) if options.json else show(answer, explain=options.explain)
    except urllib.error.HTTPError as error:
        print(f"symoe ask: {error.code}: {_message(error.read())}", file=sys.stderr)
        return USAGE if error.code < 500 and error.code != 429 else FAILED
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        print(f"symoe ask: nothing answers at {url} ({error}): is `symoe serve` running?", file=sys.stderr)
        return MISSING


def show(lines: Iterable[bytes], *, explain: bool) -> int:
    """Print a stream as it comes; the exit code."""
    done = False
    for kind, value in events(lines):
        if kind == "progress":
            print(progress_line(value), file=sys.stderr, flush=True)
        elif kind == "error":
            print(f"\nsymoe ask: {value['error']['message']}", file=sys.stderr)
            return FAILED
        elif kind == "done":
            done = True
        else:
            for choice in value["choices"]:
                print(choice["delta"].get("content") or "", end="", flush=True)
            if explain and "symoe" in value:
                print("\n" + json.dumps(value["symoe"], indent=2, ensure_ascii=False), file=sys.stderr)
    print()
    if not done:
        print("symoe ask: the answer broke off", file=sys.stderr)
    return DONE if done else FAILED


def events(lines: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    """A stream as (progress | chunk | error | done, value)."""
    for raw in lines:
        line = raw.decode().rstrip("\r\n")
        if line.startswith(": symoe "):
            yield "progress", json.loads(line.removeprefix(": symoe "))
        elif line == "data: [DONE]":
            yield "done", None
        elif line.startswith("data: "):
            value = json.loads(line.removeprefix("data: "))
            yield ("error" if "error" in value else "chunk"), value


def progress_line(event: dict[str, Any]) -> str:
    """What happens, in a line."""
    match event["event"]:
        case "started":
            return f"{event['stage']}: {', '.join(dict.fromkeys(event['experts']))}"
        case "recruited":
            recruitment = event["recruitment"]
            skills = ", ".join(recruitment["skills"]) or "none"
            return f"skills: {skills}; experts: {', '.join(recruitment['experts'])}"
        case _:
            outcome = event["failure"] or f"answered in {event['seconds']:.1f} s"
            return f"  {event['expert']}: {outcome}"


def _show_whole(data: bytes) -> int:
    print(data.decode())
    return DONE


def _message(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return data.decode(errors="replace")[:200]
