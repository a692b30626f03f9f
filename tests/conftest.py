"""Counts for the last line of a test run: {"passed", "failed", "skipped", "real_engine", "real_ray"}."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest


class Counter:
    """Counts each test once; `real_engine` and `real_ray` are the passed tests that bear that marker."""

    def __init__(self) -> None:
        self._outcomes: dict[str, str] = {}
        self._real: dict[str, set[str]] = {"real_engine": set(), "real_ray": set()}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test has failed if any of its phases has, and passed if its call did and nothing failed."""
        known = self._outcomes.get(report.nodeid)
        if report.failed:
            self._outcomes[report.nodeid] = "failed"
        elif report.skipped and known is None:
            self._outcomes[report.nodeid] = "skipped"
        elif report.when == "call" and known is None:
            self._outcomes[report.nodeid] = "passed"
            for marker, tests in self._real.items():
                if marker in report.keywords:
                    tests.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported counts as one failure, one that skips itself as one skip."""
        if report.failed or report.skipped:
            self._outcomes[report.nodeid] = report.outcome

    def summary(self) -> dict[str, int]:
        """The counts by name."""
        outcomes = list(self._outcomes.values())
        counts = {outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "skipped")}
        passed = {test for test, outcome in self._outcomes.items() if outcome == "passed"}
        return counts | {marker: len(tests & passed) for marker, tests in self._real.items()}


def pytest_configure(config: pytest.Config) -> None:
    """Count in the process that reports."""
    config.pluginmanager.register(Counter(), "symoe-counter")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_unconfigure(config: pytest.Config) -> Iterator[None]:
    """After everything else that pytest has to say."""
    yield
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    counter = config.pluginmanager.get_plugin("symoe-counter")
    if isinstance(counter, Counter) and reporter is not None:
        reporter.write_line(json.dumps(counter.summary()))
