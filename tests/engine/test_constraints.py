"""Constrained answers in the engine: what they must be whatever happens around them, and what ends them."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

import numpy as np
import pytest

from llm_local.engine.batch import Batch
from llm_local.engine.constraint import Constraint, ConstraintFailed
from llm_local.engine.step_costs import RowCosts
from llm_local.engine.stream import Receiver
from llm_local.engine.types import Delta, FinishReason, SamplingParams
from llm_local.errors import QueueFull
from llm_local.structured.spec import JsonSpec, RegexSpec, Spec
from tests.engine.test_engine import check_accounting, collect, request, running, settle
from tests.examples import few, seeds
from tests.fakes import END, N_VOCAB, FakeBackend, fake_grammars, next_logits

GRAMMARS = fake_grammars()
PERSON = {
    "type": "object",
    "properties": {
        "a long name that is forced": {"type": "string", "maxLength": 12},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["first", "second"]}, "maxItems": 3},
    },
    "required": ["a long name that is forced", "n", "tags"],
    "additionalProperties": False,
}
SPECS: list[Spec] = [JsonSpec(PERSON), RegexSpec("(yes|no|maybe later)"), RegexSpec("[a-f]{3,9}-fixed-[0-9]")]


class Scripted:
    """A constraint that allows what a script says, and counts."""

    def __init__(self, allowed: SequenceOf[SequenceOf[int]], forced: SequenceOf[SequenceOf[int]] = ()) -> None:
        self._allowed = [set(tokens) for tokens in allowed]
        self._forced = [list(tokens) for tokens in forced]
        self.at = 0
        self.closed = 0
        self.masks = 0

    @property
    def may_end(self) -> bool:
        return self.at >= len(self._allowed)

    @property
    def must_end(self) -> bool:
        return False

    def allows(self, token: int) -> bool:
        return (token == END and self.may_end) or (not self.may_end and token in self._allowed[self.at])

    def allowed(self) -> np.ndarray:
        self.masks += 1
        mask = np.zeros(N_VOCAB, np.bool_)
        mask[[END] if self.may_end else list(self._allowed[self.at])] = True
        if not mask.any():
            raise ConstraintFailed("a dead end")
        return mask

    def accept(self, token: int) -> None:
        assert self.allows(token)
        self.at += 1

    def forced(self) -> list[int]:
        return self._forced[self.at] if self.at < len(self._forced) else []

    def completes(self, text: str) -> bool:
        return len(text) == len(self._allowed)

    def close(self) -> None:
        self.closed += 1


def expected_text(
    prompt: tuple[int, ...], params: SamplingParams, max_tokens: int, constraint: Constraint
) -> tuple[str, bool]:
    """What a constrained sequence must yield, computed without any engine; and whether it came to its end."""
    draw, out = np.random.default_rng(params.seed or 0), []

    def sample(mask: np.ndarray | None) -> int:
        logits = next_logits((*prompt, *out)).astype(np.float64)
        if mask is not None:
            logits[~mask] = -np.inf
        if params.temperature == 0:
            return int(logits.argmax())
        p = np.exp(logits - logits.max())
        return int(draw.choice(N_VOCAB, p=p / p.sum()))

    def force() -> None:
        while params.logprobs is None and len(out) < max_tokens and not constraint.must_end:
            forced = list(constraint.forced())[: max_tokens - len(out)]
            if not forced:
                return
            for token in forced:
                constraint.accept(token)
                out.append(token)
            return

    force()
    while len(out) < max_tokens and not constraint.must_end:
        token = sample(None)
        if not constraint.allows(token):
            token = sample(constraint.allowed())
        if token == END:
            return "".join(map(chr, out)), True
        constraint.accept(token)
        out.append(token)
        force()
    return "".join(map(chr, out)), constraint.must_end


@pytest.mark.parametrize("seed", seeds(25))
def test_a_constrained_answer_is_the_same_whatever_happens_around_it(seed: int) -> None:
    """Beside free answers, in small caches, preempted, chunked, shared, with and without log probabilities."""
    choose = random.Random(seed)

    async def scenario() -> None:
        backend = FakeBackend(
            n_ctx=choose.choice([160, 220, 400]), n_batch=choose.choice([6, 16, 64]), n_slots=choose.choice([4, 5, 9]),
            n_outputs=16,
        )  # fmt: skip
        prefixes = [tuple(choose.choices(range(256), k=choose.randint(1, 30))) for _ in range(3)]
        options = {"prefill_chunk": choose.choice([1, 4, 16]), "answer_reserve": choose.choice([1, 4, 200])}
        async with running(backend, **options) as engine:
            spare = choose.choice([[math.inf], [0.0, 1.0, 3.0]])
            engine._thread.scheduler._pace.spare_work = lambda work: choose.choice(spare)  # type: ignore[method-assign]

            async def client(number: int) -> None:
                prompt = choose.choice(prefixes) + tuple(choose.choices(range(256), k=choose.randint(1, 9)))
                params = SamplingParams(
                    temperature=choose.choice([0.0, 1.0]), seed=number, logprobs=choose.choice([None, 0])
                )
                spec = choose.choice([None, *SPECS])
                max_tokens = choose.randint(1, 80)
                await asyncio.sleep(choose.random() * 0.02)
                constraints = GRAMMARS.constraints(spec, [100]) if spec is not None else []
                wanted = request(prompt, max_tokens, params, speculate=choose.random() < 0.5, lookup=False)
                stream = engine.submit([wanted], constraints=constraints)
                if choose.random() < 0.15:
                    await asyncio.sleep(choose.random() * 0.01)
                    stream.close()
                    return
                deltas = (await collect(stream))[0]
                text = "".join(delta.text for delta in deltas)
                if spec is None:
                    return
                reference = GRAMMARS.constraints(spec, [100])[0]
                wanted, ended = expected_text(prompt, params, max_tokens, reference)
                assert text == wanted
                assert (deltas[-1].finish is FinishReason.STOP) == ended
                if ended and isinstance(spec, JsonSpec):
                    assert set(json.loads(text)) == set(PERSON["required"])

            await asyncio.wait_for(asyncio.gather(*[client(number) for number in range(16)]), 20)
            await settle(engine)
            check_accounting(engine, backend)

    asyncio.run(scenario())


def test_the_constrained_traffic_forces_refuses_and_preempts() -> None:
    """Guards the property test above."""

    async def scenario() -> None:
        backend = FakeBackend(n_ctx=160, n_batch=16)
        async with running(backend, answer_reserve=1) as engine:
            streams = []
            for n in range(4):
                constraints = GRAMMARS.constraints(SPECS[0], [100])
                params = SamplingParams(temperature=1.0, seed=n)
                streams.append(engine.submit([request((n,) * 10, 100, params)], constraints=constraints))
            ends = [(await collect(stream))[0][-1] for stream in streams]
            assert all(end.finish is FinishReason.STOP for end in ends)
            assert all(end.usage.forced_tokens > 20 for end in ends)
            assert all(end.usage.constraint_ms > 0 for end in ends)
            assert engine.stats.refused_tokens > 10
            assert engine._thread.scheduler.n_preempted > 0

    asyncio.run(scenario())


def test_what_is_forced_at_first_is_computed_with_the_prompt() -> None:
    async def scenario() -> None:
        backend = FakeBackend(n_batch=64)
        async with running(backend) as engine:
            constraint = Scripted([[1], [2], [3], [4], list(range(256))], [[1, 2, 3, 4]])
            await collect(engine.submit([request(tuple(range(10)), 5, SamplingParams())], constraints=[constraint]))
            assert backend.batches[0] == [(0, 14)]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("streamed", "spare", "pieces"),
    [(True, 0.0, [1, 1, 1, 1, 1]), (True, 1.0, [2, 2, 1]), (True, 9.0, [5]), (False, 0.0, [5])],
    ids=["no room", "room for one", "room for all", "nobody reads along"],
)
def test_forced_tokens_ride_together_as_far_as_those_who_read_along_can_bear(
    streamed: bool, spare: float, pieces: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row without logits (1) and one with (1.5): 4 tokens are forced after the first one, which is sampled."""
    outputs: list[int] = []
    monkeypatch.setattr(FakeBackend, "decode", recording_outputs(outputs))

    async def scenario() -> list[str]:
        backend = FakeBackend(n_batch=64)
        backend.row_costs = RowCosts(output=0.5)
        async with running(backend) as engine:
            engine._thread.scheduler._pace.spare_work = lambda work: spare  # type: ignore[method-assign]
            constraint = Scripted([[65], [66], [67], [68], [69], [70]], [[], [66, 67, 68, 69]])
            wanted = request((1, 2), 6, SamplingParams(), streamed=streamed, speculate=True, lookup=False)
            texts: list[str] = []
            post = engine._thread.post

            def recording_post(stream: Receiver, delta: object) -> None:
                texts.append(delta.text if isinstance(delta, Delta) else "")
                post(stream, delta)

            monkeypatch.setattr(engine._thread, "post", recording_post)
            deltas = (await collect(engine.submit([wanted], constraints=[constraint])))[0]
            assert [n for batch in backend.batches for _, n in batch] == [2, *pieces]
            assert deltas[-1].usage is not None
            assert deltas[-1].usage.forced_tokens == 4
            return texts

    texts = asyncio.run(scenario())
    assert "".join(texts) == "ABCDEF"
    assert len(texts) == 1 + len(pieces), "every step has something for who reads along"
    assert outputs == [1, *[0] * (len(pieces) - 1), 1], "no logits while there is no choice"


def test_progress_is_of_the_prompt_and_not_of_what_is_forced_after_it() -> None:
    async def scenario() -> None:
        async with running(FakeBackend(n_batch=64), prefill_chunk=8) as engine:
            engine._thread.scheduler._pace.spare_work = lambda work: math.inf  # type: ignore[method-assign]
            constraint = Scripted([[65], *[[66]] * 90, [70]], [[], [66] * 90])
            wanted = request(tuple(range(30)), 92, SamplingParams(), speculate=True, lookup=False, report_progress=True)
            deltas = (await collect(engine.submit([wanted], constraints=[constraint])))[0]
            assert "".join(delta.text for delta in deltas) == "A" + "B" * 90 + "F"
            answering = next(at for at, delta in enumerate(deltas) if delta.text)
            assert not any(delta.progress for delta in deltas[answering + 1 :])

    asyncio.run(scenario())


def test_with_a_seed_no_measured_time_decides_how_many_forced_tokens_ride_together() -> None:
    async def scenario(spare: float) -> list[list[tuple[int, int]]]:
        backend = FakeBackend(n_batch=64)
        async with running(backend) as engine:
            engine._thread.scheduler._pace.spare_work = lambda work: spare  # type: ignore[method-assign]
            constraint = Scripted([[65], *[[66]] * 5, [70]], [[], [66] * 5])
            await collect(engine.submit([request((1, 2), 7, SamplingParams(seed=1))], constraints=[constraint]))
        return backend.batches

    assert asyncio.run(scenario(0.0)) == asyncio.run(scenario(9.0)) == [[(0, n)] for n in (2, 2, 2, 2)]


def recording_outputs(outputs: list[int]) -> Callable[[FakeBackend, Batch], None]:
    """A `decode` that notes how many rows of each batch have logits."""
    decode = FakeBackend.decode

    def recording(backend: FakeBackend, batch: Batch) -> None:
        outputs.append(int(batch.outputs[: batch.n_rows].sum()))
        decode(backend, batch)

    return recording


def test_two_who_are_forced_share_what_a_step_can_bear() -> None:
    async def scenario() -> None:
        backend = FakeBackend(n_batch=64)
        async with running(backend) as engine:
            engine._thread.scheduler._pace.spare_work = lambda work: 2.0  # type: ignore[method-assign]
            script = [[65], *[[66]] * 4, [70]], [[], [66, 66, 66, 66]]
            options = {"speculate": True, "lookup": False}
            requests = [request(prompt, 6, SamplingParams(), **options) for prompt in ((1, 2), (3, 4))]
            await collect(engine.submit(requests, constraints=[Scripted(*script), Scripted(*script)]))
            sizes = [sum(n for _, n in batch) for batch in backend.batches]
            assert max(sizes[1:]) == 2 + 2
            assert sum(sizes) == 2 * 2 + 2 * 5

    asyncio.run(scenario())


def test_forced_tokens_count_against_max_tokens() -> None:
    async def scenario() -> None:
        async with running(FakeBackend()) as engine:
            constraint = Scripted([[65], [66], [67], [68]], [[65, 66, 67, 68]])
            deltas = (await collect(engine.submit([request((1,), 3, SamplingParams())], constraints=[constraint])))[0]
            assert "".join(delta.text for delta in deltas) == "ABC"
            assert deltas[-1].finish is FinishReason.LENGTH
            assert deltas[-1].usage.completion_tokens == 3

    asyncio.run(scenario())


def test_log_probabilities_are_of_every_token_so_none_is_forced() -> None:
    async def scenario() -> None:
        async with running(FakeBackend()) as engine:
            constraint = Scripted([[65], [66], [67]], [[65, 66, 67]])
            params = SamplingParams(logprobs=0)
            deltas = (await collect(engine.submit([request((1,), 3, params)], constraints=[constraint])))[0]
            assert [entry.token for delta in deltas for entry in delta.logprobs] == [65, 66, 67]
            assert deltas[-1].usage.forced_tokens == 0

    asyncio.run(scenario())


def test_a_constraint_that_fails_ends_its_own_answer_only() -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        async with running(backend) as engine:
            broken = Scripted([[65], []])
            good = Scripted([[65], [66]])
            first = engine.submit([request((1,), 9, SamplingParams())], constraints=[broken])
            second = engine.submit([request((2,), 9, SamplingParams())], constraints=[good])
            with pytest.raises(ConstraintFailed, match="dead end"):
                await collect(first)
            deltas = (await collect(second))[0]
            assert "".join(delta.text for delta in deltas) == "AB"
            assert (broken.closed, good.closed) == (1, 1)
            assert (await collect(engine.submit([request((3,), 4)])))[0][-1].finish is not None
            check_accounting(engine, backend)

    asyncio.run(scenario())


def test_a_constraint_that_refuses_its_own_mask_does_not_spin() -> None:
    class Liar(Scripted):
        def allows(self, token: int) -> bool:
            return False

    async def scenario() -> None:
        async with running(FakeBackend()) as engine:
            with pytest.raises(ConstraintFailed, match="every token"):
                await collect(engine.submit([request((1,), 9, SamplingParams())], constraints=[Liar([[65]])]))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("pattern", "stop", "text", "finish"),
    [
        ("abcd", "b", "a", FinishReason.LENGTH),
        ("abcd", "d", "abc", FinishReason.LENGTH),
        ("abcd", "cd", "ab", FinishReason.LENGTH),
        ("ab(cd)?", "c", "ab", FinishReason.STOP),
        ("abcd", "x", "abcd", FinishReason.STOP),
    ],
)
def test_a_stop_string_that_cuts_what_is_constrained_says_length(
    pattern: str, stop: str, text: str, finish: FinishReason
) -> None:
    """What is left is not what was asked for, so it must not say that it is; also where the cut is at the very end."""

    async def scenario() -> None:
        async with running(FakeBackend()) as engine:
            constraint = GRAMMARS.constraints(RegexSpec(pattern), [20])[0]
            fields = {"stop": (stop,)}
            out = await collect(
                engine.submit([request((1,), 20, SamplingParams(), **fields)], constraints=[constraint])
            )
            assert "".join(delta.text for delta in out[0]) == text
            assert out[0][-1].finish is finish

    asyncio.run(scenario())


def test_constraints_are_closed_when_nothing_is_taken() -> None:
    async def scenario() -> None:
        async with running(FakeBackend(), max_running=1, queue_max=0) as engine:
            running_stream = engine.submit([request((1,), 50, SamplingParams(ignore_eos=True))])
            constraint = Scripted([[65]])
            with pytest.raises(QueueFull):
                engine.submit([request((2,), 1)], constraints=[constraint])
            assert constraint.closed == 1
            running_stream.close()
            await settle(engine)

    asyncio.run(scenario())


def test_sampling_first_keeps_the_distribution_of_masking_first() -> None:
    """Over many seeds, tokens come out as often as their share of the allowed mass."""
    allowed, n = [10, 20, 30, 40], few(800)
    logits = next_logits((7, 7)).astype(np.float64)
    p = np.exp(logits[allowed] - logits[allowed].max())
    p /= p.sum()

    async def scenario() -> np.ndarray:
        counts = np.zeros(4)
        async with running(FakeBackend(), queue_max=1000) as engine:
            for seed in range(n):
                params = SamplingParams(temperature=1.0, seed=seed)
                out = await collect(engine.submit([request((7, 7), 1, params)], constraints=[Scripted([allowed])]))
                counts[allowed.index(ord(out[0][0].text))] += 1
        return counts

    counts = asyncio.run(scenario())
    spread = np.sqrt(n * p * (1 - p))
    assert (abs(counts - n * p) < 4 * spread + 1).all()


def test_a_constraint_with_a_bug_ends_its_own_answer_only() -> None:
    class Broken(Scripted):
        def allows(self, token: int) -> bool:
            raise RuntimeError("a bug")

        def forced(self) -> list[int]:
            if self.at == 0 and not self._allowed[0]:
                raise RuntimeError("a bug")
            return []

    async def scenario() -> None:
        async with running(FakeBackend()) as engine:
            for broken in (Broken([[65]]), Broken([[]])):
                with pytest.raises(ConstraintFailed, match="internal error"):
                    await collect(engine.submit([request((1,), 9, SamplingParams())], constraints=[broken]))
                assert broken.closed == 1
            assert (await collect(engine.submit([request((3,), 4)])))[0][-1].finish is not None

    asyncio.run(scenario())


class Panic(BaseException):
    """What a panic in Rust is to Python."""


@pytest.mark.parametrize("error", [RuntimeError("a bug"), Panic("a bug")], ids=["Python", "Rust"])
@pytest.mark.parametrize(("question", "says"), [("may_end", END), ("must_end", 65), ("completes", 65)])
def test_a_bug_at_the_end_of_an_answer_ends_that_answer_only(question: str, says: int, error: BaseException) -> None:
    def broken(constraint: Scripted, *_: str) -> bool:
        raise error

    members = {question: broken if question == "completes" else property(broken), "allows": lambda *_: True}
    constraint = type("Broken", (Scripted,), members)([[65], [66]])

    class Saying(FakeBackend):
        def next_logits(self, history: tuple[int, ...]) -> np.ndarray:
            return np.eye(N_VOCAB, dtype=np.float32)[says] * 50

    async def scenario() -> None:
        async with running(Saying()) as engine:
            stop = ("A",) if question == "completes" else ()
            wanted = request((1,), 9, SamplingParams(), stop=stop)
            with pytest.raises(ConstraintFailed, match="internal error"):
                await collect(engine.submit([wanted], constraints=[constraint]))
            assert constraint.closed == 1
            assert (await collect(engine.submit([request((3,), 4)])))[0][-1].finish is not None

    asyncio.run(scenario())
