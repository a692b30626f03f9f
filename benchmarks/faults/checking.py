"""What a run has come to, read from its parts and commits and from its tables: never from what it says of itself."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

TABLES = ("skills", "profiles", "aggregators", "recruits", "drafts", "answers", "methods")
FILES = ("profiles/profiles.json", "aggregators/aggregators.json", "results.json")
TIMES = frozenset(["date", "engine", "made", "seconds", "total_evaluation_time_seconds"])
GENERATED = (
    "request_id", "question_id", "shard", "run_seed", "sample", "text", "finish_reason", "prompt_tokens",
    "completion_tokens", "failure",
)  # fmt: skip

Sample = tuple[str, str, int, int]
"""Stage, request, shard and number of a sample: what is to be generated once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a run differs from an undisturbed one: samples that are missing or there twice, and what is not the same."""

    lost: int
    duplicated: int
    different: tuple[str, ...]


def stages_of(run: Path) -> list[str]:
    """The stages that have asked for something, or committed something."""
    found = {f.name for name in ("requests", "commits") for f in (run / name).glob("*") if f.is_dir()}
    return sorted(found - {"fences", "index"})


def committed_parts(run: Path, stage: str) -> list[dict[str, Any]]:
    """The parts of a stage whose commits no later attempt has fenced off."""
    found = []
    fences = {file.stem: json.loads(file.read_text()) for file in (run / "commits" / "fences").glob("*.json")}
    for file in sorted((run / "commits" / stage).glob("*.json")):
        attempt, number = file.stem.rsplit("-", 1)
        if all(int(number) <= reached.get(attempt, -1) for fence, reached in fences.items() if fence > attempt):
            found += json.loads(file.read_text())["parts"]
    return found


def generated(run: Path, stage: str) -> list[dict[str, Any]]:
    """The committed rows of a stage, as often as they are committed."""
    rows = []
    for part in committed_parts(run, stage):
        table = pq.read_table(run / part["path"], columns=list(GENERATED), partitioning=None)
        rows += [{"stage": stage, "expert": part["expert"], **row} for row in table.to_pylist()]
    return rows


def requested(run: Path) -> set[Sample]:
    """Each sample that the stages ask for."""
    wanted = set()
    for stage in stages_of(run):
        for file in (run / "requests" / stage).rglob("*.parquet"):
            rows = pq.read_table(file, columns=["request_id", "shard", "n"], partitioning=None).to_pylist()
            wanted |= {(stage, r["request_id"], r["shard"], i) for r in rows for i in range(r["n"])}
    return wanted


def verdict(run: Path, undisturbed: Path, *, same_texts: bool = True) -> Verdict:
    """Compare a run with one that nothing disturbed: its samples, and with `same_texts` every row and final file."""
    rows = [row for stage in stages_of(run) for row in generated(run, stage)]
    counts: Counter[Sample] = Counter((r["stage"], r["request_id"], r["shard"], r["sample"]) for r in rows)
    lost = len(requested(undisturbed) - counts.keys())
    different = [f"samples that nobody asked for: {len(counts.keys() - requested(run))}"] * bool(
        counts.keys() - requested(run)
    )
    if same_texts:
        ours, theirs = _content(run), _content(undisturbed)
        different += sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return Verdict(lost=lost, duplicated=sum(counts.values()) - len(counts), different=tuple(different))


def _content(run: Path) -> dict[str, str]:
    """Everything that a run has made, as text without times: rows in the order of their values, files as they are."""
    texts = {f"rows of {stage}": _canonical(generated(run, stage)) for stage in stages_of(run)}
    for folder in (run, *sorted(run.glob("seed=*"))):
        for name in TABLES:
            files = sorted((folder / name).glob("*.parquet"))
            rows = [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]
            texts[f"{folder.name if folder != run else ''}/{name}"] = _canonical(rows)
        for file in (*(folder / name for name in FILES), *folder.glob("samples_*.jsonl")):
            if file.exists():
                text = file.read_text()
                told = json.dumps(_timeless(json.loads(text))) if file.suffix == ".json" else text
                texts[str(file.relative_to(run))] = told
    return texts


def _canonical(rows: list[dict[str, Any]]) -> str:
    return "\n".join(sorted(json.dumps(_timeless(row), default=str) for row in rows))


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(v) for key, v in value.items() if key not in TIMES}
    return [_timeless(v) for v in value] if isinstance(value, list) else value
