"""The methods of a run as a Markdown table, for a paper or an issue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from symoe_ray.reporting.wording import method_name, p_value, percent, points, verdict
from symoe_ray.timeline import duration

_HEADER = (
    "Method",
    "Accuracy, % (95% CI)",
    "Symbolic-MoE ahead, points (95% CI)",
    "p",
    "p, Holm",
    "n",
    "Calls",
    "Tokens in",
    "Tokens out",
    "Time",
)


def paper_table(results: Mapping[str, Any], *, run: str, settings: Mapping[str, object]) -> str:
    """Markdown: a heading, the settings, the table of `build_results`' methods and what its columns mean."""
    block = results["symoe"]
    lines = [f"## {_cell(run)}", ""]
    lines += [", ".join(f"{_cell(name)} {_cell(value)}" for name, value in settings.items()), ""]
    if not block["methods"]:
        return "\n".join([*lines, "No question has been evaluated yet.", ""])
    timed = any(row.get("seconds") is not None for row in block["methods"].values())
    rows = [
        _row(method, row, block["paired"].get(f"symoe_vs_{method}"), block["notes"].get(method, ""))
        for method, row in block["methods"].items()
    ]
    width = len(_HEADER) if timed else len(_HEADER) - 1
    lines += [_line(_HEADER[:width]), _line(("---", *("---:" for _ in _HEADER[1:width])))]
    lines += [_line(row[:width]) for row in rows]
    return "\n".join([*lines, "", _legend(block), ""])


def _row(method: str, row: Mapping[str, Any], pair: Mapping[str, Any] | None, note: object) -> tuple[str, ...]:
    """`note` says which expert a method stands for."""
    low, high = row["ci95"]
    p = pair["mcnemar_p"] if pair else None
    ahead = f"{points(pair['difference'])} ({points(pair['ci95'][0])} to {points(pair['ci95'][1])})" if pair else ""
    cells = (
        f"{method_name(method)} ({note})" if note else method_name(method),
        f"{percent(row['accuracy'])} ({percent(low)}\N{EN DASH}{percent(high)})",
        ahead,
        "" if p is None else p_value(p),
        "" if pair is None else p_value(pair["mcnemar_p_holm"]),
        f"{row['n']:,}",
        f"{row['calls']:,.0f}",
        f"{row['prompt_tokens']:,.0f}",
        f"{row['completion_tokens']:,.0f}",
        "" if row.get("seconds") is None else duration(row["seconds"]),
    )
    return tuple(f"**{cell}**" if cell and method == "symoe" else cell for cell in map(_cell, cells))


def _legend(block: Mapping[str, Any]) -> str:
    seeds = len(block["seeds"])
    parts = [
        "Intervals are 95%, clustered by question; differences are paired over the questions that both methods have; "
        f"p is McNemar's exact test{' on the first seed' if seeds > 1 else ''}, "
        "then adjusted for all rows together (Holm).",
        f"Calls and tokens are totals{f', averaged over {seeds} seeds' if seeds > 1 else ''}.",
        verdict({"symoe": block}),
    ]
    return " ".join(part for part in parts if part)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: object) -> str:
    """Text that cannot end its cell, nor become markup."""
    text = " ".join(str(value).split())
    for mark in "\\|*_`<>[]":
        text = text.replace(mark, f"\\{mark}")
    return text
