"""The client on real weights."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llm_local.client import AsyncLocalLLMClient, InterviewReply, LocalLLMClient, Target, interview
from tests.model.conftest import Process, served

pytestmark = pytest.mark.model

TRANSCRIPT = [
    {"role": "interviewer", "content": "Что такое фрод?"},
    {"role": "candidate", "content": "Это мошеннические операции с картами клиентов."},
]
CONTEXT = {"node": "start", "next": ["metrics", "end"]}


def test_a_small_model_gives_a_whole_reply_under_the_schema(smol_server: Process) -> None:
    """The content of a 135M model is worth nothing; its shape is right, because the server enforces it."""
    target = Target(base_url=f"{smol_server.url}/v1", model="smollm2-135m-instruct")
    schema = interview.json_schema()
    # Short texts, which fit 512 tokens whatever the model says.
    properties = schema["json_schema"]["schema"]["properties"]
    properties["reply"]["maxLength"] = 40
    properties["next_node_id"] = {"enum": ["metrics", "end", None]}
    properties["red_flags"] |= {"maxItems": 1, "items": {"type": "string", "maxLength": 20}}
    schema["json_schema"]["schema"]["$defs"]["ScoringUpdate"]["properties"] = {
        "block": {"enum": list(interview.PROFILES["ba_anti_fraud"].blocks)},
        "delta": {"type": "integer", "minimum": -1, "maximum": 1},
        "score": {"type": "integer", "minimum": 0, "maximum": 10},
    }
    with LocalLLMClient(target, timeout_s=240) as client:
        reply = client.generate_interview_response(TRANSCRIPT, CONTEXT, "ba_anti_fraud", response_format=schema)
    assert isinstance(reply, InterviewReply)
    assert reply.next_node_id in ("metrics", "end", None)
    assert reply.scoring_update is None or reply.scoring_update.block in interview.PROFILES["ba_anti_fraud"].blocks


def test_the_schema_of_the_reply_itself_is_enforced_with_what_the_environment_calls_the_model(tmp_path: Path) -> None:
    with served(tmp_path, "--ctx", "4096", "--json-close", "true", "--embedding", "false") as server:
        target = Target.from_environment({"LLM_BASE_URL": f"{server.url}/v1", "LLM_MODEL": "smollm2-135m"})

        async def call() -> InterviewReply:
            async with AsyncLocalLLMClient(target, timeout_s=240) as client:
                return await client.generate_interview_response(
                    TRANSCRIPT, CONTEXT, "ba", response_format=interview.json_schema(), max_tokens=96
                )

        assert asyncio.run(call()).reply
