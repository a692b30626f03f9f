"""`symoe route "question"`: which experts would be recruited for one question, and why."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines import annotate, questions
from pipelines.opening import embedder_of, opened
from pipelines.profile import read_book
from pipelines.progress import Display
from pipelines.recruit import skill_map
from pipelines.run import MANIFEST, run_uri, settings_of
from pipelines.signals import DONE, Signals
from symoe_ray.config import load
from symoe_ray.core import InputError, Question, Recruitment
from symoe_ray.profiles import merged, profile_of
from symoe_ray.question_files import Row
from symoe_ray.question_rows import parse_question
from symoe_ray.routing import Router, RoutingRules
from symoe_ray.settings import Settings, TaskSettings
from symoe_ray.storage import Storage
from symoe_ray.tables import SKILLS


def add_command(commands: Any) -> None:
    """Add `route` to the parser's commands."""
    parser = commands.add_parser(
        "route",
        help="which experts one question would get, and why",
        description="The annotator names the question's skills (it is loaded for that), or --skills does. Profiles "
        "come from --run RUN, with its settings and the experts that its trimming kept, or from profiles=RUN. Options "
        'are read from the text: "... The options are: (A) ... (B) ...".',
    )
    parser.add_argument("question", nargs="?", help="the question's text")
    parser.add_argument("--run", metavar="NAME_OR_PATH", help="the run whose profiles and settings are used")
    parser.add_argument("--skills", metavar="A,B", help="the question's skills; no engine is started then")
    parser.add_argument("--explain", action="store_true", help="skills, their mapping, and every expert's numbers")
    parser.add_argument("--json", action="store_true", help="all of it as JSON on standard output")
    parser.set_defaults(function=_route)


def _route(options: argparse.Namespace, overrides: list[str], signals: Signals) -> int:
    # A question with an equals sign comes among the settings, none of which holds a space.
    texts = [word for word in (options.question, *overrides) if word and (word == options.question or " " in word)]
    if len(texts) != 1:
        raise InputError('symoe route: takes one question, as in `symoe route "What is 2 + 2?" --run RUN`')
    settings = _settings(options.run, [word for word in overrides if word not in texts])
    sources = [Storage(run_uri(settings, name)) for name in ([options.run] if options.run else settings.profiles)]
    if not sources:
        raise InputError("symoe route: name a run that has profiles, with --run RUN or profiles=RUN")
    question = _question(texts[0], settings)
    if options.skills is not None:
        skills = [skill.strip().lower() for skill in options.skills.split(",") if skill.strip()]
    else:
        skills = _annotated(question, settings, sources[0].uri, signals)
    found, kept = _recruited(question, skills, settings, sources)
    value = explained(question, found, kept)
    if options.json:
        print(json.dumps(value, ensure_ascii=False))
    else:
        print(_text(value) if options.explain else ", ".join(found.experts))
    return DONE


def _settings(run: str | None, overrides: Sequence[str]) -> Settings:
    if run is None:
        return load(overrides)
    own = settings_of(Storage(run_uri(load([o for o in overrides if o.startswith("output_dir=")]), run)), overrides)
    if own is None:
        raise InputError(f"there is no run {run}")
    return own


def _question(text: str, settings: Settings) -> Question:
    """The text with the id that it would have in the run's task, so that it gets the seats it would have there."""
    fields = settings.task.fields
    kind = "integer" if settings.task.kind == "integer" else "auto"
    task = TaskSettings(name=settings.task.name, kind=kind, fields=fields)
    return parse_question(Row("the question", {fields.question: text}), task, needs_gold=False)


def _annotated(question: Question, settings: Settings, profiles: str, signals: Signals) -> list[str]:
    """The skills that the annotator names, in a run of this one question that is deleted afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "question.json")
        names = settings.task.fields
        row = {names.id: question.id, names.question: question.text, names.kind: question.kind}
        file.write_text(json.dumps([row | ({names.choices: question.choices} if question.choices else {})]))
        task = TaskSettings(name=settings.task.name, fields=names, test=str(file))
        own = replace(settings, task=task, profiles=(profiles,), limit=0)
        with opened(own, f"{folder}/run", Display(sys.stderr), signals) as run:
            questions.run_stage(run)
            annotate.run_stage(run)
            rows = run.storage.read_tables(run.storage.names("skills", ".parquet"), SKILLS).to_pylist()
    return list(rows[0]["skills"])


def _recruited(
    question: Question, skills: Sequence[str], settings: Settings, sources: Sequence[Storage]
) -> tuple[Recruitment, Sequence[str]]:
    book = merged(read_book(source) for source in sources)
    profiles = [profile_of(expert, evidence) for expert, evidence in book.items()]
    seed = settings.all_seeds[0]
    stages: Mapping[str, Any] = sources[0].read_json(MANIFEST, {"stages": {}})["stages"]
    facts = stages.get("recruit", {}).get("seeds", {}).get(str(seed), {})
    kept: Sequence[str] = facts.get("kept") or sorted(book)
    mapping = skill_map(sources[0], skills, profiles, embedder_of(settings))
    rules = RoutingRules.from_settings(settings, seed)
    return Router(profiles, rules).recruit([(question.id, skills)], mapping, kept=kept).recruitment(0), kept


def explained(question: Question, found: Recruitment, kept: Sequence[str]) -> dict[str, Any]:
    """A recruitment as JSON-able values; experts by probability, then by suitability."""
    probabilities = dict(zip(found.candidates, found.weights, strict=True))
    rows: list[dict[str, Any]] = [
        {
            "expert": name, "suitability": found.suitability.get(name), "competence": found.competence[name],
            "probability": probabilities.get(name, 0.0), "kept": name in kept,
        }
        for name in found.competence
    ]  # fmt: skip
    rows.sort(key=lambda row: (-row["probability"], -(row["suitability"] or 0.0), row["expert"]))
    pairs = zip(found.mapped, found.cosines, strict=True)
    mapped = dict(zip(found.skills, pairs, strict=True)) if len(found.skills) == len(found.mapped) else {}
    return {
        "question_id": question.id, "question": question.text, "skills": list(found.skills),
        "mapped": [{"skill": s, "mapped": to, "cosine": cosine} for s, (to, cosine) in mapped.items()],
        "candidates": rows, "fallback": found.fallback, "experts": list(found.experts),
    }  # fmt: skip


def _text(value: Mapping[str, Any]) -> str:
    lines = [f"skills: {', '.join(value['skills']) or '(none)'}"]
    for row in value["mapped"]:
        cosine = "unknown" if row["cosine"] is None else f"{row['cosine']:.3f}"
        lines.append(f"  {row['skill']} -> {row['mapped']} (cosine {cosine})")
    width = max(len("expert"), *(len(row["expert"]) for row in value["candidates"]))
    lines += ["", f"{'expert':<{width}}{'suitability':>13}{'competence':>12}{'probability':>13}"]
    for row in value["candidates"]:
        suits = "-" if row["suitability"] is None else f"{row['suitability']:+.0f}"
        trimmed = "" if row["kept"] else "  trimmed"
        lines.append(
            f"{row['expert']:<{width}}{suits:>13}{row['competence']:>12.4f}{row['probability']:>13.4f}{trimmed}"
        )
    lines += ["", *([f"fallback: {value['fallback']}"] if value["fallback"] else [])]
    return "\n".join([*lines, f"experts: {', '.join(value['experts'])}"])
