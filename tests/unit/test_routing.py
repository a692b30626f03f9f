from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from symoe_ray.config import load
from symoe_ray.core import InputError, Profile
from symoe_ray.fingerprints import uniform
from symoe_ray.recruit_tables import recruits_table
from symoe_ray.routing import Recruits, Router, RoutingRules, competence, random_seats, recruit
from symoe_ray.routing_draws import seat_numbers
from symoe_ray.routing_rules import FALLBACKS
from symoe_ray.routing_rules import weights as weights_of
from symoe_ray.settings import PoolSettings, Settings, TaskSettings
from symoe_ray.tables import recruitment_row

REFERENCE = Path(__file__).parents[2].parent / "shared" / "data" / "reference_recruits"


def rules(**changes: Any) -> RoutingRules:
    values: dict[str, Any] = {
        "k": 3, "router": "reference", "sampler": "hash", "replacement": True, "trim_threshold": 0.0,
        "no_skills": "competence", "seed": 0,
    }  # fmt: skip
    return RoutingRules(**(values | changes))


def pool(**scores: Mapping[str, float]) -> list[Profile]:
    return [Profile(expert=name, task="t", scores=dict(values), graded=9) for name, values in scores.items()]


def itself(*skills: str) -> dict[str, tuple[str, float]]:
    return {skill: (skill, 1.0) for skill in skills}


def weights(
    suitability: Mapping[str, float], gamma: Mapping[str, float], rule: RoutingRules
) -> tuple[dict[str, float], str]:
    """One question's weights and fallback, by name; only the experts in `suitability` count."""
    row = np.array([[suitability.get(name, 0.0) for name in gamma]])
    present = np.array([[name in suitability for name in gamma]])
    everyone = np.ones(len(gamma), dtype=bool)
    found, fallback = weights_of(row, present, np.array(list(gamma.values())), everyone, rule)
    return {name: w for name, w in zip(gamma, found[0].tolist(), strict=True) if w}, FALLBACKS[fallback[0]]


def seats(recruits: Recruits) -> list[tuple[str, ...]]:
    return [recruitment.experts for recruitment in recruits.recruitments]


POOL = pool(a={"x": 3, "y": 1}, b={"x": -1, "y": 3}, c={"x": 0, "y": -8})


class TestCompetence:
    def test_is_the_normalised_square_of_the_sums(self) -> None:
        # t = 3, 1, 2: squares 9, 1, 4 of 14
        gamma = competence(pool(a={"x": 4, "y": -1}, b={"x": 1}, c={"y": 2}), rules())
        assert gamma == pytest.approx({"a": 9 / 14, "b": 1 / 14, "c": 4 / 14})

    def test_shifts_where_a_sum_is_negative(self) -> None:
        # t = 4, 2, -8 -> 13, 11, 1: squares 169, 121, 1 of 291
        assert competence(POOL, rules()) == pytest.approx({"a": 169 / 291, "b": 121 / 291, "c": 1 / 291})

    def test_follows_the_temperature(self) -> None:
        assert competence(pool(a={"x": 3}, b={"x": 1}), rules(temperature=1.0)) == {"a": 0.75, "b": 0.25}

    def test_of_the_paper_is_the_share_and_may_be_negative(self) -> None:
        gamma = competence(pool(a={"x": 6}, b={"x": -2}), rules(router="paper"))
        assert gamma == {"a": 1.5, "b": -0.5}

    @pytest.mark.parametrize("router", ["reference", "paper"])
    def test_is_zero_where_all_sums_are(self, router: str) -> None:
        assert competence(pool(a={"x": 1, "y": -1}, b={}), rules(router=router)) == {"a": 0.0, "b": 0.0}


def test_suitability_sums_scores_and_counts_repeated_skills() -> None:
    mapping = itself("x", "y") | {"again": ("x", 0.5), "unknown": ("unknown", 1.0)}
    (one,) = recruit([("q", ["x", "again", "y", "unknown"])], mapping, POOL, rules()).recruitments
    assert one.suitability == {"a": 7.0, "b": 1.0, "c": -8.0}


class TestWeights:
    GAMMA: Mapping[str, float] = {"a": 0.5, "b": 0.3, "c": 0.2}

    def test_are_proportional_to_suitability_times_competence(self) -> None:
        # 2 * 0.5 : 4 * 0.3 = 1.0 : 1.2, and c is out
        found, fallback = weights({"a": 2, "b": 4, "c": 0}, self.GAMMA, rules())
        assert found == pytest.approx({"a": 1 / 2.2, "b": 1.2 / 2.2})
        assert fallback == ""

    def test_shift_where_no_suitability_is_positive(self) -> None:
        # S - min S + 1 = 4, 3, 1: 2.0, 0.9, 0.2 of 3.1
        found, fallback = weights({"a": 0, "b": -1, "c": -3}, self.GAMMA, rules())
        assert found == pytest.approx({"a": 2 / 3.1, "b": 0.9 / 3.1, "c": 0.2 / 3.1})
        assert fallback == "none_positive"

    def test_of_the_paper_are_a_softmax(self) -> None:
        # w = 1.0, -0.3, 0.0; exp(w / 0.5) = e^2, e^-0.6, 1
        found, fallback = weights({"a": 2, "b": -1, "c": 0}, self.GAMMA, rules(router="paper"))
        whole = math.exp(2) + math.exp(-0.6) + 1
        assert found == pytest.approx({"a": math.exp(2) / whole, "b": math.exp(-0.6) / whole, "c": 1 / whole})
        assert fallback == ""

    def test_of_the_paper_do_not_overflow(self) -> None:
        found, _ = weights({"a": 1e6, "b": 0}, {"a": 1.0, "b": 0.0}, rules(router="paper"))
        assert found == {"a": 1.0}

    def test_are_the_competence_without_skills(self) -> None:
        found, fallback = weights({}, self.GAMMA, rules())
        assert found == pytest.approx(self.GAMMA)
        assert fallback == "no_skills"

    def test_are_equal_without_skills_if_so_set(self) -> None:
        found, fallback = weights({}, self.GAMMA, rules(no_skills="uniform"))
        assert found == pytest.approx(dict.fromkeys("abc", 1 / 3))
        assert fallback == "no_skills"

    @pytest.mark.parametrize("router", ["reference", "paper"])
    @pytest.mark.parametrize("scores", [{}, {"a": 0, "b": 0}, {"a": 2, "b": 1}])
    def test_are_equal_where_all_are_zero(self, router: str, scores: Mapping[str, float]) -> None:
        found, fallback = weights(scores, {"a": 0.0, "b": 0.0}, rules(router=router))
        assert found == {"a": 0.5, "b": 0.5}
        assert fallback == "all_zero"


class TestRecruit:
    def test_explains_a_recruitment(self) -> None:
        mapping = {"ex": ("x", 0.75), "x": ("x", 1.0)}
        (one,) = recruit([("q", ["ex", "x"])], mapping, POOL, rules()).recruitments
        assert (one.skills, one.mapped, one.cosines) == (("ex", "x"), ("x", "x"), (0.75, 1.0))
        assert one.suitability == {"a": 6.0, "b": -2.0, "c": 0.0}
        assert one.competence == pytest.approx({"a": 169 / 291, "b": 121 / 291, "c": 1 / 291})
        assert (one.candidates, one.weights, one.experts, one.fallback) == (("a",), (1.0,), ("a", "a", "a"), "")

    def test_the_paper_counts_a_mapped_skill_once(self) -> None:
        mapping = {"ex": ("x", 0.75), "x": ("x", 1.0)}
        (one,) = recruit([("q", ["ex", "x"])], mapping, POOL, rules(router="paper")).recruitments
        assert one.mapped == ("x", "x")
        assert one.suitability == {"a": 3.0, "b": -1.0, "c": 0.0}

    def test_seats_invert_the_cumulative_weights_in_name_order(self) -> None:
        # Equal experts have a weight of 1/2 each.
        experts = pool(b={"x": 1}, a={"x": 1})
        for number, found in enumerate(
            seats(recruit([(f"q{n}", ["x"]) for n in range(50)], itself("x"), experts, rules(seed=7)))
        ):
            assert found == tuple("a" if uniform(7, f"q{number}", seat) < 0.5 else "b" for seat in range(3))

    def test_candidates_are_in_order_of_weight_then_name(self) -> None:
        experts = pool(d={"x": 1}, c={"x": 2}, b={"x": 1}, a={"x": -1})
        (one,) = recruit([("q", ["x"])], itself("x"), experts, rules()).recruitments
        # t = 1, 2, 1, -1 -> 3, 4, 3, 1: squares 9, 16, 9, 1; times S: 9, 32, 9
        assert one.candidates == ("c", "b", "d")
        assert one.weights == pytest.approx((32 / 50, 9 / 50, 9 / 50))

    def test_does_not_depend_on_order_or_company(self) -> None:
        questions = [(f"q{n}", ["x"] if n % 2 else ["y", "x"]) for n in range(40)]
        whole = recruit(questions, itself("x", "y"), POOL, rules())
        turned = recruit(questions[::-1], itself("x", "y"), POOL[::-1], rules())
        assert [r.experts for r in whole.recruitments] == [r.experts for r in turned.recruitments][::-1]
        alone = recruit(questions[3:4], itself("x", "y"), POOL, rules())
        assert seats(alone) == seats(whole)[3:4]
        assert seats(whole) != seats(recruit(questions, itself("x", "y"), POOL, rules(seed=1)))

    def test_draws_follow_the_weights(self) -> None:
        experts = pool(a={"x": 2}, b={"x": 1})  # weights 4 * 2 : 1 * 1
        drawn = recruit([(f"q{n}", ["x"]) for n in range(2000)], itself("x"), experts, rules())
        taken = Counter(expert for row in seats(drawn) for expert in row)
        assert taken["b"] / 6000 == pytest.approx(1 / 9, abs=0.015)  # standard error 0.004

    def test_counts_questions_without_skills(self) -> None:
        found = recruit([("1", []), ("2", ["x"]), ("3", ["unmapped"])], itself("x"), POOL, rules())
        assert [r.fallback for r in found.recruitments] == ["no_skills", "", "no_skills"]
        assert found.counts == {"no_skills": 2}
        assert found.recruitments[0].candidates == ("a", "b", "c")
        assert found.recruitments[0].weights == pytest.approx((169 / 291, 121 / 291, 1 / 291))
        assert found.recruitments[0].suitability == {}

    def test_counts_questions_with_nothing_to_go_by(self) -> None:
        experts = pool(a={"x": 1, "y": -1}, b={"x": 0})
        found = recruit([("1", ["x"]), ("2", [])], itself("x"), experts, rules())
        # Both competences are zero. Question 1: of the suitable experts there is only a; question 2: anyone.
        assert [r.weights for r in found.recruitments] == [(1.0,), (0.5, 0.5)]
        assert found.counts == {"all_zero": 2}

    def test_counts_what_the_paper_rewards_for_being_bad_twice(self) -> None:
        experts = pool(a={"x": 6, "y": 1}, b={"x": -2, "y": 1})  # gamma 7/6, -1/6
        found = recruit([("1", ["x"]), ("2", ["y"]), ("3", ["x"])], itself("x", "y"), experts, rules(router="paper"))
        assert found.counts == {"negative_competence_and_suitability": 2}
        # w = 7, 2/6: exp(14), exp(4/6)
        assert found.recruitments[0].weights[1] == pytest.approx(math.exp(2 / 3) / (math.exp(14) + math.exp(2 / 3)))

    def test_needs_experts(self) -> None:
        with pytest.raises(InputError, match="only 0 experts"):
            recruit([("q", [])], {}, [], rules())
        with pytest.raises(InputError, match="only 0 experts"):
            recruit([("q", [])], {}, POOL, rules(), kept=["nobody"])
        with pytest.raises(InputError, match="replacement=False: only 3 experts"):
            recruit([("q", [])], {}, POOL, rules(k=4, replacement=False))


class TestWithoutReplacement:
    def test_nobody_sits_twice_and_shares_are_renormalised(self) -> None:
        experts = pool(a={"x": 1}, b={"x": 1}, c={"x": 1}, d={"x": 1})
        found = recruit([(f"q{n}", ["x"]) for n in range(30)], itself("x"), experts, rules(replacement=False))
        for number, row in enumerate(seats(found)):
            left = list("abcd")
            for seat, expert in enumerate(row):
                assert expert == left[int(uniform(0, f"q{number}", seat) * len(left))]
                left.remove(expert)

    def test_seats_beyond_the_candidates_go_to_the_rest(self) -> None:
        found = recruit([("q", ["x"])], itself("x"), POOL, rules(replacement=False))
        (one,) = found.recruitments
        assert one.experts[0] == "a"
        assert sorted(one.experts) == ["a", "b", "c"]
        assert (one.candidates, one.fallback) == (("a",), "too_few_candidates")
        assert found.counts == {"too_few_candidates": 1}


class TestTrimming:
    # One question in forty needs rare's skill and gives it all seats: 3 of 120 seats are 2.5 %.
    EXPERTS = pool(a={"x": 2, "z": 1}, b={"x": 2}, rare={"x": -1, "z": 2, "only": 5})
    QUESTIONS: Sequence[tuple[str, Sequence[str]]] = [(f"q{n}", ["x"]) for n in range(39)] + [("last", ["only"])]

    def recruit(self, **changes: Any) -> Recruits:
        return recruit(self.QUESTIONS, itself("x", "z", "only"), self.EXPERTS, rules(**changes))

    def test_is_off_at_zero(self) -> None:
        found = self.recruit()
        assert found.recruitments[-1].experts == ("rare",) * 3
        assert (found.kept, found.trimmed, found.counts) == (("a", "b", "rare"), (), {})

    def test_redraws_the_seats_of_dropped_experts_only(self) -> None:
        before, after = self.recruit(), self.recruit(trim_threshold=0.05)
        assert (after.kept, after.trimmed) == (("a", "b"), ("rare",))
        assert seats(after)[:-1] == seats(before)[:-1]
        last = after.recruitments[-1]
        # S of the experts that stay is 0 and 0, so 1 and 1 after the shift; gamma: t = 3, 2, 6, squares 9, 4, 36.
        assert (last.candidates, last.fallback) == (("a", "b"), "none_positive")
        assert last.weights == pytest.approx((9 / 13, 4 / 13))
        assert last.experts == tuple("a" if uniform(0, "last", s, "redraw") < 9 / 13 else "b" for s in range(3))
        assert after.counts == {"redrawn_seats": 3, "none_positive": 1}

    @pytest.mark.parametrize("threshold", [0.0, 0.05, 0.9])
    @pytest.mark.parametrize("replacement", [True, False])
    def test_batches_have_the_seats_that_all_questions_at_once_have(self, threshold: float, replacement: bool) -> None:
        mapping = itself("x", "z", "only")
        chosen = rules(trim_threshold=threshold, replacement=replacement, k=2)
        router = Router(self.EXPERTS, chosen)
        whole = router.recruit(self.QUESTIONS, mapping)
        batches = [self.QUESTIONS[i : i + 7] for i in range(0, len(self.QUESTIONS), 7)]
        kept, trimming_off = router.staying(batches, mapping)
        parts = [router.recruit(batch, mapping, kept=kept) for batch in batches]
        assert [seat for part in parts for seat in seats(part)] == seats(whole)
        assert (kept, parts[0].trimmed) == (whole.kept, whole.trimmed)
        counts = sum((Counter(part.counts) for part in parts), Counter())
        counts["trimming_off"] += trimming_off
        assert +counts == whole.counts

    def test_keeps_an_expert_that_has_just_its_share(self) -> None:
        assert self.recruit(trim_threshold=3 / 120).trimmed == ()

    def test_redraws_by_the_question_s_own_weights(self) -> None:
        # Everyone suits: S = 1 for a, b and c, gamma of t = 1, 2 and 3. c gets all of the 60 other questions.
        experts = pool(a={"x": 1}, b={"x": 1, "y": 1}, c={"x": 1, "y": 2, "z": 1})
        questions = [(f"q{n}", ["x"] if n < 3 else ["z"]) for n in range(63)]
        found = recruit(questions, itself("x", "y", "z"), experts, rules(trim_threshold=0.04))
        assert found.trimmed == ("a", "b")  # they can have at most 9 of 189 seats together
        assert seats(found) == [("c", "c", "c")] * 63
        assert found.recruitments[0].candidates == ("c",)
        assert found.recruitments[0].fallback == ""

    def test_is_off_where_nobody_would_stay(self) -> None:
        found = recruit([("1", ["x"]), ("2", [])], itself("x"), POOL, rules(trim_threshold=1.0, seed=3, k=9))
        assert (found.kept, found.trimmed) == (("a", "b", "c"), ())
        assert found.counts == {"trimming_off": 1, "no_skills": 1}

    def test_is_off_where_too_few_would_stay_for_distinct_seats(self) -> None:
        # a and b sit at every question but the last, where one of them does: 40 and 39 of 80 seats.
        found = self.recruit(trim_threshold=0.49, replacement=False, k=2)
        assert found.trimmed == ()
        assert found.counts["trimming_off"] == 1

    def test_leaves_distinct_seats_distinct(self) -> None:
        found = self.recruit(trim_threshold=0.05, replacement=False, k=2)
        assert found.trimmed == ("rare",)
        assert all(sorted(row) == ["a", "b"] for row in seats(found))


class TestOnline:
    def test_a_question_gets_the_seats_it_has_in_the_batch(self) -> None:
        questions = [*TestTrimming.QUESTIONS, ("none", [])]
        batch = recruit(questions, itself("x", "only"), TestTrimming.EXPERTS, rules(trim_threshold=0.05))
        assert batch.trimmed == ("rare",)
        for question, expected in zip(questions, batch.recruitments, strict=True):
            online = recruit(
                [question], itself("x", "only"), TestTrimming.EXPERTS, rules(trim_threshold=0.05), kept=batch.kept
            )
            assert online.recruitments == (expected,)
            assert online.kept == batch.kept

    def test_nothing_is_trimmed(self) -> None:
        found = recruit([("q", ["x"])], itself("x"), POOL, rules(trim_threshold=0.5), kept=["a", "b", "c"])
        assert (found.kept, found.trimmed) == (("a", "b", "c"), ())

    def test_the_reference_sampler_is_not_restarted_for_every_question(self) -> None:
        experts = pool(a={"x": 1}, b={"x": 1})
        drawn = {
            seats(recruit([(f"q{n}", ["x"])], itself("x"), experts, rules(sampler="reference"), kept=["a", "b"]))[0]
            for n in range(30)
        }
        assert len(drawn) > 3


class TestReferenceSampler:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_reproduces_the_released_script(self, seed: int) -> None:
        if not REFERENCE.is_dir():
            pytest.skip(f"no recorded draws in {REFERENCE}")
        recorded = json.loads((REFERENCE / f"ref_seed{seed}.json").read_text())
        files = sorted((REFERENCE / "skills" / "SAMPLE").glob("*_profile_*.json"), key=lambda path: path.name)
        assert [path.name for path in files] == recorded["profile_order"]
        profiles = pool(**{path.name.split("_profile")[0]: json.loads(path.read_text()) for path in files})
        questions = [(str(number), skills) for number, skills in enumerate(recorded["mapped"])]
        mapping = itself(*(skill for _, skills in questions for skill in skills))
        found = recruit(questions, mapping, profiles, RoutingRules.from_settings(load(["compat=reference"]), seed))
        calls = [call for call in recorded["calls"] if call["k"] == 3]
        assert [list(row) for row in seats(found)] == [call["drawn"] for call in calls]
        for one, call in zip(found.recruitments, calls, strict=True):
            uniformly = [1 / len(call["models"])] * len(call["models"])
            expected = dict(zip(call["models"], call["weights"] or uniformly, strict=True))
            assert dict(zip(one.candidates, one.weights, strict=True)) == pytest.approx(expected)
        assert found.counts["no_skills"] == sum(call["weights"] is None for call in calls)

    def test_leaves_out_experts_without_any_of_the_skills(self) -> None:
        experts = pool(a={"y": 5}, b={"x": -1}, c={"x": -2})
        (one,) = recruit([("q", ["x"])], itself("x"), experts, rules(sampler="reference")).recruitments
        # t = 5, -1, -2 -> 8, 2, 1: squares 64, 4, 1; S shifted among b and c alone: 2, 1; 8 : 1
        assert one.candidates == ("b", "c")
        assert one.weights == pytest.approx((8 / 9, 1 / 9))


class TestRules:
    def test_compat_stands_for_what_the_released_code_fixes(self) -> None:
        assert RoutingRules.from_settings(load(["compat=reference", "k=5", "seed=9"]), 4) == rules(
            k=5, sampler="reference", no_skills="uniform", seed=4
        )  # router=reference, replacement=True, trim_threshold=0

    def test_what_is_set_beside_compat_stays(self) -> None:
        beside = ["router=paper", "trim_threshold=0.05", "sampler=hash", "replacement=false", "no_skills=competence"]
        assert RoutingRules.from_settings(load(["compat=reference", *beside]), 4) == rules(
            router="paper", trim_threshold=0.05, replacement=False, seed=4
        )

    def test_settings_are_taken_as_they_are_otherwise(self) -> None:
        settings = Settings(
            task=TaskSettings(name="t"), pool=PoolSettings(name="p", experts=()), router="paper", replacement=False,
            trim_threshold=0.1, temperature=2.0, no_skills="uniform",
        )  # fmt: skip
        assert RoutingRules.from_settings(settings, 4) == rules(
            router="paper", replacement=False, trim_threshold=0.1, temperature=2.0, no_skills="uniform", seed=4
        )

    @pytest.mark.parametrize(
        "wrong",
        [
            {"router": "other"}, {"sampler": "other"}, {"no_skills": "other"}, {"k": 0}, {"trim_threshold": -0.1},
            {"trim_threshold": 1.5}, {"temperature": 0.0}, {"sampler": "reference", "replacement": False},
        ],
    )  # fmt: skip
    def test_wrong_values_are_named(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=list(wrong)[-1]):
            rules(**wrong)


def test_random_seats_are_uniform_and_independent_of_order() -> None:
    ids = [f"q{n}" for n in range(1000)]
    drawn = random_seats(ids, 4, 3, 0)
    assert (drawn[::-1] == random_seats(ids[::-1], 4, 3, 0)).all()
    assert np.bincount(drawn.ravel()) / 3000 == pytest.approx([0.25] * 4, abs=0.035)  # standard error 0.008
    assert any(len(set(row)) < 3 for row in drawn.tolist())
    distinct = random_seats(ids, 4, 3, 0, replacement=False)
    assert all(len(set(row)) == 3 for row in distinct.tolist())
    assert np.bincount(distinct.ravel()) / 3000 == pytest.approx([0.25] * 4, abs=0.035)


def test_seat_numbers_are_those_of_fingerprints() -> None:
    ids = ["q1", 'with "quotes"', "ümlaut \u2028 and\nnewline", ""]
    found = seat_numbers(7, ids, 3, "redraw")
    assert found.tolist() == [[uniform(7, question, seat, "redraw") for seat in range(3)] for question in ids]
    assert seat_numbers(7, ids, 2).tolist() == [[uniform(7, question, seat) for seat in range(2)] for question in ids]


def test_a_question_alone_has_the_very_weights_that_it_has_in_a_large_batch() -> None:
    skills = [f"s{number}" for number in range(40)]
    experts = pool(**{f"e{e:02}": {s: int(uniform(e, s) * 21) - 8 for s in skills} for e in range(16)})
    questions = [(f"q{n}", [skills[(n * step) % 40] for step in (1, 3, 7)]) for n in range(500)]
    for router in ("reference", "paper"):
        prepared = Router(experts, rules(router=router))
        batch = prepared.recruit(questions, itself(*skills), kept=prepared.experts)
        for row in (0, 17, 499):
            alone = prepared.recruit(questions[row : row + 1], itself(*skills), kept=prepared.experts)
            assert alone.recruitments == (batch.recruitment(row),)


def test_the_table_holds_what_the_records_say() -> None:
    questions = [("1", ["x", "y"]), ("2", []), ("3", ["y", "far"])]
    mapping = itself("x", "y") | {"far": ("x", None)}
    found = recruit(questions, mapping, POOL, rules(router="paper"))
    others = random_seats(["1", "2", "3"], 3, 3, 0)
    table = recruits_table(found, range(3), [5, 6, 7], others)
    for row, one in zip(table.to_pylist(), found.recruitments, strict=True):
        expected = recruitment_row(one, row["shard"], [found.experts[i] for i in others[row["shard"] - 5]])
        assert row == {name: list(v) if isinstance(v, tuple) else v for name, v in expected.items()}
    assert recruits_table(found, range(2, 3), [7], others[2:]).to_pylist() == table.to_pylist()[2:]
