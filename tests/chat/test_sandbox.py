"""A template from a GGUF cannot run for ever or fill the memory, and whatever real templates do still works."""

from __future__ import annotations

import time

import pytest

from llm_local.chat import sandbox
from llm_local.chat.template import ChatTemplate
from llm_local.errors import RequestError, StartupError

USER = [{"role": "user", "content": "Привет"}]
LOOP = "{% for i in range(99999) %}"
DOUBLE = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = %s %}{% endfor %}{{ ns.x | length }}"

COSTLY = {
    "a long range": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": LOOP * 3 + "{% endfor %}" * 3,
    "nested loops over one list": (
        "{% set r = range(9999) %}{% for a in r %}{% for b in r %}{% for c in r %}" + "{% endfor %}" * 3
    ),
    "a recursive loop": "{% for i in [[]] recursive %}{{ loop([[]]) }}{{ loop([[]]) }}{% endfor %}",
    "macros that call twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}"
    ),
    "a product": "{{ ('a' * 10**10) | length }}",
    "a product of a list": "{{ ([1] * 10**10) | length }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a number squared again and again": DOUBLE.replace("'ab'", "7").replace("%s", "ns.x * ns.x"),
    "a sum": DOUBLE.replace("%s", "ns.x + ns.x"),
    "a concatenation": DOUBLE.replace("%s", "ns.x ~ ns.x"),
    "a concatenation in a call": DOUBLE.replace("%s", "(ns.x ~ ns.x) | trim"),
    "a replacement": DOUBLE.replace("%s", "ns.x.replace('a', 'aaaa')"),
    "a replacing filter": DOUBLE.replace("%s", "ns.x | replace('a', 'aaaa')"),
    "a sum of lists": "{{ ([range(1000) | list] * 99999) | sum(start=[]) | length }}",
    "a sum of lists with an attribute": "{{ ([{'a': range(1000) | list}] * 99999) | sum('a', []) | length }}",
    "a wrapped word": "{{ ('a' * 10**6) | wordwrap(1) | length }}",
    "a join": DOUBLE.replace("%s", "[ns.x, ns.x] | join"),
    "a join method": DOUBLE.replace("%s", "''.join([ns.x, ns.x])"),
    "a format": DOUBLE.replace("%s", "'{0}{0}'.format(ns.x)"),
    "an old format": DOUBLE.replace("%s", "'%s%s' % (ns.x, ns.x)"),
    "a centre": "{{ 'a' | center(10**10) }}",
    "a width of a method": "{{ 'a'.ljust(10**10) }}",
    "a width of a format": "{{ '{:>10000000000}'.format(1) }}",
    "a width that is an argument": "{{ '{:>{}}'.format(1, 10**10) }}",
    "a width of an old format": "{{ '%10000000000d' % 1 }}",
    "an old width that is an argument": "{{ '%*d' % (10**10, 1) }}",
    "a width of bytes": "{{ 'a'.encode().ljust(10**10) }}",
    "a number as bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "a precision": "{{ 1.5 | round(10**9, 'ceil') }}",
    "an indent": "{{ ('a\n' * 100000) | indent(100000) }}",
    "an indent of JSON": "{{ messages | tojson(indent=10**9) }}",
    "tabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "a translation": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "a structure that is printed": DOUBLE.replace("'ab'", "[1]").replace("%s", "[ns.x, ns.x]").replace(" | length", ""),
    "a structure as JSON": DOUBLE.replace("'ab'", "[1]").replace("%s", "[ns.x, ns.x]").replace("length", "tojson"),
    "a structure as a text": DOUBLE.replace("'ab'", "[1]").replace("%s", "[ns.x, ns.x]").replace("length", "string"),
    "many texts that are kept": (
        "{% set ns = namespace(l=[]) %}" + LOOP + "{% set ns.l = ns.l + ['a' * 9999999 ~ i] %}{% endfor %}"
    ),
    "a long answer": LOOP + "{{ 'a' * 99999 }}{% endfor %}",
    "words": "{{ lipsum(n=10**9) }}",
}


@pytest.mark.parametrize("what", COSTLY)
def test_what_takes_time_or_memory_without_end_is_a_400(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "RENDER_S", 0.02)
    monkeypatch.setattr(sandbox, "MAX_NODES", 10**4)
    template = ChatTemplate(COSTLY[what])
    began = time.monotonic()
    with pytest.raises(RequestError, match="cannot render") as caught:
        template.render(USER)
    assert time.monotonic() - began < 5
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("source", [LOOP * 40 + "{% endfor %}" * 40, "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}"])
def test_a_template_that_cannot_be_compiled_is_one_line(source: str) -> None:
    with pytest.raises(StartupError, match="the chat template cannot be compiled") as caught:
        ChatTemplate(source)
    assert "\n" not in str(caught.value)


def test_whatever_python_says_of_a_template_is_a_400() -> None:
    with pytest.raises(RequestError, match="at least one item"):
        ChatTemplate("{{ cycler() }}").render(USER)


def test_a_budget_is_for_one_rendering() -> None:
    template = ChatTemplate("{{ 'a' * 9999999 }}")
    for _ in range(60):
        assert len(template.render(USER)) == 9999999


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "{% for m in messages %}{{ loop.index0 }}{{ loop.last }}{{ loop.length }}{{ m.role }}{% endfor %}",
            "0True1user",
        ),
        ("{% for i in range(3) %}{{ i }}{% else %}none{% endfor %}", "012"),
        ("{% for m in nothing %}{{ m }}{% else %}none{% endfor %}", "none"),
        ("{% for k, v in {'a': 1}.items() if v %}{{ k ~ '=' ~ v ~ none }}{% endfor %}", "a=1None"),
        ("{% for i in [[1, [2]], [3]] recursive %}{{ loop(i) if i is sequence else i }}{% endfor %}", "123"),
        ("{{ '%s has %d, %5.1f' % ('a', 3, 2.5) }}", "a has 3,   2.5"),
        ("{{ '{} {:>5}'.format('a', 1700000000) }}", "a 1700000000"),
        ("{{ (messages | map(attribute='role') | join(', ')) ~ ('a' ~ ('b' ~ 'c')) }}", "userabc"),
        ("{{ 'a-b'.split('-')[-1].strip() }}{{ 2 ** 10 }}{{ 'ab' * 2 }}{{ [1] + [2] }}", "b1024abab[1, 2]"),
        ("{% macro f(x) %}[{{ x | trim }}]{% endmacro %}{{ f(' a ') }}", "[a]"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{{ 1700000000 | string }}{{ nothing | default(1700000000) }}", "17000000001700000000"),
        ("{% macro f(context, obj, self) %}{{ context }}{% endmacro %}{{ f(obj=1, context=2) }}", "2"),
        ("{{ messages | tojson(indent=2) | length }}", "55"),
        ("{{ messages[0].content | replace('П', 'п') | upper | indent(2) }}", "ПРИВЕТ"),
    ],
)
def test_what_real_templates_do_still_works(source: str, text: str) -> None:
    assert ChatTemplate(source).render(USER) == text
