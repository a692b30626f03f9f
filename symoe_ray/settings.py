"""The settings of a run as typed values: mirrors of the YAML under conf/, parsed once at the entry and passed down.

`symoe_ray.config.load` makes them from files and `key=value` overrides; nothing else reads configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from symoe_ray.core import ExpertSpec


@dataclass(frozen=True, kw_only=True)
class FieldNames:
    """Which keys of the user's own data hold what (JSON, JSONL, Parquet, the hub).

    `choices` is one key that holds all options, or a list of keys that hold one each; `gold` may then be one of them
    (the option in it is right). `gold_index`: gold is an option's number, counted from 0.
    """

    id: str = "id"
    question: str = "question"
    choices: tuple[str, ...] = ("choices",)
    gold: str = "gold_answer"
    gold_index: bool = False
    category: str = "category"
    kind: str = "kind"


@dataclass(frozen=True, kw_only=True)
class DemoTask:
    """The task that the project makes itself: questions per split, and the seed of both."""

    seed: int = 0
    validation: int = 180
    test: int = 120


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """A task: where its questions are and what its answers look like.

    `kind`: choice, integer, or auto (a question with options is a choice question). `validation` and `test` are files,
    URLs, addresses of an object store (s3://BUCKET/FILE) or hf:// addresses (see `hub_addresses`), for which a task
    file may use `dataset` and `revision`; `demo` is given instead of them for the generated task. `shuffle_choices`
    puts each question's options into an order that follows from its content. `unnamed_options` is how many a choice
    question has that names none (0: an error). `test_questions` and `validation_questions` are the published sizes (0:
    not published).
    """

    name: str
    kind: str = "auto"
    validation: str = ""
    test: str = ""
    dataset: str = ""
    revision: str = ""
    shuffle_choices: bool = False
    unnamed_options: int = 0
    fields: FieldNames = field(default_factory=FieldNames)
    demo: DemoTask | None = None
    validation_questions: int = 0
    test_questions: int = 0


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """The experts, and which of them annotates skills unless `annotator` of the run names another ("": the first)."""

    name: str
    experts: tuple[ExpertSpec, ...]
    annotator: str = ""

    def expert(self, name: str) -> ExpertSpec:
        """The expert of that name; KeyError otherwise."""
        return next(e for e in self.experts if e.name == name)

    @property
    def local(self) -> tuple[ExpertSpec, ...]:
        """The experts that need a slot: those that no server elsewhere answers for."""
        return tuple(e for e in self.experts if not e.is_remote)


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Where Ray runs. `address`: "local" starts a cluster for this run, "auto" joins the one that is there.

    `node_wait_s`: how long the GPUs that `gpus` asks for are waited for at the start, and later a node where none is
    left with a slot for some expert (None: 300 s on a cluster of others, not at all on one's own).
    """

    name: str = "local"
    address: str = "local"
    num_cpus: int = 0
    object_store_bytes: int = 200_000_000
    dashboard: bool = False
    node_wait_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How engines are run. Names that vLLM has are spelled as vLLM spells them.

    `kind`: vllm, fake, or openai, which is no engine: every expert lives on a server elsewhere (`ExpertSpec.server`).
    `slots`: engines at once on each node's CPU (with GPUs, `gpus` decides). `dtype` auto is the checkpoint's own, on a
    CPU without bfloat16 float32. `kv_cache_memory_bytes` 0 lets vLLM size it (GPU) or takes up to 1 GiB (CPU).
    `enforce_eager` None is false on a GPU, true on the CPU. `threads` 0 shares the cores out over the slots.
    `chunk_rows` is the unit of lease, stealing and commit. `reload`, `max_sleeping`, `prefetch` and `overlap` say which
    ways of changing experts are allowed; `memory_timeout_s` is how long memory that another engine gives back is waited
    for.
    """

    kind: str = "vllm"
    slots: int = 1
    dtype: str = "auto"
    seed: int = 0
    max_num_seqs: int = 0
    kv_cache_memory_bytes: int = 0
    gpu_memory_utilization: float = 0.9
    block_size: int = 0
    enforce_eager: bool | None = None
    load_timeout_s: float = 1800.0
    stall_timeout_s: float = 300.0
    threads: int = 0
    chunk_rows: int = 256
    max_attempts: int = 3
    reload: bool = True
    max_sleeping: int = 0
    prefetch: bool = True
    overlap: bool = True
    memory_timeout_s: float = 120.0
    fake_tokens_per_s: float = 0.0
    fake_load_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class AnnotateSettings:
    """Step 1: how skills are asked for and which are kept."""

    samples: int = 5
    min_count: int = 2
    max_characters: int = 20
    sampling_max_tokens: int = 64


@dataclass(frozen=True, kw_only=True)
class AggregateSettings:
    """Step 6. `skip_on_consensus`: off or unanimous. `min_experts`: fewer usable drafts is a recorded failure."""

    skip_on_consensus: str = "off"
    min_experts: int = 1
    max_draft_characters: int = 0


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """The endpoint. `run` names the run whose profiles, trimmed set and aggregator it uses.

    `max_wait_s`: a question whose predicted wait is longer is refused at the door. `max_queue` bounds the samples that
    wait for one engine, `max_questions` the requests under way. `*_timeout_s` bound the stages of a question, waiting
    included. `requests_per_minute` and `concurrency` hold for each key (0: no limit) unless its line in `api_keys_file`
    says otherwise.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    run: str = ""
    api_keys_file: str = ""
    max_wait_s: float = 60.0
    max_queue: int = 1024
    max_questions: int = 512
    annotate_timeout_s: float = 120.0
    answer_timeout_s: float = 600.0
    aggregate_timeout_s: float = 600.0
    max_body_bytes: int = 1_048_576
    max_messages: int = 256
    max_tokens: int = 32_768
    max_n: int = 8
    requests_per_minute: int = 0
    concurrency: int = 0
    drain_s: float = 60.0
    log_prompts: bool = False


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A whole run. See conf/config.yaml for every key with its default and meaning."""

    task: TaskSettings
    pool: PoolSettings
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    annotate: AnnotateSettings = field(default_factory=AnnotateSettings)
    aggregate: AggregateSettings = field(default_factory=AggregateSettings)
    serve: ServeSettings = field(default_factory=ServeSettings)
    gpus: int = 0
    seed: int = 0
    seeds: tuple[int, ...] = ()
    k: int = 3
    annotator: str = ""
    aggregator: str = "auto"
    profiles: tuple[str, ...] = ()
    compat: str = "default"
    router: str = "reference"
    sampler: str = "hash"
    replacement: bool = True
    trim_threshold: float = 0.05
    temperature: float = 0.5
    no_skills: str = "competence"
    grader: str = "default"
    baselines: tuple[str, ...] = ("auto",)
    moa_layers: int = 3
    embedding_model: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_tokens: int = 0
    max_failures: int = 0
    output_dir: str = "runs"
    limit: int = 0
    exclude_leaks: bool = False
    data_dir: str = "data"

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds of the run: `seeds`, or `seed` alone."""
        return self.seeds or (self.seed,)

    @property
    def annotator_name(self) -> str:
        """The expert that annotates skills: `annotator`, else the pool's, else the pool's first."""
        return self.annotator or self.pool.annotator or self.pool.experts[0].name
