"""A small client for this server and for other OpenAI servers; imports nothing of the server.

client = LocalLLMClient()
client.chat_completion([{"role": "user", "content": "Привет"}])["choices"][0]["message"]["content"]
client.generate_interview_response(transcript, context, "ba_anti_fraud").reply
"""

from llm_local.client.client import AsyncLocalLLMClient, LocalLLMClient
from llm_local.client.errors import (
    LLMClientError,
    RequestRefused,
    ServerBusy,
    ServerFailed,
    ServerUnreachable,
    TimedOut,
    UnusableReply,
)
from llm_local.client.interview import PROFILES, InterviewReply, RoleProfile, ScoringUpdate
from llm_local.client.target import Target

__all__ = [
    "PROFILES",
    "AsyncLocalLLMClient",
    "InterviewReply",
    "LLMClientError",
    "LocalLLMClient",
    "RequestRefused",
    "RoleProfile",
    "ScoringUpdate",
    "ServerBusy",
    "ServerFailed",
    "ServerUnreachable",
    "Target",
    "TimedOut",
    "UnusableReply",
]
