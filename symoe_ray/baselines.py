"""What `baselines` asks for beside the method itself, and which drafts that takes of every expert."""

from __future__ import annotations

from collections.abc import Sequence

from symoe_ray.settings import Settings

SMALL_POOL = 8
NAMES = ("best_single", "experts", "self_consistency", "random_experts", "top_k", "moa", "self_moa", "debate")
"""The best expert's answer; every expert's; votes over the best one's samples; k random experts, and the task's top k,
with the run's aggregator; mixture-of-agents; the best expert's k samples aggregated by itself; the proposers' vote."""

_FROM_DRAFTS = frozenset(["best_single", "experts", "self_consistency", "random_experts"])
_GROUPS = {"all": frozenset(NAMES), "minimal": frozenset(["best_single"]), "off": frozenset[str]()}
GROUPS = ("auto", *_GROUPS)


def baselines_of(settings: Settings) -> frozenset[str]:
    """The names that are asked for: what `auto` stands for depends on what it costs, so on the size of the pool."""
    if settings.baselines == ("auto",):
        return _FROM_DRAFTS if len(settings.pool.experts) <= SMALL_POOL else _GROUPS["minimal"]
    if len(settings.baselines) == 1 and settings.baselines[0] in _GROUPS:
        return _GROUPS[settings.baselines[0]]
    return frozenset(settings.baselines)


def vote_samples(settings: Settings) -> int:
    """Samples that self-consistency votes over: as many as the method makes calls for a question."""
    return settings.annotate.samples + settings.k + 1


def baseline_samples(settings: Settings, ranking: Sequence[str]) -> dict[str, int]:
    """Samples of each expert that the baselines want for every test question, beside the seats that are drawn.

    `ranking` holds the experts from the highest validation accuracy on.
    """
    asked, best, wanted = baselines_of(settings), ranking[0], dict.fromkeys(ranking, 0)
    if "experts" in asked:
        wanted |= {expert.name: 1 for expert in settings.pool.experts}
    if asked & {"top_k", "moa", "debate"}:
        wanted |= dict.fromkeys(ranking[: settings.k], 1)
    if "best_single" in asked:
        wanted[best] = 1
    if "self_moa" in asked:
        wanted[best] = settings.k
    if "self_consistency" in asked:
        wanted[best] = max(wanted[best], vote_samples(settings))
    return {expert: samples for expert, samples in wanted.items() if samples}
