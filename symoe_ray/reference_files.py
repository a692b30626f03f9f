"""The files of the released code (arXiv 2503.05641, `skills/<TASK>/`), read and checked against each other.

Per task: `train|test_samples_with_keywords_<annotator>[_mapped].json`, `<expert>_profile_<accuracy>.json`,
`<expert>_CoT.json`, `<expert>_as_aggr_<accuracy>.json`, `test_samples_with_keywords_and_solvers_seed<N>.csv`,
`round0_seed<N>.csv` and `fixed_<aggregator>_round1_seed<N>_<accuracy>.json`. Rows of one split stand in the same order
in all of them. Every fault is an InputError that names the file and the item or line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from symoe_ray.core import InputError
from symoe_ray.question_files import Row, read_json, read_rows
from symoe_ray.reference_tables import ReferenceSeats, read_seats

_KEYWORDS = re.compile(r"(train|test)_samples_with_keywords_[^_.]+(_mapped)?\.json")
_PROFILE = re.compile(r"(.+?)_profile_(.+)\.json")
_CHAINS = re.compile(r"(.+)_CoT\.json")
_AGGREGATOR = re.compile(r"(.+)_as_aggr_(.+)\.json")
_SOLVERS = re.compile(r"test_samples_with_keywords_and_solvers_seed(\d+)\.csv")
_ROUND_0 = re.compile(r"round0_seed(\d+)\.csv")
_ROUND_1 = re.compile(r"fixed_(.+)_round1_seed(\d+)_.+\.json")
_BENCHMARK = re.compile(r"aggr_bench\.json")
_KNOWN = (_KEYWORDS, _PROFILE, _CHAINS, _AGGREGATOR, _SOLVERS, _ROUND_0, _ROUND_1, _BENCHMARK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keywords:
    """One question of a keyword file. `place` says where it stands."""

    place: str
    question: str
    gold: str
    keywords: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """What an expert wrote on a validation question, and how the released code graded it."""

    text: str
    answer: str
    correct: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceFolder:
    """All that one task's folder holds.

    `profiles` come in file-name order, which the released draws depend on; `accuracies` (in %) are those of their file
    names. `mapping` is test keyword -> validation keyword, as far as stored. `chains` are per expert, in the order of
    `validation`; `aggregators` expert -> (accuracy in %, cases); `seats` per seed, in the order of `test`; `finals` per
    seed the aggregator and its texts. `unread` are files of no known name.
    """

    task: str
    validation_file: Path
    test_file: Path
    validation: tuple[Keywords, ...]
    test: tuple[Keywords, ...]
    mapping: Mapping[str, str]
    profiles: Mapping[str, Mapping[str, int]]
    accuracies: Mapping[str, float]
    chains: Mapping[str, tuple[Chain, ...]]
    aggregators: Mapping[str, tuple[float, int]]
    seats: Mapping[int, tuple[ReferenceSeats, ...]]
    finals: Mapping[int, tuple[str, tuple[str, ...]]]
    unread: tuple[str, ...]


def read_folder(folder: Path) -> ReferenceFolder:
    """Read `skills/<TASK>/`, or a folder above it that holds a single task."""
    place = _task_folder(folder)
    files = sorted(path for path in place.iterdir() if path.is_file())
    validation_file, test_file, mapped_file = _keyword_files(place, files)
    validation, test = _keywords(validation_file), _keywords(test_file)
    profiles, accuracies = _profiles(files)
    if not profiles:
        raise InputError(f"{place}: holds no <expert>_profile_<accuracy>.json")
    _refuse_strangers(files, profiles)
    seats = _seats(files, test, set(profiles))
    aggregators = {m[1]: (_accuracy(p, m[2]), len(read_rows(str(p)))) for p, m in _matching(files, _AGGREGATOR)}
    return ReferenceFolder(
        task=place.name,
        validation_file=validation_file,
        test_file=test_file,
        validation=validation,
        test=test,
        mapping=_mapping(test, _keywords(mapped_file) if mapped_file else (), seats, validation),
        profiles=profiles,
        accuracies=accuracies,
        chains={m[1]: _chains(path, m[1], validation) for path, m in _matching(files, _CHAINS)},
        aggregators=aggregators,
        seats=seats,
        finals={int(m[2]): (m[1], _finals(path, len(test))) for path, m in _matching(files, _ROUND_1)},
        unread=tuple(p.name for p in files if not any(known.fullmatch(p.name) for known in _KNOWN)),
    )


def _task_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    if any(_PROFILE.fullmatch(path.name) for path in folder.iterdir()):
        return folder.resolve()
    above = folder / "skills" if (folder / "skills").is_dir() else folder
    tasks = sorted({path.parent for path in above.glob("*/*_profile_*.json")})
    if len(tasks) != 1:
        found = f"holds several tasks: {', '.join(path.name for path in tasks)}; name one" if tasks else "holds none"
        raise InputError(
            f"{folder}: must be a folder skills/<TASK> with <expert>_profile_<accuracy>.json files; it {found}"
        )
    return tasks[0].resolve()


def _matching(files: Sequence[Path], pattern: re.Pattern[str]) -> list[tuple[Path, re.Match[str]]]:
    return [(path, match) for path in files if (match := pattern.fullmatch(path.name))]


def _keyword_files(place: Path, files: Sequence[Path]) -> tuple[Path, Path, Path | None]:
    """The validation file, the test file and the mapped test file; the mapped one stands in for a missing test file."""
    found: dict[str, Path] = {}
    for path, match in _matching(files, _KEYWORDS):
        kind = "mapped" if match[2] else match[1]
        if kind in found:
            raise InputError(f"{path}: a second {kind} keyword file beside {found[kind].name}; keep one of them")
        found[kind] = path
    found.setdefault("test", found.get("mapped", place))
    for kind in ("train", "test"):
        if not found.get(kind, place).is_file():
            raise InputError(f"{place}: holds no {kind}_samples_with_keywords_<annotator>.json")
    return found["train"], found["test"], found.get("mapped")


def _keywords(path: Path) -> tuple[Keywords, ...]:
    return tuple(_keyword_row(row) for row in read_rows(str(path)))


def _keyword_row(row: Row) -> Keywords:
    question, gold, keywords = (_field(row, name) for name in ("question", "gold_answer", "keywords"))
    if not isinstance(question, str):
        raise InputError(f"{row.place}: 'question' must be a text, but is {question!r}")
    if not isinstance(keywords, list) or not all(isinstance(keyword, str) for keyword in keywords):
        raise InputError(f"{row.place}: 'keywords' must be a list of texts, but is {keywords!r}")
    return Keywords(place=row.place, question=question, gold=str(gold), keywords=tuple(keywords))


def _field(row: Row, name: str) -> object:
    if name not in row.values:
        raise InputError(f"{row.place}: has no {name!r} field; its fields are: {', '.join(map(str, row.values))}")
    return row.values[name]


def _mapping(
    test: Sequence[Keywords], mapped: Sequence[Keywords], seats: Mapping[int, Sequence[ReferenceSeats]],
    validation: Sequence[Keywords],
) -> dict[str, str]:  # fmt: skip
    """Test keyword -> validation keyword, from the mapped file, else from a recruit CSV, whose keywords are mapped."""
    rows = [(row.place, row.keywords) for row in mapped]
    if not rows and seats:
        rows = [(row.place, row.keywords) for row in next(iter(seats.values()))]
    known = {keyword for row in validation for keyword in row.keywords}
    found: dict[str, str] = {}
    if rows and len(rows) != len(test):
        raise InputError(f"{rows[0][0]}: the file has {len(rows)} questions, the test file {len(test)}")
    for (place, targets), row in zip(rows, test, strict=False):
        if len(targets) != len(row.keywords):
            raise InputError(f"{place}: {len(targets)} mapped keywords, but {len(row.keywords)} in {row.place}")
        for keyword, target in zip(row.keywords, targets, strict=True):
            if target not in known:
                raise InputError(f"{place}: {keyword!r} is mapped to {target!r}, which no validation question has")
            if found.setdefault(keyword, target) != target:
                raise InputError(f"{place}: {keyword!r} is mapped to {target!r} here and to {found[keyword]!r} before")
    return found


def _profiles(files: Sequence[Path]) -> tuple[dict[str, dict[str, int]], dict[str, float]]:
    profiles: dict[str, dict[str, int]] = {}
    accuracies = {}
    for path, match in _matching(files, _PROFILE):
        if match[1] in profiles:
            raise InputError(f"{path}: a second profile of {match[1]}; keep one of them")
        scores = read_json(str(path))
        if not isinstance(scores, dict):
            raise InputError(f"{path}: must hold an object of skills and scores")
        for skill, score in scores.items():
            if isinstance(score, bool) or not isinstance(score, int):
                raise InputError(f"{path}: the score of {skill!r} must be an integer, but is {score!r}")
        profiles[match[1]], accuracies[match[1]] = scores, _accuracy(path, match[2])
    return profiles, accuracies


def _refuse_strangers(files: Sequence[Path], profiles: Mapping[str, object]) -> None:
    """Every expert has a profile, and one of them wrote all final answers."""
    for pattern in (_CHAINS, _AGGREGATOR, _ROUND_1):
        for path, match in _matching(files, pattern):
            if match[1] not in profiles:
                raise InputError(f"{path}: {match[1]} has no profile; there are: {', '.join(profiles)}")
    finals = {match[1]: path for path, match in _matching(files, _ROUND_1)}
    if len(finals) > 1:
        raise InputError(f"{list(finals.values())[-1]}: final answers of several aggregators; keep those of one")


def _accuracy(path: Path, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise InputError(f"{path}: {text!r} in the file's name is no accuracy from 0 to 100")
    return value


def _chains(path: Path, expert: str, validation: Sequence[Keywords]) -> tuple[Chain, ...]:
    rows = read_rows(str(path))
    if len(rows) != len(validation):
        raise InputError(f"{path}: {len(rows)} questions, but the validation file has {len(validation)}")
    return tuple(_chain(row, expert, asked) for row, asked in zip(rows, validation, strict=True))


def _chain(row: Row, expert: str, asked: Keywords) -> Chain:
    if _field(row, "question") != asked.question:
        raise InputError(f"{row.place}: its question is not that of {asked.place}")
    text, answer, correct = (_field(row, f"{name}_{expert}") for name in ("reasoning", "pred", "is_correct"))
    if not isinstance(text, str):
        raise InputError(f"{row.place}: 'reasoning_{expert}' must be a text, but is {text!r}")
    if correct not in (0, 1):
        raise InputError(f"{row.place}: 'is_correct_{expert}' must be 0 or 1, but is {correct!r}")
    return Chain(text=text, answer="" if answer is None else str(answer), correct=bool(correct))


def _seats(files: Sequence[Path], test: Sequence[Keywords], experts: set[str]) -> dict[int, tuple[ReferenceSeats, ...]]:
    """Per seed, from its round-0 file where there is one, which repeats the recruit file, else from that."""
    asked = [(row.question, row.gold) for row in test]
    found: dict[int, tuple[ReferenceSeats, ...]] = {}
    for path, match in (*_matching(files, _SOLVERS), *_matching(files, _ROUND_0)):
        rows = read_seats(path, asked, experts)
        for row, before in zip(rows, found.get(int(match[1]), rows), strict=True):
            if row.experts != before.experts:
                raise InputError(f"{row.place}: solvers {row.experts}, but {before.experts} in {before.place}")
        found[int(match[1])] = rows
    return dict(sorted(found.items()))


def _finals(path: Path, count: int) -> tuple[str, ...]:
    texts = read_json(str(path))
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{path}: must hold a list of texts")
    if len(texts) != count:
        raise InputError(f"{path}: {len(texts)} texts, but the test file has {count} questions")
    return tuple(texts)
