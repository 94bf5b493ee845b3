"""The cache of slots by itself: against a linear matcher, and what is pinned, counted and moved."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from llm_local.engine import host_cache
from llm_local.engine.host_cache import HostCache
from llm_local.engine.parking import WORTH_PARKING, TierBytes
from llm_local.engine.pins import Pins
from llm_local.engine.prefix_cache import PrefixCache
from llm_local.engine.radix_tree import common_prefix
from llm_local.engine.rates import Rate, Rates
from llm_local.engine.slots import Slot
from tests.examples import seeds
from tests.fakes import FakeBackend


def array(tokens: list[int] | range) -> np.ndarray:
    return np.array(tokens, np.int32)


def linear_match(cache: PrefixCache, tokens: np.ndarray) -> tuple[set[int], int]:
    """The slots that may be chosen, and the length: what the tree must find."""
    common = {slot: common_prefix(slot.tokens[: slot.length], tokens) for slot in cache.slots}
    longest = max(common.values())
    best = [slot for slot, length in common.items() if length == longest > 0]
    idle = [slot for slot in best if not slot.busy]
    return {slot.id for slot in idle or best}, longest


def compute(backend: FakeBackend, cache: PrefixCache, slot: Slot, tokens: np.ndarray) -> None:
    backend.tokens[slot.id] += tokens.tolist()
    backend.take(slot.id, len(tokens))
    cache.extend(slot, tokens)


@pytest.mark.parametrize("seed", seeds(20))
def test_a_match_is_what_a_comparison_with_every_slot_finds(seed: int) -> None:
    """Slots are taken, extended a few tokens at a time, trimmed, released and evicted at random."""
    choose = random.Random(seed)
    backend = FakeBackend(n_ctx=400, n_slots=6)
    host = choose.choice([None, HostCache(300)])
    cache = PrefixCache(backend, 6, 400, 60, host, choose.choice([None, 2]))
    if choose.random() < 0.5:
        cache.pin(array([1, 1, 2]))
        cache.pin(array([1, 1]))
    seen: list[list[int]] = [[1, 1, 2, 1]]
    busy: dict[int, int] = {}

    def some_tokens() -> list[int]:
        begun = choose.choice(seen)
        return (begun[: choose.randint(0, len(begun))] + choose.choices(range(3), k=choose.randint(1, 15)))[:50]

    for _ in range(600):
        act = choose.choice(["take", "extend", "extend", "release", "look", "step", "trim"])
        if act == "take" and len(busy) < 5:
            tokens = some_tokens()
            acquired = cache.acquire(array(tokens), len(tokens) - 1, 60)
            if acquired is not None:
                slot, common = acquired
                busy[slot.id] = 60
                cache.make_room(len(tokens) - common)
                compute(backend, cache, slot, array(tokens[common:]))
        elif act == "extend" and busy:
            slot = cache.slots[choose.choice(list(busy))]
            n = min(choose.randint(1, 3), 60 - slot.length)
            cache.make_room(n)
            compute(backend, cache, slot, array(choose.choices(range(3), k=n)))
            seen.append(slot.tokens[: slot.length].tolist())
        elif act == "release" and busy:
            number = choose.choice(list(busy))
            del busy[number]
            cache.release(cache.slots[number])
        elif act == "trim" and busy:
            slot = cache.slots[choose.choice(list(busy))]
            cache.trim(slot, choose.randint(0, slot.length))
        elif act == "step":
            if choose.random() < 0.3:
                cache.cells.peak = 2000
            cache.next_step()
        wanted = array(some_tokens())
        slots, length = linear_match(cache, wanted)
        found, common = cache.match(wanted)
        assert common == length
        assert (found.id if found is not None else None) in (slots or {None})
        assert cache.parking.kv_bytes().resident == 4 * backend.n_used
        for slot in cache.slots:
            assert backend.tokens[slot.id] == slot.tokens[: slot.length].tolist()


def run(backend: FakeBackend, cache: PrefixCache, tokens: np.ndarray) -> int:
    """Compute a whole sequence and let it go; return how many tokens were there already."""
    acquired = cache.acquire(tokens, len(tokens) - 1, len(tokens))
    assert acquired is not None
    slot, common = acquired
    cache.make_room(len(tokens) - common)
    compute(backend, cache, slot, tokens[common:])
    cache.release(slot)
    return common


def test_a_pinned_prefix_stays_while_others_come_and_go() -> None:
    backend = FakeBackend(n_ctx=200, n_slots=4)
    cache = PrefixCache(backend, 4, 200, 128)
    pinned = array(range(40))
    cache.pin(pinned)
    run(backend, cache, pinned)
    for n in range(20):
        run(backend, cache, array(range(100 + n, 200 + n)))
    assert cache.match(pinned)[1] == 40
    assert run(backend, cache, array([*range(40), 7])) == 40


def test_without_a_pin_it_would_be_gone() -> None:
    backend = FakeBackend(n_ctx=200, n_slots=4)
    cache = PrefixCache(backend, 4, 200, 128)
    run(backend, cache, array(range(40)))
    for n in range(20):
        run(backend, cache, array(range(100 + n, 200 + n)))
    assert cache.match(array(range(40)))[1] == 0


def test_a_conversation_shares_a_pinned_prefix_and_does_not_take_its_slot() -> None:
    backend = FakeBackend(n_ctx=200, n_slots=4)
    cache = PrefixCache(backend, 4, 200, 128)
    cache.pin(array(range(40)))
    run(backend, cache, array(range(40)))
    run(backend, cache, array([*range(40), 7, 8, 9]))
    assert [slot.length for slot in cache.slots if slot.is_pin] == [40]
    assert backend.n_used == 43


def test_a_pinned_prefix_that_had_to_go_is_kept_again_when_it_is_used_again() -> None:
    backend = FakeBackend(n_ctx=100, n_slots=4)
    cache = PrefixCache(backend, 4, 100, 100)
    cache.pin(array(range(40)))
    run(backend, cache, array(range(40)))
    run(backend, cache, array(range(100, 195)))
    assert cache.match(array(range(40)))[1] == 0, "the cells belong to who runs"
    run(backend, cache, array([*range(40), 7]))
    assert [slot.length for slot in cache.slots if slot.is_pin] == [40]
    run(backend, cache, array(range(100, 155)))
    assert cache.match(array(range(40)))[1] == 40


def test_a_pinned_prefix_that_was_parked_stays_in_the_host_tier() -> None:
    backend = FakeBackend(n_ctx=100, n_slots=4)
    host = HostCache(4 * 160)
    cache = PrefixCache(backend, 4, 100, 100, host)
    host.connect(lambda report: None, cache.pins)
    cache.pin(array(range(40)))
    run(backend, cache, array(range(40)))
    for n in range(6):
        run(backend, cache, array(range(100 + 10 * n, 195 + 10 * n)))
    assert host.match(array(range(40)))[1] == 40
    assert run(backend, cache, array([*range(40), 7])) == 40
    assert host.match(array(range(40)))[1] == 40


def test_of_nested_pins_the_longest_counts() -> None:
    pins = Pins()
    for length in (3, 9, 5, 9):
        pins.add(array(range(length)))
    assert (len(pins), pins.longest(array(range(7))), pins.longest(array(range(20)))) == (3, 5, 9)
    assert array(range(5)) in pins
    assert array(range(4)) not in pins
    assert array([]) not in pins


def test_a_running_sequence_leaves_a_pinned_prefix_in_its_slot() -> None:
    backend = FakeBackend(n_ctx=200, n_slots=3)
    cache = PrefixCache(backend, 3, 200, 128)
    cache.pin(array(range(40)))
    run(backend, cache, array(range(40)))
    (pinned,) = [slot for slot in cache.slots if slot.is_pin]
    for tokens in ([*range(40), 7], [8, 8], [9, 9], [6, 6]):
        acquired = cache.acquire(array(tokens), len(tokens) - 1, len(tokens))
        assert acquired is not None
        slot, common = acquired
        assert slot is not pinned, "others were used more recently, but they are no pins"
        compute(backend, cache, slot, array(tokens[common:]))
        assert pinned.is_pin
        cache.release(slot)


def test_a_pinned_prefix_is_not_parked_for_being_idle() -> None:
    backend = FakeBackend(n_ctx=200, n_slots=3)
    host = HostCache(10_000)
    cache = PrefixCache(backend, 3, 200, 128, host, park_after=1)
    cache.pin(array(range(40)))
    run(backend, cache, array(range(40)))
    run(backend, cache, array(range(100, 150)))
    for _ in range(20):
        cache.next_step()
    assert [slot.length for slot in cache.slots if slot.length] == [40]
    assert host.match(array(range(100, 150)))[1] == 50


@pytest.mark.parametrize(("park_after", "n_prompt", "makes_way"), [(8, 320, True), (8, 250, False), (None, 320, False)])
def test_what_is_idle_makes_way_before_a_long_prompt_where_holes_between_cells_cost_time(
    park_after: int | None, n_prompt: int, makes_way: bool
) -> None:
    backend = FakeBackend(n_ctx=800, n_slots=4)
    host = HostCache(100_000)
    cache = PrefixCache(backend, 4, 800, 400, host, park_after=park_after)
    cache.pin(array(range(60, 100)))
    run(backend, cache, array(range(60, 100)))
    run(backend, cache, array(range(50)))
    prompt = array([*range(50), *(n % 100 for n in range(n_prompt - 50))])
    other = array(range(100, 150))
    run(backend, cache, other)
    cache.next_step()
    assert run(backend, cache, prompt) == 50, "what it shares is its own by then"
    assert len(host) == makes_way
    assert host.match(other)[1] == (50 if makes_way else 0)
    assert cache.match(array(range(60, 100)))[1] == 40, "a pinned prefix stays"
    assert run(backend, cache, array([*other, 1])) == 50


@pytest.mark.parametrize(("host_bytes", "lengths"), [(300, [100]), (500, [100, 101]), (30, [100, 90])])
def test_what_the_host_tier_cannot_hold_stays_in_the_cells_until_they_are_needed(
    host_bytes: int, lengths: list[int]
) -> None:
    backend = FakeBackend(n_ctx=1000, n_slots=8)
    cache = PrefixCache(backend, 8, 1000, 900, HostCache(host_bytes), park_after=8)
    conversations = [array(range(1000 * n, 1000 * n + length)) for n, length in enumerate(lengths, 1)]
    for tokens in conversations:
        run(backend, cache, tokens)
    run(backend, cache, array(range(5)))
    for _ in range(100):
        cache.next_step()
    # All idle: what lies far behind in the cells is gathered.
    cache.cells.peak = 1000
    run(backend, cache, array(range(10, 15)))
    for tokens in conversations:
        assert run(backend, cache, array([*tokens.tolist(), 7])) == len(tokens)
    for n in (5000, 6000):
        assert run(backend, cache, array(range(n, n + 900))) == 0, "they go when somebody needs the cells"
    assert (cache.parking.n_parked > 0) == (host_bytes == 500), "what does not fit is not copied for nothing"


def test_a_pinned_prefix_that_the_host_tier_cannot_hold_is_not_gathered() -> None:
    backend = FakeBackend(n_ctx=1000, n_slots=8)
    cache = PrefixCache(backend, 8, 1000, 900, HostCache(100), park_after=8)
    cache.pin(array(range(200)))
    run(backend, cache, array(range(200)))
    cache.cells.peak = 1000
    assert run(backend, cache, array([*range(200), 7])) == 200


@pytest.mark.parametrize("peak", [1000, 500])
def test_a_few_cells_behind_a_long_prompt_that_is_gone_are_given_up_while_others_run(peak: int) -> None:
    """llama.cpp's attention walks over all cells up to the last one in use."""
    backend = FakeBackend(n_ctx=1000, n_slots=8)
    cache = PrefixCache(backend, 8, 1000, 900, HostCache(10_000), park_after=8)
    cache.pin(array(range(500, 505)))
    run(backend, cache, array(range(500, 505)))
    system = list(range(100))
    cache.pin(array(system))
    busy, _ = cache.acquire(array([*system, 1]), 100, 200) or pytest.fail("there is room")
    compute(backend, cache, busy, array([*system, 1]))
    small = WORTH_PARKING - 1
    assert run(backend, cache, array([*system, *range(200, 200 + small)])) == 100
    (idle,) = (slot for slot in cache.slots if slot.length == 100 + small)
    cache.cells.peak = peak
    for _ in range(7):
        cache.next_step()
    assert idle.length == 100 + small
    for _ in range(5):
        cache.next_step()
    kept = 0 if peak == 1000 else small
    assert idle.length == 100 + kept, "what it shares costs nothing"
    assert cache.cells.n_used == 101 + 5 + kept, "neither those of the busy one nor the pinned ones"
    assert cache.parking.n_parked == 0
    assert sum(slot.is_pin for slot in cache.slots) == 2, "it does not become a second one of its prefix"
    assert run(backend, cache, array([*system, *range(200, 200 + small), 7])) == 100 + kept


def test_what_is_large_and_was_used_a_while_ago_may_go_and_not_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host of 400 tokens, cells enough: (large parked, small idle), (large parked, large idle)."""
    for length in (60, 200):
        backend = FakeBackend(n_ctx=3000, n_slots=8)
        host = HostCache(1600)
        cache = PrefixCache(backend, 8, 3000, 900, host, park_after=4)
        first, second = array(range(1000, 1380)), array(range(2000, 2000 + length))
        for tokens in (first, second):
            run(backend, cache, tokens)
            for _ in range(20):
                cache.next_step()
        assert host.match(first)[1] == 380
        assert cache.match(second)[1] == length
        monkeypatch.setattr(host_cache, "MISSED_S", 0.0)
        for _ in range(20):
            cache.next_step()
        assert host.match(first)[1] == 0
        assert host.match(second)[1] == length
        assert cache.cells.n_used == 0
        monkeypatch.undo()


def test_a_pin_in_the_host_tier_makes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_cache, "MISSED_S", 0.0)
    host, pins = HostCache(100), Pins()
    host.connect(lambda report: None, pins)
    pins.add(array(range(40)))
    host.put(array(range(40)), bytearray(60))
    host.put(array(range(50, 90)), bytearray(30))
    assert host.has_place(39, 39)
    assert not host.has_place(40, 40)


def test_a_pin_is_gathered_with_the_conversation_that_shares_it() -> None:
    backend = FakeBackend(n_ctx=1000, n_slots=8)
    host = HostCache(100_000)
    cache = PrefixCache(backend, 8, 1000, 900, host, park_after=8)
    cache.pin(array(range(200)))
    run(backend, cache, array(range(200)))
    run(backend, cache, array(range(600)))
    assert [slot.length for slot in cache.slots if slot.length] == [200, 600]
    cache.cells.peak = 2000
    cache._gather()
    assert cache.cells.n_used == 0
    assert run(backend, cache, array([*range(200), 7])) == 200


def test_a_pin_stays_with_a_conversation_that_cannot_be_gathered() -> None:
    backend = FakeBackend(n_ctx=1000, n_slots=8)
    cache = PrefixCache(backend, 8, 1000, 900, HostCache(1000), park_after=8)
    cache.pin(array(range(200)))
    run(backend, cache, array(range(200)))
    run(backend, cache, array(range(600)))
    cache.cells.peak = 2000
    cache._gather()
    assert [slot.length for slot in cache.slots if slot.length] == [200, 600]


def test_what_is_used_again_is_missed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_cache, "MISSED_S", 0.05)
    host = HostCache(100)
    host.put(array(range(40)), bytearray(80))
    time.sleep(0.06)
    assert host.has_place(80, 40)
    parked = host.match(array(range(40)))[0]
    assert host.has_place(80, 40), "who was only looked at"
    host.used(parked)
    assert not host.has_place(80, 40)


def test_of_several_that_begin_alike_the_smallest_is_loaded_and_only_that_is_used() -> None:
    backend = FakeBackend(n_ctx=2000, n_slots=6)
    host = HostCache(8000)
    cache = PrefixCache(backend, 6, 2000, 1500, host)
    beginning = list(range(100))
    for n, length in ((1000, 900), (3000, 50), (5000, 300)):
        tokens = array([*beginning, *range(n, n + length)])
        host.put(tokens, bytearray(tokens))
    order = [len(parked.tokens) for parked in host._parked]
    assert order == [1000, 150, 400]
    assert run(backend, cache, array([*beginning, 7])) == 100
    assert cache.parking.n_restored == 1
    assert cache.cells.peak < 200, "the smallest of them was loaded"
    assert [len(parked.tokens) for parked in host._parked] == [1000, 400, 150]


def test_what_is_shared_for_the_most_part_stays_in_the_cells() -> None:
    backend = FakeBackend(n_ctx=2000, n_slots=6)
    host = HostCache(100_000)
    cache = PrefixCache(backend, 6, 2000, 900, host, park_after=4)
    beginning = list(range(300))
    chats = [array([*beginning, *range(n, n + own)]) for n, own in ((1000, 290), (3000, 200), (5000, 400))]
    for tokens in chats:
        run(backend, cache, tokens)
    for _ in range(40):
        cache.next_step()
    assert [cache.match(tokens)[1] for tokens in chats] == [590, 500, 300]
    assert [host.match(tokens)[1] for tokens in chats] == [300, 300, 700], "of the last one more than half is its own"
    for tokens in chats:
        assert run(backend, cache, array([*tokens.tolist(), 7])) == len(tokens)


def test_a_large_host_tier_keeps_conversations_that_are_small_beside_it() -> None:
    """A quarter of it would be 256 MiB, and each conversation that is idle pushed out another."""
    mib = 2**20
    host = HostCache(1024 * mib)
    for n in range(10):
        host.put(array(range(100 * n, 100 * n + 50)), NeverRead(100 * mib))  # type: ignore[arg-type]
    assert host.has_place(20 * mib, 500)
    assert not host.has_place(100 * mib, 500)
    small = HostCache(1024 * mib)
    for n in range(49):
        small.put(array(range(100 * n, 100 * n + 50)), NeverRead(21 * mib - 1))  # type: ignore[arg-type]
    assert small.has_place(20 * mib, 500), "chats that are over may go for others"


def chat(n: int, length: int = 50) -> np.ndarray:
    return array(range(1000 * n, 1000 * n + length))


def test_chats_take_no_more_of_the_host_tier_than_they_may_and_conversations_all_of_it() -> None:
    host = HostCache(1000, max_short_bytes=200)
    for n in range(10):
        assert host.put(chat(n), bytearray(50))
    assert (len(host), host.n_bytes) == (4, 200)
    assert [host.match(chat(n))[1] for n in range(10)] == [0] * 6 + [50] * 4, "the last four"
    assert host.put(chat(50), bytearray(201))
    assert (len(host), host.n_bytes) == (1, 201), "one alone, whatever it takes"
    for n in range(10, 14):
        assert host.put(chat(n, 300), bytearray(250))
    assert (len(host), host.n_bytes) == (4, 1000 - 250 + 250), "of all the oldest go"
    assert not host.put(chat(99), bytearray(1001))


def test_a_chat_has_a_place_where_other_chats_go_for_it() -> None:
    host = HostCache(1000, max_short_bytes=200)
    for n in range(2):
        host.put(chat(n, 300), bytearray(400))
    for n in range(2, 6):
        host.put(chat(n), bytearray(50))
    assert host.has_place(40, 50), "a chat goes, which is younger than the conversations"
    assert host.put(chat(6), bytearray(40))
    assert [host.match(chat(n, 300))[1] for n in range(7)] == [300, 300, 0, 50, 50, 50, 50]
    assert not host.has_place(260, 300), "conversations that were just used do not"
    assert not host.has_place(260, 50), "nor for a chat that is as large"
    assert not host.has_place(150, 300), "chats do not go for a conversation"
    few = HostCache(1000, max_short_bytes=200)
    for n in range(2):
        few.put(chat(n, 300), bytearray(450))
    for n in range(2, 4):
        few.put(chat(n), bytearray(50))
    assert not few.has_place(40, 50), "chats may be more: none goes, but the oldest of all"
    uncapped = HostCache(1000)
    for n in range(2):
        uncapped.put(chat(n), bytearray(500))
    assert not uncapped.has_place(260, 50)


def test_pinned_prefixes_are_no_chats() -> None:
    host, pins = HostCache(1000, max_short_bytes=100), Pins()
    host.connect(lambda report: None, pins)
    for n in range(4):
        pins.add(chat(n))
        host.put(chat(n), bytearray(50))
    for n in range(4, 10):
        host.put(chat(n), bytearray(40))
    assert (len(host), host.n_bytes) == (6, 4 * 50 + 2 * 40)
    assert all(host.match(chat(n))[1] for n in range(4))


def test_a_pinned_prefix_is_there_by_itself_although_a_conversation_begins_with_it() -> None:
    host, pins = HostCache(700), Pins()
    host.connect(lambda report: None, pins)
    pins.add(chat(1, 300))
    host.put(chat(1, 500), bytearray(400))
    assert not host.refresh(chat(1, 300))
    assert host.put(chat(1, 300), bytearray(200))
    assert host.refresh(chat(1, 300))
    assert host.refresh(chat(1, 400)), "of which the conversation has more"
    for n in range(2, 5):
        host.put(chat(n, 300), bytearray(300))
    assert host.match(chat(1, 500))[1] == 300, "the conversation is gone, and the prefix is there"


def test_who_is_brought_back_does_not_go_for_others_that_have_to_make_room() -> None:
    backend = FakeBackend(n_ctx=1000, n_slots=3)
    host = HostCache(4 * 1000)
    cache = PrefixCache(backend, 3, 1000, 900, host)
    for n, length in ((1, 400), (2, 500)):
        host.put(chat(n, length), bytearray(chat(n, length)))
    for n in (3, 4):
        run(backend, cache, chat(n, 450))
    assert run(backend, cache, array([*chat(1, 300), 7])) == 300
    assert host.match(chat(1, 400))[1] == 400
    assert host.match(chat(2, 500))[1] == 0


def test_what_cannot_be_saved_stays_in_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend(n_ctx=2000, n_slots=6)
    cache = PrefixCache(backend, 6, 2000, 900, HostCache(100_000), park_after=4)
    run(backend, cache, chat(1, 300))
    monkeypatch.setattr(backend, "save", lambda slot: bytearray())
    for _ in range(40):
        cache.next_step()
    assert run(backend, cache, chat(2, 400)) == 0
    cache.cells.peak = 2000
    cache._gather()
    assert run(backend, cache, array([*chat(1, 300), 7])) == 300


class NeverRead:
    """So many bytes of which none is there."""

    def __init__(self, n: int) -> None:
        self._n = n

    def __len__(self) -> int:
        return self._n


@pytest.mark.parametrize("how", ["idle", "a long prompt", "all idle"])
def test_a_conversation_goes_on_after_a_sliding_window_went_over_its_beginning(how: str) -> None:
    backend = FakeBackend(n_ctx=1500, n_slots=6)
    cache = PrefixCache(backend, 6, 1500, 600, HostCache(10_000), park_after=8)
    run(backend, cache, array(range(100)))
    backend.window = 8
    (slot,) = (slot for slot in cache.slots if slot.length)
    backend.first[slot.id] = 60
    if how == "idle":
        for _ in range(40):
            cache.next_step()
    elif how == "a long prompt":
        run(backend, cache, array(range(1000, 1300)))
    else:
        cache.cells.peak = 5000
    assert run(backend, cache, array([*range(100), 7])) == 100


def test_small_sequences_may_push_each_other_out_of_the_host_tier() -> None:
    """Idle cells cost time in each step of a CPU, and chats that are over seldom go on."""
    backend = FakeBackend(n_ctx=1000, n_slots=8)
    host = HostCache(2000)
    cache = PrefixCache(backend, 8, 1000, 900, host, park_after=4)
    for n in range(1, 20):
        run(backend, cache, array(range(100 * n, 100 * n + 40)))
        for _ in range(8):
            cache.next_step()
    assert cache.cells.n_used == 0
    assert 1800 < host.n_bytes <= 2000


def test_what_a_sliding_window_went_over_is_neither_shared_nor_kept() -> None:
    backend = FakeBackend(n_ctx=500, n_slots=6)
    backend.window = 8
    host = HostCache(10_000)
    cache = PrefixCache(backend, 6, 500, 300, host)
    run(backend, cache, array(range(100)))
    run(backend, cache, array(range(30)))
    long = next(slot for slot in cache.slots if slot.length == 100)
    backend.first[long.id] = 60
    assert cache.match(array([*range(40), 7])) == (next(s for s in cache.slots if s.length == 30), 30)
    assert cache.match(array([*range(70), 7])) == (long, 70), "it has the window of that"
    assert cache.match(array([*range(66), 7]))[1] == 30, "but for the first token of it"
    assert run(backend, cache, array([*range(40), 7])) == 30
    # What is left of it is not parked either.
    cache._evict(long)
    assert host.match(array(range(100)))[1] == 0


def test_a_pin_that_a_sliding_window_went_over_is_made_again() -> None:
    backend = FakeBackend(n_ctx=500, n_slots=6)
    backend.window = 8
    cache = PrefixCache(backend, 6, 500, 300)
    cache.pin(array(range(40)))
    run(backend, cache, array([*range(40), 7]))
    (pin,) = (slot for slot in cache.slots if slot.is_pin)
    for slot in cache.slots:
        backend.first[slot.id] = min(35, slot.length)
    assert run(backend, cache, array([*range(40), 8])) == 0
    assert [slot.id for slot in cache.slots if slot.is_pin and backend.holds(slot.id, 40)] not in ([], [pin.id])
    assert run(backend, cache, array([*range(40), 9])) == 40


def test_a_longer_sequence_does_not_take_the_place_of_a_pinned_one_in_the_host_tier() -> None:
    host, pins = HostCache(10_000), Pins()
    host.connect(lambda report: None, pins)
    pins.add(array(range(40)))
    for length in (40, 50, 60):
        host.put(array(range(length)), bytearray(length))
    assert len(host) == 2


def test_the_bytes_of_each_tier_are_counted() -> None:
    backend = FakeBackend(n_ctx=100, n_slots=4)
    cache = PrefixCache(backend, 4, 100, 100, HostCache(10_000))
    run(backend, cache, array(range(60)))
    assert cache.parking.kv_bytes() == TierBytes(240, 0, 0)
    run(backend, cache, array(range(100, 170)))
    assert cache.parking.kv_bytes() == TierBytes(280, 240, 0)


def test_what_is_computed_sooner_than_loaded_is_neither_parked_nor_loaded() -> None:
    for loads_per_s, parks in ((10.0, False), (10.0**9, True)):
        backend = FakeBackend(n_ctx=100, n_slots=4)
        host = HostCache(10_000)
        cache = PrefixCache(backend, 4, 100, 100, host)
        cache.parking.rates.computed.add(1000, 1.0)
        cache.parking.rates.loaded.add(loads_per_s, 1.0)
        run(backend, cache, array(range(60)))
        run(backend, cache, array(range(100, 170)))
        assert len(host) == parks
        host.put(array(range(60)), bytearray(array(range(60)).tobytes()))
        assert run(backend, cache, array([*range(60), 7])) == (60 if parks else 0)


def test_what_is_in_the_host_tier_already_is_not_saved_again() -> None:
    backend = FakeBackend(n_ctx=100, n_slots=4)
    host = HostCache(10_000)
    cache = PrefixCache(backend, 4, 100, 100, host)
    host.put(array(range(80)), bytearray(array(range(80)).tobytes()))
    run(backend, cache, array(range(60)))
    run(backend, cache, array(range(100, 170)))
    assert (len(host), cache.parking.n_parked) == (1, 0)


def test_rates_follow_what_was_measured_last_and_a_bad_one_is_tried_again() -> None:
    rate = Rate()
    assert rate.seconds(5) == 0
    for _ in range(60):
        rate.add(100, 1.0)
    assert rate.seconds(100) == pytest.approx(1.0)
    for _ in range(60):
        rate.add(100, 0.1)
    assert rate.seconds(100) == pytest.approx(0.1, rel=0.05)
    rates = Rates()
    assert rates.loading_pays(1, 10**9), "nothing was measured yet"
    rates.computed.add(1000, 1.0)
    rates.loaded.add(1, 1.0)
    assert sum(rates.loading_pays(100, 1000) for _ in range(100)) == 5


def test_the_floor_below_which_nothing_is_moved() -> None:
    backend = FakeBackend(n_ctx=100, n_slots=4)
    host = HostCache(10_000)
    cache = PrefixCache(backend, 4, 100, 100, host)
    run(backend, cache, array(range(WORTH_PARKING - 1)))
    run(backend, cache, array(range(100, 190)))
    assert len(host) == 0
