"""LlamaGrammar over a fake vocabulary: the converter is llama-cpp-python's own, its grammars run on llguidance."""

from __future__ import annotations

from llm_local.structured.guidance import CompiledGuidance, Guidance


class FakeNative:
    """`structured.native.NativeGrammars`; knows what it was given last."""

    def __init__(self, guidance: Guidance) -> None:
        self._guidance = guidance
        self.last = ""

    def gbnf_of_schema(self, schema: str) -> str:
        from llama_cpp.llama_grammar import LlamaGrammar

        return str(LlamaGrammar.from_json_schema(schema, verbose=False)._grammar)

    def compile(self, gbnf: str, named: frozenset[str]) -> CompiledGuidance:
        assert not named, "llguidance's translation knows no tokens"
        self.last = gbnf
        return self._guidance.gbnf(gbnf)

    def is_token(self, text: str) -> bool:
        return False
