"""Mixture-of-agents and its kin, on the pool: proposers who see each other's answers, and aggregators of other drafts.

The first layer's drafts are those of the stage `answer`, and a request that the aggregation has made already is read
from there: with one set of settings nothing is generated twice, whichever method asks. (After a change of `moa_layers`
what was an aggregator's prompt may be a proposer's of another stage, and is then generated again.)
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial

from pipelines import aggregate
from pipelines.answer import ranking_of
from pipelines.bench_aggregators import aggregator_of
from pipelines.panels import Layer, Panel, panel_answers, panel_drafts, panel_requests
from pipelines.run import Run
from pipelines.sharding import Work, collect, generate
from symoe_ray.baselines import baselines_of
from symoe_ray.fingerprints import digest
from symoe_ray.seed_data import BASELINES
from symoe_ray.tables import ANSWERS, DRAFTS

STAGE = BASELINES
FINALS = "answers"


def run_stage(run: Run) -> None:
    """Write baselines/layer-<i>/ (drafts of proposers beyond the first layer) and baselines/answers/, if asked for."""
    layers = layers_of(run)
    inputs = digest(
        run.output("answer"), run.output("aggregate"), {name: asdict(layer) for name, layer in layers.items()}
    )
    if not run.begin(STAGE, inputs):
        return
    for seed in run.settings.all_seeds:
        run.storage.delete(run.seed_folder(seed) + BASELINES)
    run.done(STAGE, inputs, [_run_layer(run, name, layer, inputs) for name, layer in layers.items()])


def layers_of(run: Run) -> dict[str, Layer]:
    """The layers by their folder below baselines/: further proposers, then all aggregators."""
    base = aggregate.layer_of(run)
    always = replace(base.rules, skip_on_consensus="off")
    made: dict[str, Layer] = {}
    for name, panels in _panels(run).items():
        shared = (aggregate.STAGE, *(layer.stage for layer in made.values()))
        rules = base.rules if name == FINALS else always
        made[name] = replace(base, stage=f"{BASELINES}-{name}", panels=panels, shared=shared, rules=rules)
    return made


def _panels(run: Run) -> dict[str, tuple[Panel, ...]]:
    """The panels of each layer that has any.

    The proposers are the k experts of the highest validation accuracy; each sees all answers of the layer before.
    """
    settings, asked, ranking = run.settings, baselines_of(run.settings), ranking_of(run)
    aggregator, *proposers = (settings.pool.expert(name) for name in (aggregator_of(run), *ranking[: settings.k]))
    top = tuple((spec.name, 0) for spec in proposers)
    own = tuple((ranking[0], sample) for sample in range(settings.k))
    layers, source = {}, "drafts"
    for number in range(2, settings.moa_layers) if asked & {"moa", "debate"} else ():
        name = f"layer-{number}"
        layers[name] = tuple(Panel(method=name, writer=spec, seats=top, source=source) for spec in proposers)
        source = f"{BASELINES}/{name}"
    finals = (
        Panel(method="top_k", writer=aggregator, seats=top),
        Panel(method="self_moa", writer=proposers[0], seats=own),
        Panel(method="moa", writer=aggregator, seats=top, source=source),
    )
    layers[FINALS] = tuple(panel for panel in finals if panel.method in asked)
    return {name: panels for name, panels in layers.items() if panels}


def _run_layer(run: Run, name: str, layer: Layer, inputs: str) -> list[str]:
    folders = {seed: run.seed_folder(seed) for seed in run.settings.all_seeds}
    build = partial(panel_requests, layer, folders)
    commits = generate(run, Work(stage=layer.stage, splits=("test",), build=build, inputs=inputs))
    rows_of, schema = (panel_answers, ANSWERS) if name == FINALS else (panel_drafts, DRAFTS)
    for seed, folder in folders.items():
        function = partial(rows_of, layer, seed, folder, run.verify)
        collect(run, f"{folder}{BASELINES}/{name}", ("test",), function, schema)
    return commits
