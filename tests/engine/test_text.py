"""UTF-8 assembly and stop strings, also against a definition that is obviously right."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llm_local.engine.text import LogprobQueue, TextStream
from llm_local.engine.types import TokenLogprob
from tests.examples import examples

TEXTS = st.text(alphabet="abП🙂é", max_size=30)
STOPS = st.lists(st.text(alphabet="abП🙂", min_size=1, max_size=4), max_size=3)
CUTS = st.lists(st.integers(0, 200))


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *[cut % (len(data) + 1) for cut in cuts]})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(TEXTS, STOPS, CUTS)
@examples(100)
def test_text_is_cut_at_the_stop_string_that_is_complete_first_however_it_is_split(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    stream, out = TextStream(stops), ""
    for piece in pieces_of(text.encode(), cuts):
        out += stream.push(piece)
        assert not any(stop in out for stop in stops)
        if stream.stopped_by is not None:
            break
    out += stream.flush()
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert out == (text[: min(ends)[1]] if ends else text)
    assert (stream.stopped_by is not None) == bool(ends)


@given(TEXTS, STOPS, CUTS)
@examples(100)
def test_the_bytes_of_released_logprobs_join_to_the_text(text: str, stops: list[str], cuts: list[int]) -> None:
    stream, queue, out, entries = TextStream(stops), LogprobQueue(), "", []
    for piece in pieces_of(text.encode(), cuts):
        out += stream.push(piece)
        queue.push(TokenLogprob(0, piece, -1.0))
        entries += queue.release(stream.n_released)
        assert out.encode().startswith(b"".join(entry.piece for entry in entries))
        if stream.stopped_by is not None:
            break
    out += stream.flush()
    entries += queue.release(stream.n_released, last=True)
    assert b"".join(entry.piece for entry in entries) == out.encode()


def test_a_character_is_released_when_its_last_byte_is_there() -> None:
    stream = TextStream()
    assert [stream.push(bytes([byte])) for byte in "Я🙂".encode()] == ["", "Я", "", "", "", "🙂"]


def test_an_unfinished_character_at_the_end_is_dropped_not_replaced() -> None:
    stream = TextStream()
    assert stream.push("да🙂".encode()[:-1]) + stream.flush() == "да"


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    assert TextStream().push(b"a\xffb") == "a\ufffdb"


def test_what_may_begin_a_stop_string_is_held_and_then_released() -> None:
    stream = TextStream(["\n\nUser:"])
    assert stream.push(b"ok\n\nUs") == "ok"
    assert stream.push(b"ual") == "\n\nUsual"
