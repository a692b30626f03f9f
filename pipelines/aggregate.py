"""Step 6: the aggregator writes the final answer from the seats' drafts."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

from pipelines.bench_aggregators import aggregator_of
from pipelines.panels import Layer, Panel, panel_answers, panel_requests
from pipelines.run import Run
from pipelines.sharding import Work, collect, generate
from symoe_ray.baselines import baselines_of
from symoe_ray.fingerprints import digest
from symoe_ray.tables import ANSWERS

STAGE = "aggregate"
SEATS_OF = {"symoe": "experts", "random_experts": "random_experts"}


def run_stage(run: Run) -> None:
    """Write answers/part-*.parquet (in seed=<N> folders for several seeds): final answers per question and method."""
    aggregator, layer = aggregator_of(run), layer_of(run)
    methods = [panel.method for panel in layer.panels]
    rules = asdict(run.settings.aggregate)
    inputs = digest(run.output("answer"), run.output("recruit"), aggregator, rules, methods)
    if not run.begin(STAGE, inputs):
        return
    folders = {seed: run.seed_folder(seed) for seed in run.settings.all_seeds}
    build = partial(panel_requests, layer, folders)
    commits = generate(run, Work(stage=STAGE, splits=("test",), build=build, inputs=inputs))
    for seed, folder in folders.items():
        function = partial(panel_answers, layer, seed, folder, run.verify)
        collect(run, folder + "answers", ("test",), function, ANSWERS)
    run.done(STAGE, inputs, commits, aggregator=aggregator)


def layer_of(run: Run) -> Layer:
    """The aggregator's panels: the recruited experts', and the random ones' where the settings ask for them."""
    settings = run.settings
    methods = tuple(SEATS_OF) if "random_experts" in baselines_of(settings) else ("symoe",)
    writer = settings.pool.expert(aggregator_of(run))
    return Layer(
        stage=STAGE, panels=tuple(Panel(method=m, writer=writer, seats=SEATS_OF[m]) for m in methods),
        rules=settings.aggregate, grader=settings.grader, max_tokens=settings.max_tokens,
    )  # fmt: skip
