"""The report of a large run: how long it takes to write, to open in Chromium, and to search.

`python -m benchmarks.report_page [--json] [--run PATH] [--characters 0 2000] [--repeats 5]`: the run of
`benchmarks.synthetic_run`, made anew unless PATH has one, as it is (0) and with drafts and answers of that many
characters of word-like text. Opening is measured in a new window each time, from the request to the list of questions
on the screen, and to the end of loading. A search is timed from the key press to its last question; `longest_task_ms`
is how long the page kept from answering meanwhile, 0 for less than 50 ms.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
from playwright.sync_api import Page, sync_playwright

from pipelines.report import write_report
from pipelines.run import settings_of
from symoe_ray.storage import Storage
from tools.browser import find

SEARCHES = {"one": "case-012345", "all": "case", "none": "zzzzqqq"}
ENDED = re.compile(r"of [\d,]+ questions$")
WATCH = """
window.longest = 0;
new PerformanceObserver((list) => {
  for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration);
}).observe({ type: "longtask" });
"""


def main() -> None:
    """Measure; print a table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    parser.add_argument("--run", metavar="PATH", help="a finished run (default: one is made)")
    parser.add_argument("--characters", type=int, nargs="+", default=[0, 2000], help="of each draft; 0: as generated")
    parser.add_argument("--repeats", type=int, default=5, help="openings")
    options = parser.parse_args()
    browser = find()
    if not browser:
        sys.exit("no Chromium here: `make browser` gets one")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(options.run or _made(Path(folder, "made")))
        rows = [_measured(run, Path(folder, f"run-{n}"), n, browser, options.repeats) for n in options.characters]
    if not options.json:
        _print(rows)
    print(json.dumps({"benchmark": "report_page", "rows": rows}))


def _made(path: Path) -> Path:
    command = [sys.executable, "-m", "benchmarks.synthetic_run", "--run", str(path)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return path


def _measured(run: Path, copy: Path, characters: int, browser: str, repeats: int) -> dict[str, Any]:
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("responses", "requests", "logs"))
    storage = Storage(str(copy))
    if characters:
        _lengthen(storage, characters)
    settings, started, cpu = settings_of(storage), time.perf_counter(), time.process_time()
    assert settings is not None
    page = Path(write_report(storage, settings))
    row: dict[str, Any] = {
        "characters": characters,
        "write_s": round(time.perf_counter() - started, 2),
        "write_cpu_s": round(time.process_time() - cpu, 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "page_mb": round(page.stat().st_size / 1e6, 1),
    }
    return row | _opened(page, browser, repeats)


def _lengthen(storage: Storage, characters: int) -> None:
    """Put word-like text, as compressible as English, in the place of every draft and final answer."""
    draw = random.Random(0)
    texts = [_prose(draw, characters) for _ in range(1000)]
    for folder in ("drafts", "answers"):
        for name in storage.names(folder, ".parquet"):
            table = storage.read_table(name)
            column = pa.array(draw.choices(texts, k=len(table)), pa.string())
            storage.write_table(name, table.set_column(table.column_names.index("text"), "text", column))


def _prose(draw: random.Random, characters: int) -> str:
    letters = "etaoinshrdlcumwfgypbvk"
    words = ["".join(draw.choices(letters, range(len(letters), 0, -1), k=draw.randint(1, 10))) for _ in range(400)]
    return " ".join(draw.choices(words, [1 / (i + 1) for i in range(400)], k=characters))[:characters]


def _opened(file: Path, browser: str, repeats: int) -> dict[str, Any]:
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=["--disable-gpu"])
        lists, loads, searches = [], [], {}
        for turn in range(repeats):
            page = chromium.new_context().new_page()
            page.add_init_script(WATCH)
            started = time.perf_counter()
            page.goto(file.as_uri(), wait_until="commit")
            page.wait_for_selector("#question-list li")
            lists.append(time.perf_counter() - started)
            page.wait_for_load_state("load")
            loads.append(time.perf_counter() - started)
            if turn == repeats - 1:
                searches = dict(_searches(page))
            page.context.close()
        version = chromium.version
        chromium.close()
    times = {
        "list_s": round(median(lists), 2),
        "load_s": round(median(loads), 2),
        "slowest_load_s": round(max(loads), 2),
    }
    return times | {"search": searches, "chromium": version}


def _searches(page: Page) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, words in SEARCHES.items():
        page.evaluate("window.longest = 0; document.getElementById('shown').textContent = ''")
        started = time.perf_counter()
        page.fill("[name=words]", words)
        page.locator("#shown", has_text=ENDED).wait_for(timeout=120_000)
        seconds = round(time.perf_counter() - started, 2)
        longest = round(page.evaluate("window.longest"))
        yield name, {"s": seconds, "longest_task_ms": longest, "found": page.inner_text("#shown").split()[0]}


def _print(rows: list[dict[str, Any]]) -> None:
    print(f"{'characters':>10} {'write s':>8} {'page MB':>8} {'list s':>7} {'load s':>7} {'slowest':>8}  searches, s")
    for row in rows:
        searches = ", ".join(f"{name} {made['s']}" for name, made in row["search"].items())
        print(
            f"{row['characters']:>10} {row['write_s']:>8} {row['page_mb']:>8} {row['list_s']:>7} {row['load_s']:>7} "
            f"{row['slowest_load_s']:>8}  {searches}"
        )


if __name__ == "__main__":
    main()
