"""What an expert is asked: identity, seed, sampling, samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symoe_ray.core import ExpertSpec, Message, Question, Request, Sampling
from symoe_ray.fingerprints import digest
from symoe_ray.prompts import aggregate_messages, answer_messages
from symoe_ray.requests import aggregate_request, answer_request, capped, make_request, samples_wanted, seat_samples

SPEC = ExpertSpec(name="A", model="org/a", sampling=Sampling(max_tokens=1000), max_model_len=2048)
QUESTION = Question(id="q1", text="What is 2+2?", kind="integer", task="T", gold=("4",))
ASKED = (Message(role="user", content="What?"),)


def made(
    spec: ExpertSpec = SPEC, question_id: str = "q1", messages: tuple[Message, ...] = ASKED, **changes: int
) -> Request:
    values = {"run_seed": 0, "n": 1} | changes
    return make_request(spec, question_id, messages, spec.sampling, run_seed=values["run_seed"], n=values["n"])


class TestIdentity:
    def test_the_same_request_has_the_same_id_and_seed(self) -> None:
        assert made() == made(replace(SPEC), "q1", (Message(role="user", content="What?"),))

    def test_more_samples_are_the_same_request(self) -> None:
        assert (made(n=5).id, made(n=5).seed, made(n=5).n) == (made().id, made().seed, 5)

    @pytest.mark.parametrize(
        "other",
        [
            made(question_id="q2"),
            made(messages=(Message(role="user", content="What!"),)),
            made(messages=(Message(role="system", content="What?"),)),
            made(messages=(*ASKED, *ASKED)),
            made(run_seed=1),
            made(replace(SPEC, name="B")),
            made(replace(SPEC, model="org/b")),
            made(replace(SPEC, revision="abc")),
            made(replace(SPEC, chat_template="{{ messages }}")),
            made(replace(SPEC, chat_template_kwargs={"enable_thinking": False})),
            made(replace(SPEC, add_bos=True)),
            made(replace(SPEC, lora="org/a-lora")),
            made(replace(SPEC, max_model_len=4096)),
            made(replace(SPEC, sampling=Sampling(max_tokens=1000, temperature=0.0))),
            made(replace(SPEC, sampling=Sampling(max_tokens=1000, stop=("x",)))),
            made(replace(SPEC, sampling=Sampling(max_tokens=1000, min_p=0.1))),
            made(replace(SPEC, sampling=Sampling(max_tokens=1000, presence_penalty=1.5))),
            made(replace(SPEC, sampling=Sampling(max_tokens=1000, frequency_penalty=-0.5))),
        ],
    )
    def test_whatever_decides_the_text_decides_the_id(self, other: Request) -> None:
        assert other.id != made().id

    def test_what_was_made_before_some_fields_existed_keeps_its_id(self) -> None:
        sampling = {
            "temperature": 0.7, "top_p": 1.0, "top_k": 0, "max_tokens": 1000, "repetition_penalty": 1.0, "stop": [],
        }  # fmt: skip
        asked = [{"role": "user", "content": "What?"}]
        spec = ExpertSpec(name="A", model="org/a", max_model_len=8192, sampling=Sampling(max_tokens=1000))
        before = digest("q1", "A", asked, sampling, "org/a", "", "", False, 8192, "", 0)
        assert made(spec).id == before

    def test_the_seed_follows_from_run_question_and_expert_alone(self) -> None:
        same = [made(messages=(Message(role="user", content="else"),)), made(replace(SPEC, revision="abc")), made(n=3)]
        assert {r.seed for r in same} == {made().seed}
        others = [made(run_seed=1), made(question_id="q2"), made(replace(SPEC, name="B"))]
        assert len({made().seed, *(r.seed for r in others)}) == 4
        assert 0 <= made().seed < 2**31


class TestAnswers:
    def test_an_answer_is_asked_with_the_answer_prompt_and_the_experts_sampling(self) -> None:
        request = answer_request(SPEC, QUESTION, run_seed=3, n=2)
        assert request.messages == answer_messages(QUESTION)
        assert (request.question_id, request.expert, request.n, request.sampling) == ("q1", "A", 2, SPEC.sampling)
        assert request.id == answer_request(SPEC, QUESTION, run_seed=3).id

    @pytest.mark.parametrize(("cap", "tokens"), [(0, 1000), (10, 10), (1000, 1000), (5000, 1000)])
    def test_a_cap_only_ever_lowers(self, cap: int, tokens: int) -> None:
        assert capped(SPEC.sampling, cap).max_tokens == tokens
        assert answer_request(SPEC, QUESTION, run_seed=0, max_tokens=cap).sampling.max_tokens == tokens


class TestAggregation:
    def test_short_responses_are_shown_whole(self) -> None:
        request, cut = aggregate_request(SPEC, QUESTION, ["It is 4.", "It is 5."], run_seed=0)
        assert (request.messages, cut) == (aggregate_messages(QUESTION, ["It is 4.", "It is 5."]), 0)

    def test_long_responses_are_cut_to_the_room_that_the_context_leaves(self) -> None:
        overhead = len(aggregate_messages(QUESTION, ["", ""])[0].content)
        room = (2048 - 1000) * 3 - overhead
        request, cut = aggregate_request(SPEC, QUESTION, ["x" * room, "short"], run_seed=0)
        assert cut == 1
        assert "short" in request.messages[0].content
        assert len(request.messages[0].content) <= room + overhead
        fitting, cut = aggregate_request(SPEC, QUESTION, ["x" * (room - 5), "short"], run_seed=0)
        assert (cut, len(fitting.messages[0].content)) == (0, room + overhead)

    def test_at_most_half_of_the_context_is_kept_for_the_answer(self) -> None:
        greedy = replace(SPEC, sampling=Sampling(max_tokens=100_000))
        overhead = len(aggregate_messages(QUESTION, [""])[0].content)
        _, whole = aggregate_request(greedy, QUESTION, ["x" * (1024 * 3 - overhead)], run_seed=0)
        _, cut = aggregate_request(greedy, QUESTION, ["x" * (1024 * 3 - overhead + 1)], run_seed=0)
        assert (whole, cut) == (0, 1)

    def test_a_limit_bounds_the_responses_further(self) -> None:
        _, whole = aggregate_request(SPEC, QUESTION, ["x" * 200, "y" * 200], run_seed=0, limit=400)
        request, cut = aggregate_request(SPEC, QUESTION, ["x" * 200, "y" * 200], run_seed=0, limit=399)
        assert (whole, cut) == (0, 2)
        assert request.id != aggregate_request(SPEC, QUESTION, ["x" * 200, "y" * 200], run_seed=0)[0].id

    def test_a_tiny_context_still_shows_something(self) -> None:
        request, cut = aggregate_request(replace(SPEC, max_model_len=64), QUESTION, ["x" * 5000], run_seed=0)
        assert cut == 1
        assert "xxx" in request.messages[0].content


class TestSamples:
    def test_the_largest_wish_decides(self) -> None:
        seats = [["A", "B", "A"], ["B", "C", "C"]]
        assert samples_wanted(seats) == {"A": 2, "B": 1, "C": 2}
        assert samples_wanted(seats, {"A": 1, "B": 3, "D": 1}) == {"A": 2, "B": 3, "C": 2, "D": 1}

    def test_nobody_is_asked_for_nothing(self) -> None:
        assert samples_wanted([]) == {}
        assert samples_wanted([[]], {"A": 0}) == {}

    def test_names_come_in_order(self) -> None:
        assert list(samples_wanted([["C", "A"], ["B"]])) == ["A", "B", "C"]

    def test_an_experts_jth_seat_takes_its_sample_j(self) -> None:
        assert seat_samples(["A", "B", "A", "A"]) == [("A", 0), ("B", 0), ("A", 1), ("A", 2)]
        assert seat_samples([]) == []

    @given(seats=st.lists(st.lists(st.sampled_from("ABC"), max_size=5), max_size=3))
    def test_every_seat_finds_its_sample_among_those_wanted(self, seats: list[list[str]]) -> None:
        wanted = samples_wanted(seats)
        assert all(i < wanted[expert] for drawn in seats for expert, i in seat_samples(drawn))
        for expert, count in wanted.items():  # and none is made for nobody
            assert any((expert, count - 1) in seat_samples(drawn) for drawn in seats)
