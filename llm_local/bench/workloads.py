"""The workloads: which requests a client sends, one after the other. Pure: they know neither clocks nor connections.

A session is a generator that yields requests and is sent their answers, so that a conversation can go on from what was
said. `interrupt` and `backchannel` need more than clients that wait for their answers; they are in `scenes.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

from llm_local.bench import prompts
from llm_local.bench.client import Answer, Request
from llm_local.bench.prompts import system, user
from llm_local.bench.writer import Place, Writer

Session = Generator[Request, Answer, None]
PRIORITY = -1
"""Lower is sooner; as in vLLM."""
N_BACKCHANNEL = 8
"""Tokens of a backchannel: a few words."""


def question(writer: Writer, place: Place) -> str:
    """Return a question with a tag before it that no cache has seen."""
    return f"{writer.tag(place)}: {prompts.QUESTIONS[(place.client + place.turn) % len(prompts.QUESTIONS)]}"


def language_of(place: Place) -> str:
    """Russian and English in turn."""
    return "ru" if (place.client + place.turn) % 2 == 0 else "en"


def chat(writer: Writer, place: Place) -> Session:
    """Yield a short question to the interviewer."""
    yield writer.chat(place, [system(prompts.SYSTEM), user(question(writer, place))])


def long_prompt(writer: Writer, place: Place) -> Session:
    """Yield a question about a long text (--prompt-tokens, 4,000)."""
    text = writer.text(place, writer.options.prompt_tokens or 4000, language_of(place))
    yield writer.chat(place, [system(prompts.SYSTEM), user(f"{writer.tag(place)}: {text}\n\n{prompts.QUESTIONS[0]}")])


def cold_system(writer: Writer, place: Place) -> Session:
    """Yield a question under a long system prompt (--prompt-tokens, 440) that is new in each turn of each round."""
    together = replace(place, client=0)
    text = writer.text(together, writer.options.prompt_tokens or 440, "ru")
    prompt = f"{writer.tag(together)} {prompts.SYSTEM} {text}"
    yield writer.chat(place, [system(prompt), user(question(writer, place))])


def shared_system(writer: Writer, place: Place) -> Session:
    """Yield a question under a long system prompt (--prompt-tokens, 440) that was warmed up before the round."""
    always = replace(place, round=0, client=0, turn=0)
    text = writer.text(always, writer.options.prompt_tokens or 440, "ru")
    prompt = f"{writer.tag(always, of='server')} {prompts.SYSTEM} {text}"
    yield writer.chat(place, [system(prompt), user(question(writer, place))])


def multi_turn(writer: Writer, place: Place) -> Session:
    """Yield the turns of a conversation (--turns); its first prompt has --prompt-tokens, 300."""
    text = writer.text(place, writer.options.prompt_tokens or 300, language_of(place))
    messages = [system(prompts.SYSTEM), user(f"{writer.tag(place)}: {text} {prompts.QUESTIONS[0]}")]
    for turn in range(writer.options.turns):
        answer = yield writer.chat(place, list(messages), group="later turns" if turn else "first turn")
        if answer.error:
            return
        at = (place.client + place.turn + turn + 1) % len(prompts.QUESTIONS)
        messages += [{"role": "assistant", "content": answer.text}, user(prompts.QUESTIONS[at])]


def schema(writer: Writer, place: Place) -> Session:
    """Yield a question whose answer must fit the interviewer's JSON schema, and is checked against it."""
    yield schema_request(writer, place)


def schema_request(writer: Writer, place: Place, group: str = "") -> Request:
    """Return the request of `schema`; its answer ends itself, and has room for 3 times --max-tokens."""
    from llm_local.bench.check import fits_schema

    wanted = {"name": "turn", "strict": True, "schema": prompts.INTERVIEWER_SCHEMA}
    return writer.chat(
        place,
        [system(prompts.INTERVIEWER), user(question(writer, place))],
        n=3 * writer.options.max_tokens,
        group=group,
        ignore_eos=False,
        response_format={"type": "json_schema", "json_schema": wanted},
        check=fits_schema(prompts.INTERVIEWER_SCHEMA),
    )


def rewrite(writer: Writer, place: Place) -> Session:
    """Yield a text or a JSON document (--prompt-tokens, 200) to be repeated with one change; greedy."""
    random = writer.random(place)
    n_tokens = writer.options.prompt_tokens or 200
    kind = "JSON edit" if (place.client + place.turn) % 2 == 0 else "text"
    if kind == "JSON edit":
        text, instruction, changed = prompts.document(random, writer.scale.characters(n_tokens, "json"))
    else:
        language = "ru" if (place.client + place.turn) % 4 == 1 else "en"
        text, instruction, changed = prompts.prose(random, writer.scale.characters(n_tokens, language), language)
    predicted = {"prediction": {"type": "content", "content": changed}} if writer.options.prediction else {}
    temperature = writer.options.temperature
    yield writer.chat(
        place,
        [system(f"{writer.tag(place)}. You edit texts."), user(f"{instruction}\n\n{text}")],
        n=n_tokens * 4 // 3,
        group=kind,
        temperature=0.0 if temperature is None else temperature,
        ignore_eos=False,
        **predicted,
    )


def embeddings(writer: Writer, place: Place) -> Session:
    """Yield a batch of texts (--batch, of --prompt-tokens, 40, each) to be embedded."""
    n_tokens = writer.options.prompt_tokens or 40
    texts = [
        f"{writer.tag(place)} {writer.text(place, n_tokens, 'ru' if index % 2 else 'en', str(index))}"
        for index in range(writer.options.batch)
    ]
    # base64 is what OpenAI's own client asks for.
    body = writer.finish(place, {"input": texts, "encoding_format": "base64"}, embeds=True)
    yield Request(body, "/embeddings")


def backchannel_request(writer: Writer, place: Place, *, urgent: bool, group: str) -> Request:
    """Return a short aside whose answer has 8 tokens, with priority or without."""
    aside = prompts.ASIDES[place.turn % len(prompts.ASIDES)]
    urgency = {"priority": PRIORITY} if urgent else {}
    messages = [system(prompts.SYSTEM), user(f"{writer.tag(place)}: {aside}")]
    return writer.chat(place, messages, n=N_BACKCHANNEL, group=group, **urgency)


def mixed(writer: Writer, place: Place) -> Session:
    """Yield what a busy service sees: of ten 5 chats, 2 backchannels with priority, 2 schemas, 1 long prompt."""
    kind = (place.client * 3 + place.turn) % 10
    if kind in (1, 6):
        yield backchannel_request(writer, place, urgent=True, group="backchannel")
    elif kind in (3, 8):
        yield schema_request(writer, place, "schema")
    elif kind == 5:
        text = writer.text(place, writer.options.prompt_tokens or 1000, language_of(place))
        yield writer.chat(place, [system(prompts.SYSTEM), user(f"{writer.tag(place)}: {text}")], group="long prompt")
    else:
        yield writer.chat(place, [system(prompts.SYSTEM), user(question(writer, place))], group="chat")


STANDARD_COLUMNS = ("tok_s", "ttft_p50_ms", "ttft_p90_ms", "gap_p50_ms", "gap_p99_ms", "e2e_p50_ms")


@dataclass(frozen=True, slots=True)
class Workload:
    """A named kind of work, and how its clients behave unless the options say otherwise."""

    name: str
    about: str
    session: Callable[[Writer, Place], Session] | None = None
    clients: tuple[int, ...] = (1, 4, 8)
    requests: int = 2
    together: bool = False
    """All clients send at the same moment, then wait for each other."""
    warm: bool = False
    """One session of each server goes before the rounds, unmeasured."""
    contrast: tuple[str, str] | None = None
    """Two groups whose figures are compared within one server."""
    columns: tuple[str, ...] = STANDARD_COLUMNS


_PROMPTS = ("prompt_tokens", "cached_tokens")
_WORKLOADS = (
    Workload(
        "chat",
        "short questions, plain answers",
        chat,
        columns=(*STANDARD_COLUMNS, "answer_tok_s_p50", "answer_tok_s_p10"),
    ),
    Workload(
        "long-prompt",
        "questions about texts of 4,000 tokens (--prompt-tokens)",
        long_prompt,
        clients=(1, 4),
        columns=("tok_s", "ttft_p50_ms", "ttft_p90_ms", "gap_p50_ms", "gap_p99_ms", *_PROMPTS),
    ),
    Workload(
        "cold-system",
        "clients arrive together with one system prompt of 440 tokens (--prompt-tokens) that none has seen",
        cold_system,
        clients=(8,),
        requests=1,
        together=True,
        columns=("tok_s", "ttft_p50_ms", "ttft_p90_ms", "gap_p99_ms", "e2e_p50_ms", *_PROMPTS),
    ),
    Workload(
        "shared-system",
        "the same, with a system prompt that was seen before",
        shared_system,
        clients=(8,),
        warm=True,
        columns=("tok_s", "ttft_p50_ms", "ttft_p90_ms", "gap_p99_ms", "e2e_p50_ms", *_PROMPTS),
    ),
    Workload(
        "multi-turn",
        "conversations (--turns): the first turn and the later ones apart",
        multi_turn,
        clients=(1, 4),
        requests=1,
        contrast=("later turns", "first turn"),
        columns=("tok_s", "ttft_p50_ms", "ttft_p90_ms", "gap_p50_ms", "gap_p99_ms", *_PROMPTS),
    ),
    Workload(
        "schema",
        "answers under the interviewer's JSON schema, checked against it",
        schema,
        clients=(1, 4),
        # Servers that indent their JSON write more tokens for the same answer: tok/s alone would flatter them.
        columns=("tok_s", "requests_s", "ttft_p50_ms", "gap_p50_ms", "gap_p99_ms", "e2e_p50_ms", "output_tokens"),
    ),
    Workload(
        "rewrite",
        "answers that repeat their prompt: JSON edits and texts; greedy (--prediction sends what is expected)",
        rewrite,
        clients=(1,),
        columns=(
            "answer_tok_s_p50",
            "tok_s",
            "ttft_p50_ms",
            "e2e_p50_ms",
            "output_tokens",
            "accepted_tokens",
            "rejected_tokens",
        ),
    ),
    Workload(
        "embeddings",
        "batches of texts (--batch) to be embedded",
        embeddings,
        clients=(1, 8),
        requests=8,
        columns=("inputs_s", "requests_s", "e2e_p50_ms", "e2e_p90_ms", "e2e_p99_ms", "prompt_tokens"),
    ),
    Workload(
        "interrupt",
        "running answers (--clients, 3) while one prompt of 4,000 tokens (--prompt-tokens) arrives",
        clients=(3,),
        requests=1,
        columns=("gap_p50_ms", "gap_p90_ms", "gap_p99_ms", "gap_max_ms", "ttft_p50_ms", *_PROMPTS),
    ),
    Workload(
        "backchannel",
        "8 tokens with and without priority while --clients others keep the server full",
        clients=(8,),
        requests=4,
        contrast=("with priority", "without"),
        columns=("ttft_p50_ms", "e2e_p50_ms", "e2e_p90_ms", "e2e_p99_ms", "gap_p99_ms"),
    ),
    Workload(
        "mixed",
        "chats, backchannels with priority, schemas and long prompts together",
        mixed,
        clients=(4,),
        requests=10,
    ),
)
WORKLOADS = {workload.name: workload for workload in _WORKLOADS}
