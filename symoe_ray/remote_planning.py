"""What a plan says of experts on servers elsewhere: they take no slot, and work beside the slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from symoe_ray.engine_costs import EngineCost
from symoe_ray.simulation import Outcome, SimulatedGroup, simulate

# A guess: hosted models write 30 to 150 tokens a second for one caller, however many others there are.
TOKENS_PER_S = 50.0
PRIOR = EngineCost(load_s=0.0, step_s=1 / TOKENS_PER_S, sequence_s=0.0)


def simulate_server(group: SimulatedGroup, slot: str) -> Outcome:
    """A server's work on a stage, as a slot of that name that has the engine from the beginning."""
    outcome = simulate([group], slots=1, resident={"slot-0": group.key})
    return replace(outcome, spans=tuple(replace(span, slot=slot) for span in outcome.spans), resident={})


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """Outcomes of what went on at the same time."""
    return Outcome(
        makespan_s=max(o.makespan_s for o in outcomes), rows=sum(o.rows for o in outcomes),
        tokens=sum(o.tokens for o in outcomes), loads={key: count for o in outcomes for key, count in o.loads.items()},
        spans=tuple(span for o in outcomes for span in o.spans), most_rows=max(o.most_rows for o in outcomes),
        leases=sum(o.leases for o in outcomes),
        resident={slot: key for o in outcomes for slot, key in o.resident.items()},
    )  # fmt: skip
