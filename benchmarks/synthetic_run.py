"""A large run without any model: 20,000 questions and the paper's sixteen experts, played by the fake engine.

`python -m benchmarks.synthetic_run [--json] [--questions 20000] [--validation 480] [--run PATH] [key=value ...]`: makes
a task file, has `symoe run` work through it, and measures recruiting it again, and grading and evaluating it again
(`symoe rescore`), by wall clock and with the peak memory of one process. The fake engine's answers are guesses, but a
question's right answer is the guess of an expert who is strong in its topic, so that some experts are better than
others, each at its own skills.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from symoe_ray.config import load
from symoe_ray.core import ExpertSpec, Question
from symoe_ray.fingerprints import uniform
from symoe_ray.grading import extract_choice
from symoe_ray.prompts import annotate_messages
from symoe_ray.requests import answer_request
from symoe_ray.testing import TOPICS, fake_text

OPTIONS = 4
STRONG = 0.6  # the share of questions whose right answer is that of an expert strong in the topic
RECRUIT = """
import sys
from pipelines.opening import embedder_of
from pipelines.profile import read_profiles
from pipelines.recruit import read_asked, skill_map
from pipelines.run import settings_of
from symoe_ray.recruit_tables import recruits_table
from symoe_ray.routing import Router, RoutingRules, random_seats
from symoe_ray.storage import Storage
storage = Storage(sys.argv[1])
settings, profiles = settings_of(storage), read_profiles(storage)
asked, shards = read_asked(storage)
mapping = skill_map(storage, (s for _, skills in asked for s in skills), profiles, embedder_of(settings))
made = Router(profiles, RoutingRules.from_settings(settings, settings.seed)).recruit(asked, mapping)
others = random_seats([question for question, _ in asked], len(made.experts), settings.k, settings.seed)
recruits_table(made, range(len(asked)), shards, others)
"""
SETTINGS = ("pool=paper16", "engine.kind=fake", "engine.slots=2", "task.kind=choice")


def main() -> None:
    """Make the task and the run; print its stages, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    parser.add_argument("--questions", type=int, default=20_000, help="test questions")
    parser.add_argument("--validation", type=int, default=480, help="validation questions")
    parser.add_argument("--run", metavar="PATH", help="where the run is kept (default: it is deleted)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(options.run or Path(folder, "run"))
        files = write_task(run.with_name(run.name + "-task"), options.validation, options.questions)
        symoe = [sys.executable, "-m", "pipelines"]
        steps = {
            "run": [*symoe, "run", *SETTINGS, *files, "--run", str(run), *options.settings],
            "recruit": [sys.executable, "-c", RECRUIT, str(run)],
            "rescore": [*symoe, "rescore", str(run)],
        }
        made = {name: measured(command, quiet=options.json) for name, command in steps.items()}
    for name, step in made.items():
        print(
            f"{name:<9}{step['seconds']:>9.1f} s{step['cpu_seconds']:>9.1f} s of processor"
            f"{step['peak_bytes'] / 2**30:>8.2f} GiB",
            file=sys.stderr,
        )
    sizes = {"questions": options.questions, "validation": options.validation}
    print(json.dumps({"benchmark": "synthetic_run", **sizes, "steps": made}))


def measured(command: Sequence[str], *, quiet: bool) -> dict[str, float]:
    """Seconds of a command, processor seconds of it and its children, and the largest peak memory among them.

    CalledProcessError where it fails.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=sys.stderr if quiet else sys.stdout)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {
        "seconds": round(time.perf_counter() - started, 3),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def write_task(folder: Path, validation: int, test: int) -> list[str]:
    """Write both splits as JSON lines; returns the settings that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = load(SETTINGS)
    questions = synthetic_questions(
        settings.pool.experts, settings.pool.expert(settings.annotator_name), validation + test
    )
    files = ["task.name=synthetic"]
    for split, count in (("validation", validation), ("test", test)):
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(next(questions)) + "\n" for _ in range(count)))
        files.append(f"task.{split}={path}")
    return files


def synthetic_questions(
    experts: Sequence[ExpertSpec], annotator: ExpertSpec, count: int
) -> Iterator[dict[str, object]]:
    """Rows of a question file, each with an id, a text, options and the right letter."""
    for number in range(count):
        specimen = int(uniform("specimen", number) * 1e6)
        text = f"Case {number}: of the four statements about specimen {specimen}, which holds?"
        choices = tuple(f"statement {int(uniform('choice', number, i) * 1e4)}" for i in range(OPTIONS))
        question = Question(id=f"case-{number:06d}", text=text, kind="choice", task="synthetic", choices=choices)
        yield {
            "id": question.id,
            "question": text,
            "choices": choices,
            "gold_answer": _gold(question, experts, annotator),
        }


def _gold(question: Question, experts: Sequence[ExpertSpec], annotator: ExpertSpec) -> str:
    """The first guess of an expert who is strong in the question's topic, or any letter."""
    if uniform("strong", question.id) >= STRONG:
        return question.letters[int(uniform("gold", question.id) * OPTIONS)]
    words = fake_text(annotator.name, annotate_messages(question)[0].content, 0)
    topic = words.removeprefix("Keywords: ").split(", ")[0]
    turn = TOPICS.index(topic)
    spec = experts[(2 * turn + int(uniform("expert", question.id) * 3)) % len(experts)]
    request = answer_request(spec, question, run_seed=0)
    return extract_choice(fake_text(spec.name, request.messages[0].content, request.seed), question.letters)


if __name__ == "__main__":
    main()
