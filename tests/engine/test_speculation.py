"""Guessed tokens: what is guessed, when it is worth its rows, and that answers do not change."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from llm_local.engine.batch import Rows
from llm_local.engine.drafts import MOST_DRAFTED, Drafts
from llm_local.engine.lookup import Lookup
from llm_local.engine.pace import Answers, Pace
from llm_local.engine.step_costs import RowCosts, StepCosts
from llm_local.engine.step_time import StepTime
from llm_local.engine.types import SamplingParams
from tests.engine.test_engine import GREEDY, check_accounting, collect, request, running, sampled, without_end
from tests.examples import few
from tests.fakes import N_VOCAB, FakeBackend, FakeDrafter, expected_tokens

ONE = Answers(1, 1.0)


def lookup(text: str, prediction: str = "") -> tuple[Lookup, np.ndarray, int]:
    source = np.zeros(200, np.int32)
    tokens = [ord(char) for char in prediction + text]
    source[: len(tokens)] = tokens
    return Lookup(source, len(prediction), len(tokens)), source, len(tokens)


def guessed(found: Lookup, most: int = 5) -> str:
    return "".join(map(chr, found.guess(most)[0]))


@pytest.mark.parametrize(
    ("text", "guess"),
    [
        ("the cat sat. the", " cat "),
        ("one two three one tw", "o thr"),
        ("abcx abcy ab", "cy ab"),
        ("1abcx 2abcy 1abc", "x 2ab"),
        ("nothing", ""),
        ("aaaa", "a"),
        ("ab", ""),
        ("", ""),
    ],
)
def test_the_longest_and_latest_match_says_what_comes_next(text: str, guess: str) -> None:
    assert guessed(lookup(text)[0]) == guess


def follow(found: Lookup, source: np.ndarray, length: int, text: str) -> None:
    for char in text:
        found.guess(1)
        source[length] = ord(char)
        length += 1
        found.note(ord(char))


def test_a_prediction_is_followed_from_the_first_token_and_found_again_after_a_change() -> None:
    found, source, length = lookup("question: ", prediction="def area(w, h): return w * h")
    assert guessed(found, 8) == "def area"
    assert found.guess(8)[1], "it is the client's"
    follow(found, source, length, "def volume(w, h): ")
    assert guessed(found, 6) == "return"
    follow(found, source, length + 18, "retuXn w + h; w ")
    assert guessed(found, 3) == "* h", "the prediction goes before what the answer itself said"


def test_how_often_guesses_hold_is_learnt_without_computing_them() -> None:
    held, source, length = lookup("the quick brown fox jumps over it. ")
    follow(held, source, length, "the quick brown fox jumps over it. " * 2)
    assert held.expected(8)[-1] > 6
    wrong, source, length = lookup("ab1 ab2 ab3 ab4 ab5 ab")
    follow(wrong, source, length, "6 ab7 ab8 ab9 ab0 abx aby abz ab")
    assert wrong.expected(8)[-1] < 1.5


def test_step_times_are_learnt_and_continued_beyond_what_was_seen() -> None:
    known = StepTime()
    assert known.seconds(1) is None
    assert known.work_within(1.0) is None
    for _ in range(20):
        for rows in (1, 4, 32):
            known.note(rows, 0.010 + 0.005 * rows)
    assert known.seconds(1) == pytest.approx(0.015)
    assert known.seconds(18) == pytest.approx(0.1, rel=0.01)
    assert known.seconds(100) == pytest.approx(0.51, rel=0.01)
    assert known.work_within(0.110) == pytest.approx(20, abs=1)
    assert known.work_within(0.510) == pytest.approx(100, abs=2)
    assert known.work_within(0.001) == 0
    known.note(4, 100.0)
    assert known.seconds(4) < 0.05, "one that was disturbed counts for little"


def test_a_point_from_a_busy_time_is_forgotten_without_being_visited() -> None:
    known = StepTime()
    for work in (1, 4, 16, 32):
        known.note(work, 0.5 * work)
    for _ in range(10):
        known.note(1, 0.02)
        known.note(4, 0.05)
    assert known.seconds(1) < 0.025
    assert known.seconds(16) < 0.05 * 16 / 4 * 1.2, "a row never costs more in a larger step"
    known.note(16, 0.1)
    known.note(16, 0.1)
    known.note(16, 0.1)
    assert known.seconds(16) < 0.25, "shorter steps are believed soon"


def test_likely_guesses_are_probed_when_the_times_say_that_they_do_not_pay() -> None:
    stale = StepTime()
    stale.note(1, 0.02)
    stale.note(8, 10.0)
    asked = Pace(StepCosts(RowCosts(), stale))
    sure = [0.95 * k for k in range(1, 25)]
    assert asked.worthwhile_guesses(sure, 1, 1, ONE) == 6
    assert asked.worthwhile_guesses(sure, 1, 1, ONE) == 0, "not at once again"
    asked = Pace(StepCosts(RowCosts(), stale))
    assert asked.worthwhile_guesses([0.3, 0.4, 0.45, 0.46, 0.46, 0.46], 1, 1, ONE) == 0, "unlikely ones are not"


def test_forced_tokens_may_lengthen_a_step_by_a_fifth_or_to_the_target() -> None:
    assert pace(0.03, 0.004).spare_work(1) == pytest.approx(0.2 * 0.034 / 0.004, rel=0.05)
    assert pace(0.03, 0.0001).spare_work(1) > 50, "where rows cost little, many"
    assert pace(0.0, 0.02).spare_work(1) < 0.25, "and where they cost what a step does, none"
    assert pace(0.03, 0.004, target_gap_s=0.07).spare_work(1) == pytest.approx(9, rel=0.1)
    assert pace(0.03, 0.004, target_gap_s=0.01).spare_work(1) > 0, "nobody slows down for a target out of reach"
    assert Pace(StepCosts(RowCosts(), StepTime())).spare_work(1) == math.inf, "nothing is known"


def known_costs(base: float, per_row: float, costs: RowCosts | None = None) -> StepCosts:
    known = StepTime()
    for rows in (1, 2, 4, 8, 16, 32, 64, 128, 512):
        known.note(rows, base + per_row * rows)
    return StepCosts(costs or RowCosts(), known)


def pace(base: float, per_row: float, **options: float) -> Pace:
    return Pace(known_costs(base, per_row), **options)


def prompt_rows(asked: Pace, n_answers: int, n_left: int = 5000, *, position: int = 0, n_prompts: int = 1) -> int:
    rows = Rows(512, asked.costs.tile)
    for slot in range(n_answers):
        rows.extend(np.zeros(1, np.int32), 0, slot, 0)
    answers = Answers(n_answers, asked.costs.work(rows))
    return asked.prompt_rows(rows, answers, n_left, position=position, n_prompts=n_prompts)


def test_prompts_get_what_the_target_leaves() -> None:
    assert prompt_rows(pace(0.01, 0.001, target_gap_s=0.05), 4) == pytest.approx(36, abs=1)
    assert prompt_rows(pace(0.01, 0.001, target_gap_s=0.2), 4) == pytest.approx(186, abs=2)
    assert prompt_rows(pace(0.1, 0.01, target_gap_s=0.05), 4) == 8, "they are not starved"
    assert prompt_rows(pace(0.01, 0.001), 0) == 512
    assert prompt_rows(pace(0.01, 0.01), 0) == 128
    assert prompt_rows(pace(0.01, 0.001, prefill_chunk=20), 4) == 20
    adaptive = prompt_rows(pace(0.1, 0.01), 4)
    assert adaptive == pytest.approx((6 * 0.14 - 0.1) / 0.01 - 4, abs=2), "six times a step without prompts"
    assert prompt_rows(pace(0.01, 0.0015), 1) == pytest.approx((0.25 - 0.01) / 0.0015, abs=2), "a step nobody feels"
    assert prompt_rows(pace(0.01, 0.002), 1, n_prompts=4) > 3 * prompt_rows(pace(0.01, 0.002), 1), "more wait than read"
    assert prompt_rows(pace(0.01, 0.001, target_gap_s=0.05), 1, n_prompts=8) == pytest.approx(39, abs=1)


def test_a_piece_is_a_bit_larger_where_prompts_end_with_it() -> None:
    others = prompt_rows(pace(0.1, 0.01), 4)
    assert prompt_rows(pace(0.1, 0.01), 4, int(1.25 * others)) == int(1.25 * others)
    assert prompt_rows(pace(0.1, 0.01), 4, int(1.4 * others)) == others
    target = {"target_gap_s": 0.7}
    assert prompt_rows(pace(0.1, 0.01, **target), 4, int(1.25 * others)) <= others, "but a target is kept"


ATTENTION = RowCosts(output=0.25, cell=0.0008, tiled_cell=0.00028, tile=64)


def batch(*parts: tuple[int, int], tile: int = 64) -> Rows:
    rows = Rows(512, tile)
    for slot, (n, position) in enumerate(parts):
        rows.extend(np.zeros(n, np.int32), position, slot, n - 1)
    return rows


def test_work_counts_logits_and_the_cells_that_rows_attend_to() -> None:
    costs = known_costs(0.01, 0.001, ATTENTION)
    assert costs.work(batch((1, 1000))) == pytest.approx(1 + 0.25 + 0.8, rel=0.01)
    assert costs.work(batch((1, 0), (1, 0))) == pytest.approx(2.5, rel=0.01)
    assert costs.work(batch((64, 4096))) == pytest.approx(64 + 0.25 + 64 * 4128 * 0.00028, rel=0.01)
    beside = costs.work(batch((1, 1000), (63, 4096)))
    assert beside == pytest.approx(64 + 0.5 + 64 * (1000 + 4128) * 0.00028, rel=0.01), "the tile sees the cells of both"
    assert costs.prompt_work(64, 4096) == costs.work(batch((64, 4096))) - 0.25
    assert costs.prompt_work(20, 100) == costs.work(batch((20, 100))) - 0.25


def test_a_step_deep_in_a_prompt_says_nothing_wrong_about_the_next_one_among_short_answers() -> None:
    costs = known_costs(0.0, 0.004, ATTENTION)
    before = costs.seconds(30)
    deep = batch((30, 4000))
    for _ in range(50):
        costs.note(deep, 0.004 * (30 + 0.0005 * deep.n_seen))
    assert costs.seconds(30) == pytest.approx(before, rel=0.05)
    assert costs.seconds(costs.work(deep)) == pytest.approx(0.004 * (30 + 0.0005 * deep.n_seen), rel=0.05)
    assert costs.row_work(4000) < 1.25 + 0.0007 * 4000, "the cells' part is learnt"
    for _ in range(100):
        costs.note(deep, 100.0)
    assert costs.row_work(4000) <= 1.25 + 2 * 0.0008 * 4000, "not beyond reason"
    for _ in range(300):
        costs.note(batch((64, 0)), 0.256)
    assert costs.row_work(4000) == pytest.approx(1.25 + 0.0008 * 4000, rel=0.1), "and forgotten when it is not seen"


def rows_apart(asked: Pace, n_answers: int, *, position: int, n_prompts: int = 1, context: int = 100) -> int:
    answers = Answers(n_answers, n_answers * asked.costs.row_work(context))
    return asked.rows_apart(512, answers, position=position, n_prompts=n_prompts)


def test_deep_in_a_prompt_whole_tiles_are_read_between_the_steps_of_answers() -> None:
    asked = Pace(known_costs(0.03, 0.004, ATTENTION))
    assert rows_apart(asked, 3, position=0) == 0, "where it is hardly faster, answers keep their pace"
    assert rows_apart(asked, 3, position=4000) == 64
    assert rows_apart(asked, 1, position=0, n_prompts=8) >= 128, "more wait than read"
    obeyed = Pace(known_costs(0.03, 0.004, ATTENTION), target_gap_s=0.2)
    assert rows_apart(obeyed, 3, position=4000) == 0
    assert prompt_rows(obeyed, 3, position=4000) < 12, "not beyond a target"
    assert prompt_rows(Pace(known_costs(0.03, 0.0001, ATTENTION)), 3) == 60, "beside answers less than a tile"
    assert [prompt_rows(asked, n) for n in (58, 63)] == [8, 8], "however many they are"
    assert prompt_rows(asked, 0, position=4000) % 64 == 0
    assert rows_apart(Pace(known_costs(0.03, 0.004)), 3, position=4000) == 0, "without tiles"
    assert rows_apart(Pace(known_costs(0.03, 0.004, ATTENTION), prefill_chunk=9), 3, position=4000) == 0


def test_guesses_are_taken_as_far_as_they_pay() -> None:
    sure, unsure = [0.98**k * 0.98 for k in range(24)], [0.3**k * 0.3 for k in range(24)]
    sure, unsure = np.cumsum(sure).tolist(), np.cumsum(unsure).tolist()
    gpu, cpu = pace(0.01, 0.00001), pace(0.004, 0.01)
    assert gpu.worthwhile_guesses(sure, 1, 1, ONE) > 16
    assert gpu.worthwhile_guesses(unsure, 1, 1, ONE) > 0
    assert cpu.worthwhile_guesses(sure, 1, 1, ONE) > 8
    assert cpu.worthwhile_guesses(unsure, 1, 1, ONE) == 0
    assert gpu.worthwhile_guesses([], 1, 1, ONE) == 0
    assert Pace(StepCosts(RowCosts(), StepTime())).worthwhile_guesses(sure, 1, 1, ONE) == 0


def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "worthwhile_guesses", lambda self, expected, *_: len(expected))


def test_a_right_prediction_takes_fewer_steps_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)

    async def scenario() -> None:
        backend = FakeBackend(n_ctx=256, n_batch=64, n_outputs=40)
        async with running(backend) as engine:
            prompt, params = (1, 2, 3), SamplingParams(temperature=0.0, logprobs=0, ignore_eos=True)
            answer = expected_tokens(prompt, params, 40)
            wrong = (*answer[:20], 7, 7, *answer[22:])
            out = await collect(engine.submit([request(prompt, 40, params, speculate=True, prediction=wrong)]))
            assert [entry.token for delta in out[0] for entry in delta.logprobs] == answer
            usage = out[0][-1].usage
            assert len(backend.batches) < 12
            assert usage.completion_tokens == 40
            assert usage.predicted_accepted_tokens >= 30
            assert usage.predicted_tokens - usage.predicted_accepted_tokens >= 1
            assert usage.accepted_tokens == usage.predicted_accepted_tokens
            check_accounting(engine, backend)

    asyncio.run(scenario())


def test_a_prompt_that_wants_logits_is_read_beside_answers_that_are_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)

    async def scenario() -> None:
        backend = FakeBackend(n_ctx=256, n_batch=64, n_outputs=14)
        backend.delay_s = 0.002
        async with running(backend, max_running=2, answer_reserve=200) as engine:
            params = SamplingParams(temperature=0.0, ignore_eos=True, logprobs=0)
            right = tuple(expected_tokens((1, 2, 3), params, 120))
            guessed = engine.submit([request((1, 2, 3), 120, params, speculate=True, prediction=right)])
            await anext(guessed)
            scored = asyncio.create_task(
                collect(engine.submit([request(tuple(range(20)), 1, params, prompt_logprobs=True)]))
            )
            out = await collect(guessed)
            assert out[0][-1].usage.accepted_tokens > 80
            assert scored.done()
            await scored

    asyncio.run(scenario())


def test_without_leave_to_speculate_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)

    async def scenario() -> None:
        backend = FakeBackend(n_outputs=40)
        async with running(backend) as engine:
            await collect(engine.submit([request((1, 2) * 10, 10, GREEDY)]))
            assert all(rows == 1 for parts in backend.batches[1:] for _, rows in parts)

    asyncio.run(scenario())


class LoopBackend(FakeBackend):
    """Its next token depends on the last three only, so that answers repeat themselves."""

    def next_logits(self, history: tuple[int, ...]) -> np.ndarray:
        return self._after(history[-2:])

    @staticmethod
    @cache
    def _after(last: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng(abs(hash(last)) % 2**32)
        logits = np.full(N_VOCAB, -20, np.float32)
        logits[:6] = rng.normal(size=6) * 1.5
        return logits


@pytest.mark.slow
def test_sampling_keeps_its_distribution_when_tokens_are_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square over the answers of many seeds: guessed and not guessed, against each other and token by token."""
    always(monkeypatch)

    async def answers(speculate: bool) -> tuple[list[list[int]], int]:
        backend = LoopBackend(n_ctx=512, n_batch=64, n_outputs=40)
        async with running(backend, max_running=4) as engine:
            out = []
            for seed in range(0, 120, 4):
                params = [SamplingParams(seed=1000 * speculate + n, logprobs=0) for n in range(seed, seed + 4)]
                deltas = await collect(
                    engine.submit([request((1, 2, 3), 40, one, speculate=speculate) for one in params])
                )
                out += [[e.token for d in deltas[n] for e in d.logprobs] for n in range(4)]
                accepted = sum(deltas[n][-1].usage.accepted_tokens for n in range(4))
            return out, accepted

    plain, none = asyncio.run(answers(False))
    guessed_, some = asyncio.run(answers(True))
    assert none == 0
    assert some > 0
    a, b = (Counter(token for answer in one for token in answer) for one in (plain, guessed_))
    tokens = [token for token in a | b if a[token] + b[token] >= 20]
    chi = sum((a[t] - b[t]) ** 2 / (a[t] + b[t]) for t in tokens)
    # 99.99 % of chi-square with 5 degrees of freedom, doubled: tokens of one answer depend on each other.
    assert chi < 2 * 25.7


def test_the_same_seed_gives_the_same_answer_guessed_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)

    async def scenario() -> None:
        backend = LoopBackend(n_ctx=512, n_batch=64, n_outputs=40)
        async with running(backend) as engine:
            for seed in range(few(10, 3)):
                params = SamplingParams(seed=seed, logprobs=0)
                plain = await sampled(engine.submit([request((1, 2), 60, params)]))
                ahead = await sampled(engine.submit([request((1, 2), 60, params, speculate=True)]))
                assert without_end(plain) == without_end(ahead)
            check_accounting(engine, backend)

    asyncio.run(scenario())


def test_guesses_stay_within_the_cells_that_were_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)

    async def scenario() -> None:
        backend = LoopBackend(n_ctx=130, n_batch=64, n_outputs=40)
        async with running(backend, answer_reserve=4) as engine:

            async def client(seed: int) -> None:
                params = SamplingParams(seed=seed, logprobs=0, ignore_eos=True)
                out = await collect(engine.submit([request((seed, 2), 50, params, speculate=True)]))
                assert out[0][-1].usage.completion_tokens == 50

            await asyncio.gather(*[client(seed) for seed in range(4)])
            check_accounting(engine, backend)

    asyncio.run(scenario())


def test_a_draft_model_shortens_answers_and_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Drafts, "_worthwhile", lambda self, n, rows, answers, most: min(most, MOST_DRAFTED))

    async def scenario() -> None:
        backend, drafter = FakeBackend(n_ctx=512, n_batch=64, n_outputs=40), FakeDrafter(wrong=0.0)
        async with running(backend, drafter=drafter) as engine:
            params = SamplingParams(temperature=0.0, logprobs=0, ignore_eos=True)
            streams = [engine.submit([request((n, 2), 60, params, speculate=True)]) for n in range(3)]
            for n, out in enumerate(await asyncio.gather(*[collect(stream) for stream in streams])):
                assert [e.token for d in out[0] for e in d.logprobs] == expected_tokens((n, 2), params, 60)
                assert out[0][-1].usage.accepted_tokens > 20
            assert len(backend.batches) < 40
            plain = await collect(engine.submit([request((9, 2), 20, params)]))
            assert plain[0][-1].usage.drafted_tokens == 0
        assert drafter.closed

    asyncio.run(scenario())


class TimedDrafter(FakeDrafter):
    def __init__(self, draft_s: float) -> None:
        super().__init__()
        self.draft_s = draft_s

    def seconds(self, positions: list[int]) -> float | None:
        return self.draft_s


def test_drafts_are_asked_for_as_far_as_they_pay_and_probed_when_they_do_not() -> None:
    sequence = SimpleNamespace(computed=0)
    quick = Drafts(TimedDrafter(0.001), pace(0.01, 0.0001))
    assert quick._worthwhile([sequence], 1, ONE, 8) >= 4
    for _ in range(50):
        quick.note(0, 4)
    assert quick._worthwhile([sequence], 1, ONE, 8) == 1, "a probe, as it could win"
    assert quick._worthwhile([sequence], 1, ONE, 8) == 0, "and not at once again"
    for _ in range(100):
        quick.note(4, 4)
    assert quick._worthwhile([sequence], 1, ONE, 8) == 8
    slow = Drafts(TimedDrafter(0.02), pace(0.01, 0.0001))
    assert slow._worthwhile([sequence], 1, ONE, 8) == 0, "no number of right guesses would pay"
