"""What is sent: valid for our server, the same for every server, new in every round, plain when asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_local.bench import prompts
from llm_local.bench.check import fits_schema
from llm_local.bench.client import Answer, Request
from llm_local.bench.options import Options, Server
from llm_local.bench.prompts import Scale
from llm_local.bench.workloads import WORKLOADS, backchannel_request
from llm_local.bench.writer import Place, Writer
from llm_local.server.schema import ChatRequest, EmbeddingRequest

SERVERS = (Server("ours", ""), Server("peer", ""))
SESSIONS = [name for name, workload in WORKLOADS.items() if workload.session]
OPENAI = {
    *("model", "messages", "max_completion_tokens", "temperature", "top_p", "seed", "stream", "stream_options"),
    *("response_format", "prediction", "input", "encoding_format"),
}


def writer(**options: Any) -> Writer:
    return Writer(Options(servers=SERVERS, **options), Scale(), {"ours": "m", "peer": "m"}, {"ours": "e", "peer": "e"})


def played(name: str, place: Place, **options: Any) -> list[Request]:
    """All requests of a session, each answered with the same text."""
    start = WORKLOADS[name].session
    assert start is not None
    session = start(writer(**options), place)
    requests = [next(session)]
    while True:
        answer = Answer(lines=[b'data: {"choices": [{"delta": {"content": "Yes."}}]}'])
        try:
            requests.append(session.send(answer))
        except StopIteration:
            return requests


def at(name: str, **where: Any) -> Place:
    return Place(**{"workload": name, "server": "ours", "load": "1 client", "round": 0, "client": 0, "turn": 0} | where)


def without_digits(request: Request) -> str:
    return "".join("#" if char.isdigit() else char for char in json.dumps(request.body, ensure_ascii=False))


@pytest.mark.parametrize("name", SESSIONS)
@pytest.mark.parametrize("plain", [False, True])
def test_every_request_is_valid_for_our_server(name: str, plain: bool) -> None:
    for client in range(10):
        for request in played(name, at(name, client=client), plain_openai=plain, prediction=True):
            kind = EmbeddingRequest if request.path == "/embeddings" else ChatRequest
            kind.model_validate(request.body)
            if plain:
                assert set(request.body) <= OPENAI


def test_backchannels_are_valid_and_only_the_urgent_ones_have_a_priority() -> None:
    w = writer()
    urgent, other = (backchannel_request(w, at("backchannel"), urgent=urgent, group="") for urgent in (True, False))
    ChatRequest.model_validate(urgent.body)
    assert urgent.body == other.body | {"priority": -1}


@pytest.mark.parametrize("name", SESSIONS)
def test_servers_get_the_same_words_up_to_a_tag_and_rounds_get_new_ones(name: str) -> None:
    ours, peer, later = (
        played(name, at(name, **where)) for where in ({}, {"server": "peer"}, {"round": 1, "server": "ours"})
    )
    for a, b, c in zip(ours, peer, later, strict=True):
        assert without_digits(a) == without_digits(b)
        assert a.body != b.body
        assert a.body != c.body


def test_a_cold_system_prompt_is_one_for_all_clients_of_a_turn_and_new_in_the_next() -> None:
    def prompt(**where: Any) -> str:
        return str(played("cold-system", at("cold-system", **where))[0].body["messages"][0]["content"])

    assert prompt(client=0) == prompt(client=5)
    # New from its first token on: nothing of it lies in a cache.
    others = [prompt(turn=1), prompt(round=1), prompt(server="peer")]
    assert len({text[:9] for text in [prompt(), *others]}) == 4
    assert played("cold-system", at("cold-system"), nonce="1")[0].body["messages"][0]["content"] != prompt()


def test_a_shared_system_prompt_stays_through_rounds() -> None:
    first, later = (played("shared-system", at("shared-system", round=r, client=r))[0].body for r in (-1, 3))
    assert first["messages"][0] == later["messages"][0]
    assert first["messages"][1] != later["messages"][1]


@pytest.mark.parametrize(("name", "n"), [("long-prompt", 4000), ("long-prompt", 500), ("cold-system", 2000)])
def test_long_prompts_are_as_long_as_asked_for(name: str, n: int) -> None:
    for client in (0, 1):
        body = played(name, at(name, client=client), prompt_tokens=n)[0].body
        length = max(len(message["content"]) for message in body["messages"])
        russian = name == "cold-system" or client == 0
        assert length / (Scale().russian if russian else Scale().english) == pytest.approx(
            n, rel=0.25 if n < 1000 else 0.05
        )


def test_sampling_is_the_same_on_servers_with_other_defaults() -> None:
    (request,) = played("chat", at("chat"))
    assert (request.body["top_k"], request.body["min_p"]) == (40, 0.0)
    (plain,) = played("chat", at("chat"), plain_openai=True)
    assert not {"top_k", "min_p"} & set(plain.body)


def test_texts_are_in_both_languages() -> None:
    texts = [played("long-prompt", at("long-prompt", client=c))[0].body["messages"][1]["content"] for c in (0, 1)]
    share = [sum("а" <= char <= "я" for char in text.lower()) / len(text) for text in texts]
    assert share[0] > 0.5
    assert share[1] < 0.1


def test_a_rewrite_is_greedy_and_its_prediction_is_the_prompt_with_one_change() -> None:
    edit, text = (played("rewrite", at("rewrite", client=c), prediction=True)[0] for c in (0, 1))
    assert edit.body["temperature"] == 0
    predicted = json.loads(edit.body["prediction"]["content"])
    given = json.loads(edit.body["messages"][1]["content"].split("\n\n", 1)[1])
    assert len([1 for a, b in zip(given, predicted, strict=True) if a != b]) == 1
    assert "контракт" in text.body["prediction"]["content"]
    assert "prediction" not in played("rewrite", at("rewrite"))[0].body


def test_lengths_lie_around_what_was_asked_for_and_are_fixed() -> None:
    bodies = [played("chat", at("chat", client=c, turn=t))[0].body for c in range(8) for t in range(8)]
    lengths = {body["max_tokens"] for body in bodies}
    assert (min(lengths), max(lengths)) == (48, 80)
    assert all(body["ignore_eos"] for body in bodies)


def test_extra_fields_go_to_the_server_that_they_name_and_none_takes_one_away() -> None:
    extra = {"": {"top_k": 1}, "peer": {"top_p": None, "user": "x"}}
    ours, peer = (played("chat", at("chat", server=name), extra=extra)[0].body for name in ("ours", "peer"))
    assert (ours["top_k"], peer["top_k"]) == (1, 1)
    assert "user" not in ours
    assert peer["user"] == "x"
    assert "top_p" not in peer


def test_answers_are_checked_against_the_schema() -> None:
    check = fits_schema(prompts.INTERVIEWER_SCHEMA)
    fine = {
        "reply": "a",
        "next_node_id": "b",
        "scoring_update": {"block": "c", "delta": 1, "score": 2},
        "red_flags": [],
    }
    assert check(json.dumps(fine)) is None
    assert check('{"reply": "a"') == "not JSON"
    assert check(json.dumps(fine | {"red_flags": 1})) == "does not fit the schema: type at $.red_flags"
