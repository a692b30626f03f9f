"""What a run will load, where and when, and how long it takes: its stages in numbers, worked through by the simulator.

Nothing here reads a question or a model: counts and sizes are given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from symoe_ray.core import ExpertSpec
from symoe_ray.engine_costs import EngineCost, prior_cost
from symoe_ray.engine_room import GPU_ENGINE_BYTES, PROMPT_TOKENS, Room, gpu_sequences, running_tokens
from symoe_ray.length_estimates import SIGMA, most_tokens, unseen_tokens
from symoe_ray.remote_planning import PRIOR, TOKENS_PER_S, simulate_server, together
from symoe_ray.remote_slots import remote_slots
from symoe_ray.settings import Settings
from symoe_ray.simulated_engine import Cohort
from symoe_ray.simulation import Outcome, SimulatedGroup, Span, simulate
from symoe_ray.stage_sizes import Counts, in_passes, joint_name, stage_requests

SPREAD_ROWS = 4096
CPU_SEQUENCES = 32
WITHOUT_DRAFTS = ("annotate", "profile", "answer")  # stages whose prompts hold nothing but a question
PRIOR_CORES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Bytes of a model's weights and of one token in its KV cache; `guessed` where the model is not here.

    `is_remote`: a server elsewhere has it, and its size does not matter.
    """

    weight_bytes: int
    kv_bytes_per_token: int
    shape: str = ""
    guessed: bool = False
    is_remote: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What engines run on: slots by their numbers of `gpus`, or `cpu_slots` that share `cores`; and the bytes that one
    engine may have of a GPU, or of memory (0: not known).
    """

    gpus: tuple[int, ...] = ()
    cpu_slots: int = 0
    cores: int = 2
    room_bytes: int = 0
    guessed: bool = False

    @property
    def cuda(self) -> bool:
        """Whether engines run on GPUs."""
        return bool(self.gpus)

    @property
    def slots(self) -> int:
        """How many engines run at once."""
        return len(self.gpus) or self.cpu_slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What an earlier run says about an expert: tokens of a sample per stage, and its engine's costs."""

    tokens: Mapping[str, float]
    cost: EngineCost


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A slot gets an engine: when, and for which experts."""

    slot: str
    at_s: float
    experts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSpan:
    """What a slot does from `begin_s` to `end_s` of its stage: `event` is load or generate, for these experts."""

    slot: str
    event: str
    experts: tuple[str, ...]
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage, or several that are generated together (`stage` names them all): requests and samples, estimated
    output tokens, seconds, its loads in order of time, and all that its slots do, slot by slot.
    """

    stage: str
    requests: int
    samples: int
    tokens: int
    seconds: float
    loads: tuple[Load, ...]
    spans: tuple[PlannedSpan, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """One engine: the experts it serves, and bytes of weights and of KV cache on each of its devices."""

    key: str
    experts: tuple[str, ...]
    weight_bytes: int
    kv_bytes: int
    fits: bool
    guessed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """All stages of a run on a machine. `gpus` are those of each slot (none: the CPU). `notes` say what was guessed."""

    slots: int
    gpus: tuple[int, ...]
    stages: tuple[StagePlan, ...]
    engines: tuple[EnginePlan, ...]
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Predicted seconds of generation, all stages."""
        return sum(s.seconds for s in self.stages)


def plan_of(
    settings: Settings,
    *,
    validation: int,
    test: int,
    sizes: Mapping[str, ModelSize],
    machine: Machine,
    seen: Mapping[str, Seen] | None = None,
) -> RunPlan:
    """The plan of a run over so many questions. `sizes` are by expert; `seen` too, where an earlier run is known."""
    seen = seen or {}
    passes = in_passes(stage_requests(settings, validation=validation, test=test))
    groups = [_groups(settings, joint, sizes, machine, seen) for joint in passes]
    resident: Mapping[str, str] = {}
    stages = []
    for joint, own, after in zip(passes, groups, [*groups[1:], []], strict=True):
        outcome = _simulated(settings, own, machine, resident, frozenset(g.key for g in after))
        resident = {slot: key for slot, key in outcome.resident.items() if key}
        stages.append(_stage_plan(settings, joint, outcome))
    notes = []
    if guessed := [e.name for e in settings.pool.experts if sizes[e.name].guessed]:
        notes.append(f"not here, sizes guessed: {', '.join(guessed)}")
    if remote := [e.name for e in settings.pool.experts if e.is_remote]:
        speed = "" if seen else f", {TOKENS_PER_S:.0f} tokens/s for each of its requests assumed"
        notes.append(f"on a server, which needs nothing here: {', '.join(remote)}{speed}")
    if machine.guessed:
        notes.append("no such GPU is here: 80 GB each assumed")
    if not seen:
        notes.append(
            "speeds are priors from the models' sizes, answers a sixth of max_tokens; --run NAME uses a run's own"
        )
    return RunPlan(
        slots=machine.slots, gpus=machine.gpus, stages=tuple(stages), engines=_engines(settings, sizes, machine),
        notes=tuple(notes),
    )  # fmt: skip


def _simulated(
    settings: Settings,
    groups: Sequence[SimulatedGroup],
    machine: Machine,
    resident: Mapping[str, str],
    then: frozenset[str],
) -> Outcome:
    """A stage on the slots, and on servers beside them."""
    servers = remote_slots(settings.pool.experts)
    outcomes = [simulate_server(g, servers[g.key]) for g in groups if g.key in servers]
    local = [g for g in groups if g.key not in servers]
    if not local:
        return replace(together(outcomes), resident=resident)
    on_slots = simulate(
        local, slots=machine.gpus or machine.slots, max_rows=settings.engine.chunk_rows, resident=resident, then=then,
        beside=_two_fit(settings, machine),
    )  # fmt: skip
    return together([on_slots, *outcomes])


def _two_fit(settings: Settings, machine: Machine) -> bool:
    """Whether any engine may start beside any other: on a GPU each takes `gpu_memory_utilization` of the memory."""
    shares = sorted(_argument(settings, e, "gpu_memory_utilization") for e in settings.pool.local)
    return settings.engine.overlap and (not machine.cuda or sum(shares[-2:]) < 1.0)


def _argument(settings: Settings, spec: ExpertSpec, name: str) -> float:
    """An engine setting that an expert may have its own of."""
    return float(str(spec.engine_args.get(name, getattr(settings.engine, name))))


def _sequences(settings: Settings, spec: ExpertSpec, machine: Machine) -> int:
    """The most sequences in a step."""
    most = gpu_sequences(machine.room_bytes) if machine.cuda else CPU_SEQUENCES
    return int(_argument(settings, spec, "max_num_seqs")) or most


def _groups(
    settings: Settings,
    joint: Mapping[str, Counts],
    sizes: Mapping[str, ModelSize],
    machine: Machine,
    seen: Mapping[str, Seen],
) -> list[SimulatedGroup]:
    by_key: dict[str, list[_Asked]] = {}
    for stage, counts in joint.items():
        for name, (_, samples) in counts.items():
            spec = settings.pool.expert(name)
            most = most_tokens(settings, stage, spec)
            known = seen[name].tokens.get(stage) if name in seen else None
            asked = _Asked(
                spec=spec, cohorts=spread(known or unseen_tokens(most), most, samples),
                prompt=_prompt_tokens(settings, stage, spec, seen), samples=samples,
            )  # fmt: skip
            by_key.setdefault(spec.engine_key, []).append(asked)
    return [_group(settings, key, asked, sizes, machine, seen) for key, asked in by_key.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a stage asks of an expert: the answers' lengths, and the mean tokens of a prompt."""

    spec: ExpertSpec
    cohorts: list[Cohort]
    prompt: float
    samples: int

    @property
    def tokens(self) -> int:
        return sum(tokens * count for tokens, count in self.cohorts)


def _group(
    settings: Settings,
    key: str,
    asked: Sequence[_Asked],
    sizes: Mapping[str, ModelSize],
    machine: Machine,
    seen: Mapping[str, Seen],
) -> SimulatedGroup:
    """What one engine is asked, the longest answers first."""
    spec, size = asked[0].spec, sizes[asked[0].spec.name]
    cohorts = [c for a in sorted(asked, key=lambda a: -a.tokens / max(a.samples, 1)) for c in a.cohorts]
    rows = max(1, sum(a.samples for a in asked))
    mean, prompt = sum(a.tokens for a in asked) / rows, sum(a.prompt * a.samples for a in asked) / rows
    known_cost = next((seen[a.spec.name].cost for a in asked if a.spec.name in seen), None)
    cost = known_cost or prior(spec, size, mean, machine, prompt)
    return SimulatedGroup(
        key=key, cohorts=tuple(cohorts), cost=cost, mean_tokens=mean, longest_tokens=max(t for t, _ in cohorts),
        capacity=capacity(settings, spec, size, machine, (prompt, mean)), shape=size.shape,
        tensor_parallel_size=min(spec.tensor_parallel_size, max(machine.gpus, default=1)),
    )  # fmt: skip


def _prompt_tokens(settings: Settings, stage: str, spec: ExpertSpec, seen: Mapping[str, Seen]) -> float:
    """Of a prompt: of one with k drafts where the stage shows some, as far as they fit beside an answer.

    A draft is shown without its reasoning: what is left of it is taken to be as long as an answer of those who do not
    reason.
    """
    if stage in WITHOUT_DRAFTS:
        return PROMPT_TOKENS
    plain = [e for e in settings.pool.experts if not e.think_end_token] or settings.pool.experts
    known = (seen[e.name].tokens.get("answer") if e.name in seen else None for e in plain)
    guessed = (unseen_tokens(most_tokens(settings, "answer", e)) for e in plain)
    draft = sum(k or g for k, g in zip(known, guessed, strict=True)) / len(plain)
    room = spec.max_model_len - most_tokens(settings, stage, spec) - PROMPT_TOKENS
    return PROMPT_TOKENS + max(0.0, min(settings.k * draft, room))


def capacity(
    settings: Settings, spec: ExpertSpec, size: ModelSize, machine: Machine, lengths: tuple[float, float]
) -> int:
    """How many sequences of such prompts and answers run at once, mean tokens of each."""
    if spec.is_remote:
        return spec.server.max_concurrency
    kv = _engine(settings, spec, (), size, machine).kv_bytes * spec.tensor_parallel_size
    room = Room(_sequences(settings, spec, machine), kv // max(1, size.kv_bytes_per_token))
    return room.sequences(*lengths)


def prior(
    spec: ExpertSpec, size: ModelSize, mean_tokens: float, machine: Machine, prompt_tokens: float = PROMPT_TOKENS
) -> EngineCost:
    """The cost of an engine of which only the size is known; the CPU's is for `PRIOR_CORES` cores."""
    if size.is_remote:
        return PRIOR
    cost = prior_cost(
        size.weight_bytes, size.kv_bytes_per_token, cuda=machine.cuda, prompt_tokens=prompt_tokens,
        context_tokens=running_tokens(prompt_tokens, mean_tokens), answer_tokens=mean_tokens,
        gpus=spec.tensor_parallel_size,
    )  # fmt: skip
    slower = 1.0 if machine.cuda else PRIOR_CORES * machine.slots / machine.cores
    return replace(cost, step_s=cost.step_s * slower, sequence_s=cost.sequence_s * slower)


def spread(mean: float, most: int, rows: int) -> list[Cohort]:
    """Lengths around a mean: quantiles of a lognormal in a mixed order, cut at `most`; equal ones for many rows."""
    if rows > SPREAD_ROWS:
        return [(max(1, round(mean)), rows)]
    normal, middle = NormalDist(), math.log(max(mean, 1.0)) - SIGMA**2 / 2
    lengths = [math.exp(middle + SIGMA * normal.inv_cdf((i + 0.5) / rows)) for i in range(rows)]
    step = next((s for s in range(round(rows * 0.618), rows) if math.gcd(s, rows) == 1), 1)
    return [(max(1, min(most, round(lengths[i * step % rows]))), 1) for i in range(rows)]


def _stage_plan(settings: Settings, joint: Mapping[str, Counts], outcome: Outcome) -> StagePlan:
    served: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for counts in joint.values() for name in counts):
        served.setdefault(settings.pool.expert(name).engine_key, []).append(name)
    loads = sorted((s for s in outcome.spans if s.kind == "load"), key=lambda s: (s.begin_s, s.slot))
    return StagePlan(
        stage=joint_name(joint), requests=sum(r for counts in joint.values() for r, _ in counts.values()),
        samples=outcome.rows, tokens=outcome.tokens, seconds=outcome.makespan_s,
        loads=tuple(Load(slot=s.slot, at_s=s.begin_s, experts=tuple(served.get(s.key, [s.key]))) for s in loads),
        spans=tuple(
            PlannedSpan(slot=s.slot, event=s.kind, experts=tuple(served.get(s.key, [s.key])), begin_s=s.begin_s,
                        end_s=s.end_s)
            for s in _merged(outcome.spans)
        ),
    )  # fmt: skip


def _merged(spans: Sequence[Span]) -> list[Span]:
    """Slot by slot in order of time; where an engine goes on generating after it ran empty, one span for both."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.slot, s.kind, s.begin_s)):
        before = merged[-1] if merged else None
        if before and span.kind == "generate" and _goes_on(before, span):
            merged[-1] = replace(before, end_s=span.end_s)
        else:
            merged.append(span)
    return sorted(merged, key=lambda s: (s.slot, s.begin_s, s.kind))


def _goes_on(before: Span, span: Span) -> bool:
    return (before.slot, before.kind, before.key, before.end_s) == (span.slot, span.kind, span.key, span.begin_s)


def _engines(settings: Settings, sizes: Mapping[str, ModelSize], machine: Machine) -> tuple[EnginePlan, ...]:
    found: dict[str, EnginePlan] = {}
    for spec in settings.pool.local:
        names = tuple(e.name for e in settings.pool.experts if e.engine_key == spec.engine_key)
        if spec.engine_key not in found:
            found[spec.engine_key] = _engine(settings, spec, names, sizes[spec.name], machine)
    return tuple(found.values())


def _engine(
    settings: Settings, spec: ExpertSpec, names: tuple[str, ...], size: ModelSize, machine: Machine
) -> EnginePlan:
    """KV for one full context at least. On the CPU for the sequences that run at once, of 1,024 tokens at most each;
    on a GPU all that weights and steps leave.
    """
    devices = spec.tensor_parallel_size
    tokens = max(spec.max_model_len, _sequences(settings, spec, machine) * min(spec.max_model_len, 1024))
    least = spec.max_model_len * size.kv_bytes_per_token // devices
    asked = int(_argument(settings, spec, "kv_cache_memory_bytes"))
    kv = asked or tokens * size.kv_bytes_per_token // devices
    weights = size.weight_bytes // devices
    share = _argument(settings, spec, "gpu_memory_utilization") if machine.cuda else 1.0
    room = int(machine.room_bytes * share)
    fits = not machine.room_bytes or weights + least <= room
    if machine.room_bytes and fits:
        most = room - weights - (GPU_ENGINE_BYTES if machine.cuda else 0)
        kv = max(least, min(kv, most) if asked or not machine.cuda else most)
    if machine.cuda and devices > max(machine.gpus):
        fits = False
    return EnginePlan(
        key=spec.engine_key, experts=names, weight_bytes=weights, kv_bytes=kv, fits=fits, guessed=size.guessed
    )
