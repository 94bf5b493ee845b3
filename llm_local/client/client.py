"""The two clients: the same calls, one waiting for the event loop, the other holding its thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from typing import Any, Literal, overload

import httpx

from llm_local.client import interview
from llm_local.client.errors import LLMClientError, UnusableReply
from llm_local.client.exchange import Exchange, Pieces, from_answer, from_exception, text_of, whole
from llm_local.client.interview import InterviewReply, RoleProfile
from llm_local.client.target import LLAMA_CPP, Target

Messages = SequenceOf[Mapping[str, Any]]
TIMEOUT_S = 30.0
N_RETRIES = 2
ERRORS = (httpx.HTTPError, TimeoutError)


class _Calls:
    """What the two clients share: the target, and what a call sends."""

    def __init__(
        self, target: Target | None = None, *, timeout_s: float = TIMEOUT_S, n_retries: int = N_RETRIES
    ) -> None:
        self.target = target or Target.from_environment()
        self.timeout_s = timeout_s
        self.n_retries = n_retries

    def _exchange(self, messages: Messages, stream: bool, fields: Mapping[str, Any]) -> Exchange:
        body = {"model": self.target.model, "messages": list(messages), "stream": stream, **fields}
        return Exchange(self.target, body, self.timeout_s, self.n_retries)

    def _interview(self, prompts: Messages, fields: Mapping[str, Any]) -> Exchange:
        own = {"response_format": interview.JSON_OBJECT} if self.target.engine == LLAMA_CPP else {}
        return self._exchange(prompts, False, {**interview.FIELDS, **own, **fields})

    def _stricter(self, exchange: Exchange, fields: Mapping[str, Any]) -> Exchange | None:
        """Return the same call under the reply's own schema; None where the format is not ours to choose."""
        if self.target.engine != LLAMA_CPP or "response_format" in fields:
            return None
        return exchange.again(response_format=interview.json_schema())

    def _error(self, error: Exception) -> LLMClientError:
        return from_exception(error, self.target.base_url, self.timeout_s)


class LocalLLMClient(_Calls):
    """Calls that hold the calling thread. One client may be used by several threads; close it, or use it in `with`.

    Args:
        target: unset: what the environment says, see `Target.from_environment`.
        timeout_s: most seconds of a call, retries included.
        n_retries: how often a server that is busy (429, 503) or absent is asked again.
    """

    def __init__(
        self, target: Target | None = None, *, timeout_s: float = TIMEOUT_S, n_retries: int = N_RETRIES
    ) -> None:
        super().__init__(target, timeout_s=timeout_s, n_retries=n_retries)
        self._http = httpx.Client()

    def __enter__(self) -> LocalLLMClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @overload
    def chat_completion(self, messages: Messages, stream: Literal[False] = False, **fields: Any) -> dict[str, Any]: ...
    @overload
    def chat_completion(self, messages: Messages, stream: Literal[True], **fields: Any) -> Iterator[str]: ...
    def chat_completion(
        self, messages: Messages, stream: bool = False, **fields: Any
    ) -> dict[str, Any] | Iterator[str]:
        """Return OpenAI's answer as a dictionary or, streaming, an iterator of text pieces.

        Args:
            fields: any other field of the API.

        Raises:
            LLMClientError: see `errors`; of a stream also while it is read.
        """
        exchange = self._exchange(messages, stream, fields)
        return self._pieces(self._open(exchange), exchange) if stream else self._whole(exchange)

    def generate_interview_response(
        self,
        transcript: str | SequenceOf[Mapping[str, str]],
        context: str | Mapping[str, Any],
        role_profile: str | RoleProfile,
        **fields: Any,
    ) -> InterviewReply:
        """Return what the interviewer says next.

        With llama.cpp, a text that is no such reply is asked for once more under the reply's own schema, in what is
        left of the time.

        Args:
            transcript, context, role_profile: see `interview.messages`.
            fields: in place of temperature 0.1, max_tokens 512 and, with llama.cpp, `response_format` json_object. With
                a `response_format` of the caller's there is no second call.

        Raises:
            UnusableReply: the model's text is no such reply.
            LLMClientError: there is no answer, to the second call if there was one.
        """
        exchange = self._interview(interview.messages(transcript, context, role_profile), fields)
        try:
            return interview.parse(*text_of(self._whole(exchange)))
        except UnusableReply:
            stricter = self._stricter(exchange, fields)
            if stricter is None:
                raise
            return interview.parse(*text_of(self._whole(stricter)))

    def _whole(self, exchange: Exchange) -> dict[str, Any]:
        answer = self._open(exchange)
        try:
            return whole(b"".join(_in_time(answer.iter_bytes(), exchange)))
        except ERRORS as error:
            raise self._error(error) from None
        finally:
            answer.close()

    def _open(self, exchange: Exchange) -> httpx.Response:
        while True:
            try:
                answer = self._http.send(exchange.request(self._http), stream=True)
                if answer.is_success:
                    return answer
                data = answer.read()
                answer.close()
                error = from_answer(answer.status_code, answer.headers, data)
            except ERRORS as failure:
                error = self._error(failure)
            time.sleep(exchange.pause_after(error))

    def _pieces(self, answer: httpx.Response, exchange: Exchange) -> Iterator[str]:
        pieces = Pieces()
        try:
            for data in _in_time(answer.iter_bytes(), exchange):
                yield from pieces.feed(data)
            pieces.check_done()
        except ERRORS as error:
            raise self._error(error) from None
        finally:
            answer.close()


def _in_time(parts: Iterator[bytes], exchange: Exchange) -> Iterator[bytes]:
    """Yield what comes until the deadline; httpx's own limit is of each read."""
    for part in parts:
        if time.monotonic() > exchange.deadline:
            raise TimeoutError
        yield part


class AsyncLocalLLMClient(_Calls):
    """The same calls for an event loop; a call that is cancelled ends at the server, too.

    Args:
        target, timeout_s, n_retries: as of `LocalLLMClient`.
    """

    def __init__(
        self, target: Target | None = None, *, timeout_s: float = TIMEOUT_S, n_retries: int = N_RETRIES
    ) -> None:
        super().__init__(target, timeout_s=timeout_s, n_retries=n_retries)
        self._http = httpx.AsyncClient()

    async def __aenter__(self) -> AsyncLocalLLMClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @overload
    async def chat_completion(
        self, messages: Messages, stream: Literal[False] = False, **fields: Any
    ) -> dict[str, Any]: ...
    @overload
    async def chat_completion(self, messages: Messages, stream: Literal[True], **fields: Any) -> AsyncIterator[str]: ...
    async def chat_completion(
        self, messages: Messages, stream: bool = False, **fields: Any
    ) -> dict[str, Any] | AsyncIterator[str]:
        """Return OpenAI's answer as a dictionary or, streaming, an iterator of text pieces.

        Raises:
            LLMClientError: see `errors`; of a stream also while it is read.
        """
        exchange = self._exchange(messages, stream, fields)
        return self._pieces(await self._open(exchange), exchange) if stream else await self._whole(exchange)

    async def generate_interview_response(
        self,
        transcript: str | SequenceOf[Mapping[str, str]],
        context: str | Mapping[str, Any],
        role_profile: str | RoleProfile,
        **fields: Any,
    ) -> InterviewReply:
        """Return what the interviewer says next; see `LocalLLMClient.generate_interview_response`.

        Raises:
            UnusableReply: the model's text is no such reply.
            LLMClientError: there is no answer.
        """
        exchange = self._interview(interview.messages(transcript, context, role_profile), fields)
        try:
            return interview.parse(*text_of(await self._whole(exchange)))
        except UnusableReply:
            stricter = self._stricter(exchange, fields)
            if stricter is None:
                raise
            return interview.parse(*text_of(await self._whole(stricter)))

    async def _whole(self, exchange: Exchange) -> dict[str, Any]:
        answer = await self._open(exchange)
        try:
            async with asyncio.timeout(exchange.left_s):
                return whole(await answer.aread())
        except ERRORS as error:
            raise self._error(error) from None
        finally:
            await answer.aclose()

    async def _open(self, exchange: Exchange) -> httpx.Response:
        while True:
            try:
                async with asyncio.timeout(exchange.left_s):
                    answer = await self._http.send(exchange.request(self._http), stream=True)
                    if answer.is_success:
                        return answer
                    data = await answer.aread()
                await answer.aclose()
                error = from_answer(answer.status_code, answer.headers, data)
            except ERRORS as failure:
                error = self._error(failure)
            await asyncio.sleep(exchange.pause_after(error))

    async def _pieces(self, answer: httpx.Response, exchange: Exchange) -> AsyncIterator[str]:
        pieces, parts = Pieces(), answer.aiter_bytes()
        try:
            while True:
                async with asyncio.timeout(exchange.left_s):
                    data = await anext(parts, None)
                if data is None:
                    break
                for text in pieces.feed(data):
                    yield text
            pieces.check_done()
        except ERRORS as error:
            raise self._error(error) from None
        finally:
            await answer.aclose()
