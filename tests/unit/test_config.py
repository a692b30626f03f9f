"""Settings from files, a saved run and the command line."""

from __future__ import annotations

import shutil
from dataclasses import MISSING, fields
from pathlib import Path

import jinja2
import pytest
from omegaconf import OmegaConf

from symoe_ray.config import load, to_yaml
from symoe_ray.core import InputError, Sampling
from symoe_ray.settings import AggregateSettings, AnnotateSettings, DemoTask, EngineSettings, Settings
from symoe_ray.typed import nearest

REPO = Path(__file__).resolve().parents[2]
CONF = REPO / "conf"

# method.md's sizes: validation, test.
SIZES = {"mmlu_pro": (350, 2100), "aime24": (354, 30), "gpqa": (249, 198), "medmcqa": (504, 4183)}


@pytest.fixture(autouse=True)
def _no_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SYMOE_DATA_DIR", raising=False)


def settings(*overrides: str) -> Settings:
    return load(overrides, conf_dir=CONF)


def refusal(*overrides: str, conf_dir: Path = CONF, base: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load(overrides, conf_dir=conf_dir, base=base)
    return str(caught.value)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


class TestDefaults:
    def test_config_yaml_names_every_setting_with_the_default_of_its_dataclass(self) -> None:
        plain = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"), resolve=True)
        assert isinstance(plain, dict)
        groups = {"engine": EngineSettings, "annotate": AnnotateSettings, "aggregate": AggregateSettings}
        assert set(plain) == {field.name for field in fields(Settings)}
        for name, cls in groups.items():
            assert set(plain[name]) == {field.name for field in fields(cls)}
            assert getattr(settings(), name) == cls()
        for field in fields(Settings):
            if field.default is not MISSING:
                assert getattr(settings(), field.name) == field.default, field.name

    def test_every_block_of_config_yaml_starts_with_a_comment(self) -> None:
        blocks = (CONF / "config.yaml").read_text().split("\n\n")
        assert all(block.startswith("#") for block in blocks)

    def test_the_demo_is_what_runs_by_default(self) -> None:
        plain = settings()
        assert (plain.task.name, plain.task.demo) == ("demo", DemoTask())
        assert (plain.pool.name, plain.cluster.address) == ("demo", "local")
        assert plain.annotator_name == "Generalist"
        assert {"Generalist", "Editor", "Science"} < {expert.name for expert in plain.pool.experts}

    def test_the_copy_in_the_source_tree_is_found_from_anywhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert load() == settings()

    def test_a_conf_in_the_working_directory_wins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(CONF, tmp_path / "conf")
        text = (CONF / "config.yaml").read_text().replace("\nk: 3\n", "\nk: 2\n")
        write(tmp_path / "conf" / "config.yaml", text)
        monkeypatch.chdir(tmp_path)
        assert load().k == 2


class TestGroups:
    @pytest.mark.parametrize("name", sorted(SIZES))
    def test_tasks_carry_their_published_sizes_and_files(self, name: str) -> None:
        task = settings(f"task={name}", "data_dir=/data").task
        assert (task.validation_questions, task.test_questions) == SIZES[name]
        assert task.kind == ("integer" if name == "aime24" else "choice")
        assert task.validation == f"/data/{task.name}_train.json"
        assert task.test == f"/data/{task.name}_test.json"

    def test_data_dir_comes_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYMOE_DATA_DIR", "/elsewhere")
        assert settings("task=aime24").task.test == "/elsewhere/AIME24_test.json"
        assert settings("task=aime24").data_dir == "/elsewhere"

    def test_the_papers_pool(self) -> None:
        pool = settings("pool=paper16").pool
        assert len(pool.experts) == 16
        assert pool.annotator == "Qwen"
        caps = {name: pool.expert(name).max_model_len for name in ("Phi", "Mistral", "DeepSeekMath")}
        assert caps == {"Phi": 16000, "Mistral": 16000, "DeepSeekMath": 4096}
        reasoners = {expert.name for expert in pool.experts if expert.think_end_token == "</think>"}
        assert reasoners == {"QwenR1", "LlamaR1"}
        for expert in pool.experts:
            assert expert.sampling.temperature == 0.7
            assert expert.sampling.max_tokens == (32768 if expert.name in reasoners else 4096)
            assert not expert.trust_remote_code

    def test_the_tiny_pool(self) -> None:
        pool = settings("pool=tiny").pool
        assert {expert.name: expert.model for expert in pool.experts} == {
            "TinyLlama": "package:tiny-llama",
            "TinyQwen2": "package:tiny-qwen2",
            "TinyGemma2": "package:tiny-gemma2",
            "TinyQwen3": "package:tiny-qwen3",
        }
        assert all((e.max_model_len, e.sampling.max_tokens) == (1024, 32) for e in pool.experts)

    def test_the_base_models_template_writes_questions_and_answers(self) -> None:
        template = settings("pool=small").pool.expert("Gemma3").chat_template
        render = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template).render
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "2+2?"},
        ]
        expected = "Be brief.\nQuestion: 1+1?\nAnswer: 2\nQuestion: 2+2?\nAnswer:"
        assert render(messages=messages, add_generation_prompt=True) == expected

    def test_own_files_are_groups_too(self, tmp_path: Path) -> None:
        pool = write(
            tmp_path / "mine.yaml",
            "name: mine\n"
            "defaults: {max_model_len: 9, sampling: {temperature: 0.2, stop: [x]}, engine_args: {dtype: half, a: 1}}\n"
            "experts:\n"
            "  - {name: One, model: org/one}\n"
            "  - {name: Two, model: org/two, sampling: {temperature: 1}, engine_args: {a: 2}}\n",
        )
        task = write(tmp_path / "task.yaml", "name: own\ntest: q.jsonl\nfields: {gold: answer}\n")
        both = settings(f"pool={pool}", f"task={task}")
        two = both.pool.expert("Two")
        assert two.sampling == Sampling(temperature=1.0, stop=("x",))
        assert two.engine_args == {"dtype": "half", "a": 2}
        assert two.max_model_len == 9
        assert both.pool.expert("One").sampling.temperature == 0.2
        assert both.annotator_name == "One"  # none named: the pool's first
        assert (both.task.fields.gold, both.task.fields.question) == ("answer", "question")

    def test_keys_within_a_group_follow_the_choice_of_the_group(self) -> None:
        changed = settings("task.validation=mine.jsonl", "task=mmlu_pro", "pool.defaults.sampling.max_tokens=9")
        assert changed.task.validation == "mine.jsonl"
        assert changed.task.name == "MMLU_Pro"
        assert {expert.sampling.max_tokens for expert in changed.pool.experts} == {9}


class TestOverrides:
    def test_every_kind_of_value(self) -> None:
        changed = settings(
            "++k=2", "engine.slots=2", "seeds=[0,1,2]", "profiles=runs/a,runs/b", "replacement=false", "temperature=1",
            "aggregate.skip_on_consensus=off", "output_dir=007", "annotator='Science'",
            "engine.enforce_eager=true",
        )  # fmt: skip
        assert (changed.k, changed.engine.slots, changed.seeds) == (2, 2, (0, 1, 2))
        assert changed.profiles == ("runs/a", "runs/b")
        assert changed.replacement is False
        assert isinstance(changed.temperature, float)
        assert changed.aggregate.skip_on_consensus == "off"
        assert (changed.output_dir, changed.annotator_name) == ("007", "Science")
        assert changed.engine.enforce_eager is True

    def test_one_value_stands_for_a_list_of_one_and_nothing_for_none(self) -> None:
        assert settings("seeds=4").seeds == (4,)
        assert settings("profiles=runs/a").profiles == ("runs/a",)
        assert settings("seeds=").seeds == ()
        assert settings("seeds=0,1").all_seeds == (0, 1)

    def test_the_last_one_wins(self) -> None:
        assert settings("k=1", "k=2").k == 2

    def test_an_unquoted_off_in_a_file_is_the_word(self, tmp_path: Path) -> None:
        shutil.copytree(CONF, tmp_path / "conf")
        text = (CONF / "config.yaml").read_text().replace('"off"', "off")
        write(tmp_path / "conf" / "config.yaml", text)
        assert load(conf_dir=tmp_path / "conf").aggregate.skip_on_consensus == "off"

    def test_compat_sets_what_it_stands_for_and_the_command_line_stays(self) -> None:
        plain = settings("compat=reference")
        assert (plain.router, plain.sampler, plain.grader, plain.no_skills) == (*["reference"] * 3, "uniform")
        assert (plain.replacement, plain.trim_threshold) == (True, 0.0)
        mixed = settings("grader=default", "compat=reference")
        assert (mixed.grader, mixed.sampler) == ("default", "reference")


class TestMistakes:
    @pytest.mark.parametrize(
        ("override", "near"),
        [
            ("engine.slot=2", "engine.slots"),
            ("slots=2", "engine.slots"),
            ("aggregater=auto", "aggregator"),
            ("task.demo.sed=1", "task.demo.seed"),
            ("pool.defaults.max_modl_len=1", "pool.defaults.max_model_len"),
            ("pol=tiny", "pool"),
        ],
    )
    def test_an_unknown_key_names_the_nearest(self, override: str, near: str) -> None:
        message = refusal(override)
        assert "the command line" in message
        assert repr(override.split("=")[0]) in message
        assert message.endswith(f"did you mean {near}?")

    @pytest.mark.parametrize(
        ("overrides", "parts"),
        [
            (["router=papr"], ["router", "'papr'", "reference, paper"]),
            (["sampler=x"], ["sampler", "hash, reference"]),
            (["compat=x"], ["compat", "default, reference"]),
            (["grader=x"], ["grader", "default, reference"]),
            (["no_skills=x"], ["no_skills", "competence, uniform"]),
            (["aggregate.skip_on_consensus=on"], ["aggregate.skip_on_consensus", "off, unanimous"]),
            (["engine.kind=tgi"], ["engine.kind", "'tgi'", "vllm, fake, openai"]),
            (["task.kind=letters"], ["task.kind", "auto, choice, integer"]),
            (["k=0"], ["k is 0", "1 or more"]),
            (["k=two"], ["k is 'two'", "an integer"]),
            (["k=true"], ["k is True", "an integer"]),
            (["k=1.5"], ["k is 1.5", "an integer"]),
            (["replacement=0"], ["replacement is 0", "true or false"]),
            (["temperature=0"], ["temperature is 0", "greater than 0"]),
            (["temperature=.inf"], ["temperature", "finite"]),
            (["trim_threshold=1"], ["trim_threshold is 1", "less than 1"]),
            (["engine.gpu_memory_utilization=1.1"], ["engine.gpu_memory_utilization is 1.1", "at most 1"]),
            (["engine.max_sleeping=-1"], ["engine.max_sleeping is -1", "0 or more"]),
            (["engine.memory_timeout_s=-1"], ["engine.memory_timeout_s is -1", "0 or more"]),
            (["engine.reload=1"], ["engine.reload is 1", "true or false"]),
            (["seeds=[0,0]"], ["seeds", "different"]),
            (["seeds=[0,x]"], ["seeds[1] is 'x'", "an integer"]),
            (["seeds=[0"], ["seeds=[0", "YAML"]),
            (["k=9", "replacement=false"], ["k is 9", "at most 8", "replacement=false"]),
            (["annotator=Sience"], ["annotator is 'Sience'", "Letters, Science, Travel", "did you mean Science?"]),
            (["aggregator=Llama"], ["aggregator is 'Llama'", "auto, Arithmetic, Measures"]),
            (["aggregate.min_experts=4"], ["aggregate.min_experts is 4", "k=3"]),
            (["annotate.min_count=6"], ["annotate.min_count is 6", "annotate.samples=5"]),
            (["pool.defaults.max_model_len=x"], ["pool.defaults.max_model_len is 'x'", "an integer"]),
            (["pool.defaults.sampling.top_p=2"], ["sampling.top_p is 2", "at most 1"]),
            (["pool.experts=[]"], ["pool.experts", "pool file"]),
            (["engine=2"], ["engine", "engine.slots"]),
            (["k"], ["'k'", "key=value"]),
            (["task=nope"], ["task=nope", "aime24, aime24_hub, demo, gpqa, gpqa_hub, medmcqa, medmcqa_hub, mmlu_pro"]),
            (["pool=nope.yaml"], ["nope.yaml", "demo, mixed, paper16, small, tiny"]),
            (["output_dir=${nothing}"], ["output_dir", "nothing"]),
        ],
    )
    def test_a_wrong_value_names_key_value_and_what_is_allowed(self, overrides: list[str], parts: list[str]) -> None:
        message = refusal(*overrides)
        for part in parts:
            assert part in message
        assert "\n" not in message

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("name: p\nexpert: []\n", ["unknown key 'pool.expert'", "pool.experts"]),
            ("name: p\nexperts: []\n", ["pool.experts is empty"]),
            ("experts: [{name: A, model: m}]\n", ["pool.name is missing"]),
            ("name: p\nexperts: [{name: A}]\n", ["pool.experts[A].model is missing"]),
            ("name: p\nexperts: [{name: A, model: m}, {name: A, model: n}]\n", ["'A' 2 times"]),
            (
                "name: p\nexperts: [{name: A, model: m, max_modl_len: 9}]\n",
                ["experts[A].max_modl_len", "max_model_len"],
            ),
            ("name: p\nexperts: [{name: a b, model: m}]\n", ["'a b'", "letters, digits"]),
            ("name: p\nexperts: [{name: auto, model: m}]\n", ["'auto'"]),
            ("name: p\nexperts: [{name: A, model: m, trust_remote_code: true}]\n", ["trust_remote_code", "revision"]),
            ("name: p\nexperts: [{name: A, model: m, engine_args: {revision: x}}]\n", ["engine_args.revision"]),
            (
                "name: p\nexperts: [{name: A, model: m, engine_args: {max_loras: 2}}]\n",
                ["engine_args.max_loras", "A].lora"],
            ),
            ("name: p\nexperts: [{name: A, model: m, lora: m}]\n", ["experts[A].lora is 'm'", "not the model itself"]),
            ("name: p\nexperts: [{name: A, model: m, lora: 3}]\n", ["experts[A].lora is 3", "a text"]),
            ("name: p\nexperts: [{name: A, model: m, revision: 12345678}]\n", ["revision is 12345678", "quotes"]),
            ("name: p\nannotator: B\nexperts: [{name: A, model: m}]\n", ["pool.annotator is 'B'"]),
            ("name: p\nexperts:\n  - name: [A\n", ["line 4, column 1", "not valid YAML"]),
            ("name: p\nname: q\n", ["line 2", "duplicate"]),
            ("- a\n", ["must hold a mapping"]),
        ],
    )
    def test_a_wrong_pool_file_is_named(self, tmp_path: Path, text: str, parts: list[str]) -> None:
        path = write(tmp_path / "pool.yaml", text)
        message = refusal(f"pool={path}")
        for part in [str(path), *parts]:
            assert part in message

    @pytest.mark.parametrize(
        ("expert", "message"),
        [
            ("chat_template_kwargs: {tokenize: false}", "chat_template_kwargs.tokenize is False; it is set for each"),
            ("chat_template_kwargs: off", "chat_template_kwargs is False; it must be a mapping"),
            ("sampling: {min_p: 1.5}", "sampling.min_p is 1.5; it must be at least 0 and at most 1"),
            ("sampling: {presence_penalty: -3}", "sampling.presence_penalty is -3.0; it must be from -2 to 2"),
            ("sampling: {frequency_penalty: 2.5}", "sampling.frequency_penalty is 2.5; it must be from -2 to 2"),
        ],
    )
    def test_what_rendering_and_sampling_cannot_take_is_named(self, tmp_path: Path, expert: str, message: str) -> None:
        path = write(tmp_path / "pool.yaml", f"name: p\nexperts: [{{name: A, model: m, {expert}}}]\n")
        assert message in refusal(f"pool={path}")

    def test_code_from_a_repository_is_allowed_at_a_revision(self, tmp_path: Path) -> None:
        text = "name: p\nexperts: [{name: A, model: m, trust_remote_code: true, revision: v1}]\n"
        assert settings(f"pool={write(tmp_path / 'p.yaml', text)}").pool.experts[0].trust_remote_code

    def test_an_unknown_key_in_a_file_names_that_file(self, tmp_path: Path) -> None:
        shutil.copytree(CONF, tmp_path / "conf")
        config = tmp_path / "conf" / "config.yaml"
        write(config, config.read_text() + "\nkk: 3\n")
        message = refusal(conf_dir=tmp_path / "conf")
        assert message.startswith(f"{config}: unknown key 'kk'")

    def test_a_folder_without_config_yaml(self, tmp_path: Path) -> None:
        assert "no such file" in refusal(conf_dir=tmp_path)

    def test_nearest_says_nothing_when_nothing_is_near(self) -> None:
        assert nearest("zzzz", ["engine.slots", "k"]) == ""
        assert nearest("slot", ["engine.slots", "k"]) == "engine.slots"


class TestTemplates:
    def pool(self, tmp_path: Path, template: str) -> str:
        text = f"name: p\ndefaults: {{chat_template: '{template}'}}\nexperts: [{{name: A, model: m}}]\n"
        return f"pool={write(tmp_path / 'pool.yaml', text)}"

    def test_a_file_is_read_from_the_working_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("templates").mkdir()
        text = "{%- for m in messages %}\n${x} {{ 'é\\n' }}\n{% endfor %}\n"
        write(Path("templates/qwen.jinja"), text)
        made = settings(self.pool(tmp_path, "./templates/qwen.jinja"))
        assert made.pool.experts[0].chat_template == text
        saved = write(tmp_path / "saved.yaml", to_yaml(made))
        write(Path("templates/qwen.jinja"), "{{ changed }}")
        assert load(base=saved) == made

    def test_other_text_in_the_file_is_another_engine(self, tmp_path: Path) -> None:
        pool = self.pool(tmp_path, str(tmp_path / "a.jinja"))
        keys = []
        for text in ("{{ one }}", "{{ two }}"):
            write(tmp_path / "a.jinja", text)
            keys.append(settings(pool).pool.experts[0].engine_key)
        assert keys[0] != keys[1]

    def test_text_with_a_brace_is_a_template(self, tmp_path: Path) -> None:
        assert settings(self.pool(tmp_path, "./{{ messages }}")).pool.experts[0].chat_template == "./{{ messages }}"

    def test_a_file_that_is_missing_or_no_template_is_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jinja"
        message = refusal(self.pool(tmp_path, str(path)))
        assert f"pool.experts[A].chat_template is '{path}'; it must be Jinja text, or a file" in message
        assert f"{path} cannot be read (No such file or directory)" in message
        write(path, "no template")
        assert f"{path} has no {{ in it" in refusal(self.pool(tmp_path, str(path)))


class TestSavedRun:
    def saved(self, tmp_path: Path, *overrides: str) -> tuple[Settings, Path]:
        original = settings(*overrides)
        return original, write(tmp_path / "saved.yaml", to_yaml(original))

    @pytest.mark.parametrize(
        "overrides",
        [
            [],
            ["task=mmlu_pro", "pool=paper16", "cluster=auto", "seeds=[0,1]", "profiles=a,b", "compat=reference", "k=1"],
            ["engine.enforce_eager=false", "output_dir=007", "pool.defaults.engine_args.enforce_eager=true"],
            ["compat=reference", "grader=default"],
        ],
    )
    def test_written_settings_read_back_equal(self, tmp_path: Path, overrides: list[str]) -> None:
        original, path = self.saved(tmp_path, *overrides)
        assert load(base=path) == original

    def test_a_dollar_in_a_template_stays_what_it_is(self, tmp_path: Path) -> None:
        text = "name: p\nexperts: [{name: A, model: m, chat_template: '\\\\n \\${a} \\\\\\${b}'}]\n"
        original, path = self.saved(tmp_path, f"pool={write(tmp_path / 'p.yaml', text)}")
        # In the file OmegaConf reads \${a} as ${a}, and three backslashes before ${b} as one.
        assert original.pool.experts[0].chat_template == "\\\\n ${a} \\${b}"
        assert load(base=path) == original

    def test_overrides_come_on_top_and_groups_are_replaced_whole(self, tmp_path: Path) -> None:
        original, path = self.saved(tmp_path, "k=2", "pool=tiny", "task.demo.test=5")
        changed = load(["seed=7", "pool=demo"], conf_dir=CONF, base=path)
        assert (changed.k, changed.seed) == (2, 7)
        assert changed.pool == settings().pool
        assert changed.task == original.task

    def test_compat_can_be_taken_back(self, tmp_path: Path) -> None:
        _, path = self.saved(tmp_path, "compat=reference")
        assert load(["compat=default"], base=path) == settings()

    def test_a_seed_alone_takes_the_place_of_several(self, tmp_path: Path) -> None:
        _, path = self.saved(tmp_path, "seeds=[0,1]")
        assert load(["seed=1"], base=path).all_seeds == (1,)
        assert load(["seed=1", "seeds=[2,3]"], base=path).all_seeds == (2, 3)
        assert load(["k=2"], base=path).all_seeds == (0, 1)

    def test_what_cannot_reach_a_saved_run_is_refused(self, tmp_path: Path) -> None:
        _, path = self.saved(tmp_path, "task=aime24", "data_dir=/a")
        assert "task=NAME" in refusal("data_dir=/b", base=path)
        assert "pool=NAME" in refusal("pool.defaults.max_model_len=9", base=path)
        assert load(["data_dir=/a"], base=path).task.test == "/a/AIME24_test.json"
        moved = load(["data_dir=/b", "task=aime24"], conf_dir=CONF, base=path)
        assert moved.task.test == "/b/AIME24_test.json"

    def test_a_damaged_or_missing_file_is_named(self, tmp_path: Path) -> None:
        path = write(tmp_path / "saved.yaml", "k: [1\n")
        assert f"{path}, line 2" in refusal(base=path)
        assert "gone.yaml: no such file" in refusal(base=tmp_path / "gone.yaml")
        _, path = self.saved(tmp_path)
        write(path, path.read_text().replace("\nk: 3", "\nk: many"))
        assert refusal(base=path).startswith(f"{path}: k is 'many'")
