"""What the report's outputs call things, and how they write numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METHODS = {
    "symoe": "Symbolic-MoE",
    "best_single": "Best single expert",
    "best_single_test": "Best single, hindsight",
    "majority": "Majority vote",
    "random_experts": "Random experts",
    "self_consistency": "Self-consistency",
    "top_k": "Task's top k",
    "moa": "Mixture-of-Agents",
    "self_moa": "Self-MoA",
    "debate": "Debate",
    "oracle": "Oracle, recruited",
    "oracle_pool": "Oracle, whole pool",
}

MEANINGS = {
    "best_single": "the expert with the highest accuracy on the validation questions",
    "best_single_test": "the expert that turned out best on these very questions: no rule could have known it",
    "majority": "the most frequent answer of the recruited drafts, without an aggregator",
    "random_experts": "as many experts drawn at random, with the same aggregator",
    "self_consistency": "the best single expert sampled as often as Symbolic-MoE calls a model, most frequent answer",
    "top_k": "for every question the experts that are best on the task's validation questions, same aggregator",
    "moa": "layers of the task's best experts, each reading the answers of the layer before",
    "self_moa": "the best single expert sampled several times, then aggregating its own answers",
    "debate": "the most frequent answer of the mixture's last layer, without an aggregator",
    "oracle": "right where any recruited draft is right, the bound for an aggregator that picks one",
    "oracle_pool": "right where any expert of the pool is right",
}


def method_name(method: str) -> str:
    """The name of a method for people: an expert's own row bears the expert's name, NAME@N says how many samples."""
    if method.startswith("expert:"):
        return method.removeprefix("expert:")
    name, at, samples = method.partition("@")
    return METHODS.get(name, name) + at + samples


def percent(share: float) -> str:
    """A share in percent, without the sign."""
    return f"{100 * share:.1f}"


def points(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def p_value(p: float) -> str:
    """A p-value to three digits."""
    return "<\N{NO-BREAK SPACE}0.001" if p < 0.001 else f"{p:.3f}"


def verdict(results: Mapping[str, Any]) -> str:
    """A sentence each on whether the pool is ahead of its best expert, and the aggregator of a vote on the same drafts.

    No stronger than interval and test both allow; "" where there is neither to compare with.
    """
    paired = results["symoe"]["paired"]
    rivals = {"best_single": "the best single expert", "majority": "a majority vote of the same drafts"}
    return " ".join(
        _standing(pair, rival)
        for method, rival in rivals.items()
        if (pair := paired.get(f"symoe_vs_{method}")) is not None
    )


def _standing(pair: Mapping[str, Any], rival: str) -> str:
    low, high = pair["ci95"]
    significant = pair["mcnemar_p"] < 0.05
    if low > 0 and significant:
        return f"Ahead of {rival}."
    if high < 0 and significant:
        return f"Behind {rival}."
    detectable = pair.get("smallest_detectable")
    if detectable is None:
        return f"Not distinguishable from {rival}: too few questions to tell any difference."
    return (
        f"Not distinguishable from {rival} on these questions, which can show differences "
        f"of {100 * detectable:.1f} points or more (80% power)."
    )
