"""`symoe profile show | diff | merge | leaks`: profiles to read, compare, unite and check. Generates nothing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from pipelines.profile import PROFILES, read_book, write_book
from pipelines.profile_drift import drift, drift_table
from pipelines.questions import read_questions
from pipelines.run import CONFIG, run_uri, settings_of
from pipelines.signals import DONE, Signals
from symoe_ray.config import load
from symoe_ray.core import InputError
from symoe_ray.leaks import find_leaks, summary
from symoe_ray.profiles import Book, Evidence, merged, profile_of, skill_accuracies
from symoe_ray.statistics import wilson
from symoe_ray.storage import Storage

SHOWN = 5


def add_command(commands: Any) -> None:
    """Add the actions to the parser of `symoe profile`, which is a stage of a run where no action is named."""
    parser: argparse.ArgumentParser = commands.choices["profile"]
    parser.description = (
        "Without an action: the stage profile. show RUN: each expert's accuracy and skills with 95 % intervals. "
        "diff A B: what has changed from A to B, tested on the questions that both have. merge RUN... --to FOLDER: the "
        "evidence of several runs united; profiles=FOLDER then uses it. leaks RUN: the validation questions that occur "
        "in the test set."
    )
    stage = parser.get_default("function")
    parser.add_argument("action", nargs="?", choices=list(ACTIONS), help="what to do instead of running the stage")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names or paths of runs")
    parser.add_argument("--to", metavar="FOLDER", help="merge: where the united profiles go")
    parser.add_argument("--expert", action="append", metavar="NAME", help="show: of these experts only, all skills")
    parser.set_defaults(function=partial(_dispatch, stage))


def _dispatch(stage: Callable[..., int], options: argparse.Namespace, overrides: list[str], signals: Signals) -> int:
    if options.action is None:
        return stage(options, overrides, signals)
    settings = load(overrides)
    storages = [Storage(run_uri(settings, name)) for name in options.runs]
    count, function = ACTIONS[options.action]
    if len(storages) < count or (options.action != "merge" and len(storages) > count):
        raise InputError(f"symoe profile {options.action}: takes {count} run(s), got {len(storages)}")
    value, text = function(storages, options)
    print(json.dumps(value) if options.json else text)
    return DONE


def _show(storages: Sequence[Storage], options: argparse.Namespace) -> tuple[Any, str]:
    book = read_book(storages[0])
    unknown = sorted(set(options.expert or ()) - book.keys())
    if unknown:
        raise InputError(f"{storages[0].uri}: no profile of {', '.join(unknown)}; there is {', '.join(book)}")
    wanted = {name: book[name] for name in options.expert or book}
    value = {name: _facts(name, evidence) for name, evidence in wanted.items()}
    return value, "\n\n".join(_text(name, facts, all_skills=bool(options.expert)) for name, facts in value.items())


def _facts(expert: str, evidence: Sequence[Evidence]) -> dict[str, Any]:
    profile, accuracies = profile_of(expert, evidence), skill_accuracies(evidence)
    skills = {
        skill: {"score": score} | (_counted(*accuracies[skill]) if skill in accuracies else {})
        for skill, score in sorted(profile.scores.items(), key=lambda item: (-item[1], item[0]))
    }
    about = [{k: v for k, v in asdict(e).items() if k not in ("scores", "asked")} for e in evidence]
    return {
        "task": profile.task, "graded": profile.graded, "correct": profile.correct,
        "ci95": wilson(profile.correct, profile.graded), "skills": skills, "evidence": about,
    }  # fmt: skip


def _counted(right: int, asked: int, interval: tuple[float, float]) -> dict[str, Any]:
    return {"right": right, "asked": asked, "ci95": interval}


def _text(expert: str, facts: Mapping[str, Any], *, all_skills: bool) -> str:
    low, high = facts["ci95"]
    lines = [f"{expert}: {facts['correct']} of {facts['graded']} right (95% CI {_percent(low)} to {_percent(high)})"]
    for piece in facts["evidence"]:
        known = (f"{name} {piece[name]}" for name in ("model", "revision", "grader", "made") if piece[name])
        lines.append(f"  {piece['task']}: {piece['graded']} questions; {', '.join(known) or 'of unknown origin'}")
    skills = list(facts["skills"].items())
    shown = skills if all_skills or len(skills) <= 2 * SHOWN else [*skills[:SHOWN], *skills[-SHOWN:]]
    for skill, own in shown:
        counted = ""
        if "asked" in own:
            counted = f"{own['right']:>5} of {own['asked']:<5} {_percent(own['ci95'][0])} to {_percent(own['ci95'][1])}"
        lines.append(f"  {skill:<22}{own['score']:>+6.0f}{counted}")
    if len(shown) < len(skills):
        lines.insert(-SHOWN, f"  ... {len(skills) - len(shown)} skills between; --expert {expert} shows them")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _diff(storages: Sequence[Storage], _: argparse.Namespace) -> tuple[Any, str]:
    found = drift(*storages)
    return found, drift_table(found)


def _merge(storages: Sequence[Storage], options: argparse.Namespace) -> tuple[Any, str]:
    if not options.to:
        raise InputError("symoe profile merge: name the folder for the united profiles with --to FOLDER")
    target = Storage(options.to)
    if target.exists(CONFIG):
        raise InputError(f"--to {options.to}: is a run; its profiles follow from its own answers")
    book: Book = merged(read_book(storage) for storage in storages)
    write_book(target, book)
    counts = {name: {"evidence": len(own), "graded": profile_of(name, own).graded} for name, own in book.items()}
    text = "\n".join(
        f"{name}: {own['graded']} questions in {own['evidence']} piece(s) of evidence" for name, own in counts.items()
    )
    return {"profiles": target.path(PROFILES), "experts": counts}, f"{text}\nprofiles: {target.path(PROFILES)}"


def _leaks(storages: Sequence[Storage], _: argparse.Namespace) -> tuple[Any, str]:
    if settings_of(storages[0]) is None:
        raise InputError(f"there is no run at {storages[0].uri} (no {CONFIG})")
    validation, test = ([q for q, _ in read_questions(storages[0], split)] for split in ("validation", "test"))
    leaks = find_leaks(validation, test)
    value = {"validation": len(validation), "test": len(test), "leaks": [asdict(leak) for leak in leaks]}
    lines = [f"{leak.similarity:.2f}  {leak.validation_id}  {leak.test_id}" for leak in leaks]
    return value, "\n".join([*lines, summary(leaks, len(validation))])


ACTIONS: dict[str, tuple[int, Callable[[Sequence[Storage], argparse.Namespace], tuple[Any, str]]]] = {
    "show": (1, _show),
    "diff": (2, _diff),
    "merge": (1, _merge),
    "leaks": (1, _leaks),
}
"""Name -> how many runs it takes at least, and what makes its JSON value and its text."""
