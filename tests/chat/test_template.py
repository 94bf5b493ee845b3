"""Chat templates: golden prompts, the sandbox, and what Hugging Face's renderer offers to a template.

The golden files are what the templates published with Qwen2.5-7B-Instruct, Llama-3.1-8B-Instruct, gemma-2-2b-it and
SmolLM2-135M-Instruct render; the named templates must give the same to the letter. (That the GGUFs' own templates do
is tested on the real files, in `tests/model`.)
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from llm_local.chat.template import NAMED, ChatTemplate, named_template
from llm_local.errors import RequestError, StartupError

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())
BOS = {"llama-3": "<|begin_of_text|>", "gemma": "<bos>"}
USER = [{"role": "user", "content": "Привет"}]


@pytest.mark.parametrize(("name", "case"), [(n, c) for n in ("qwen2", "llama-3", "gemma") for c in CASES])
def test_named_templates_render_what_the_published_ones_do(name: str, case: str) -> None:
    golden = GOLDEN / f"{name}.{case}.txt"
    messages = CASES[case]["messages"]
    if name == "gemma":
        messages = [message for message in messages if message["role"] != "system"]
    if not golden.exists():
        assert (name, case) == ("gemma", "tools"), "a golden file is missing"
        return
    template = ChatTemplate(named_template(name), {"bos_token": BOS.get(name, "")})
    assert template.render(messages, tools=CASES[case]["tools"]) == golden.read_text()


def test_chatml_is_plain() -> None:
    text = ChatTemplate(named_template("chatml")).render(USER)
    assert text == "<|im_start|>user\nПривет<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_final_message_can_be_continued(name: str) -> None:
    template = ChatTemplate(named_template(name), {"bos_token": BOS.get(name, "")})
    messages = [*USER, {"role": "assistant", "content": "Здрав "}]
    text = template.render(messages, continue_final_message=True)
    assert text.endswith("Здрав ")
    assert text.startswith(template.render(USER, add_generation_prompt=True))


def test_only_an_assistant_message_can_be_continued() -> None:
    with pytest.raises(RequestError, match="role assistant"):
        ChatTemplate(named_template("chatml")).render(USER, continue_final_message=True)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('Сначала пользователь') }}", "Сначала пользователь"),
        ("{{ messages[9].content + 'x' }}", "cannot render"),
        ("{{ 1 / 0 }}", "cannot render"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot render"),
        ("{{ messages.append(1) }}", "cannot render"),
        ("{% for i in range(10**9) %}{% endfor %}", "cannot render"),
    ],
)
def test_a_template_that_fails_or_misbehaves_is_a_400(source: str, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        ChatTemplate(source).render(USER)
    assert caught.value.param == "messages"


def test_what_hugging_face_offers_is_there() -> None:
    source = (
        "{{ strftime_now('%Y') }}|{{ messages | tojson }}|{{ bos_token }}|{{ eos_token }}|{{ tools is none }}"
        "{% for n in [1, 2, 3] %}{% if n == 2 %}{% continue %}{% endif %}{{ n }}{% endfor %}"
        "{% generation %}g{% endgeneration %}|{{ shade }}"
    )
    text = ChatTemplate(source, {"bos_token": "<s>"}).render(USER, variables={"shade": "blue"})
    assert text == f'{datetime.now():%Y}|[{{"role": "user", "content": "Привет"}}]|<s>||True13g|blue'


def test_own_variables_cannot_be_overwritten() -> None:
    with pytest.raises(RequestError, match="`tools` cannot be set") as caught:
        ChatTemplate("x").render(USER, variables={"tools": []})
    assert caught.value.param == "chat_template_kwargs.tools"


def test_a_template_is_chosen_by_name_by_file_or_from_the_gguf(tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("from a file")
    none: dict[str, Any] = {}
    assert ChatTemplate.load(str(file), "own", none).source == "from a file"
    assert ChatTemplate.load(None, "own", none).source == "own"
    assert ChatTemplate.load("gemma", "own", none).source == named_template("gemma")
    assert ChatTemplate.load(None, None, none).source == named_template("chatml")
    with pytest.raises(StartupError, match="neither one of chatml, gemma"):
        ChatTemplate.load("gema", None, none)
    with pytest.raises(StartupError, match="not valid Jinja: line 1"):
        ChatTemplate("{% if %}")
