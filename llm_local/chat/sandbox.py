"""The sandbox that chat templates run in. A template comes in a GGUF, from anywhere: it gets a budget. Any thread.

jinja2's sandbox keeps a template away from the inside of Python, but not from running for ever (nested loops, macros
that call themselves twice) or from filling the memory (`'a' * 10**10`, a text that is doubled in a loop). Here every
turn of a loop, every call, filter and operator looks at the clock, and what they make is counted before it is made.

What is left: Python's own comparison of nested lists that a template has built to explode.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

RENDER_S = 5.0
"""Seconds that one rendering may take; real templates take milliseconds."""
MAX_LENGTH = 2**24
"""Longest text or list that a template may make."""
MAX_TOTAL = 2**29
"""Characters and entries that one rendering may make altogether."""
MAX_NODES = 10**6
"""Values in a structure that is made a text."""
MAX_WRAPPED = 10**5
"""Characters of a text that is wrapped, which takes time with their square."""
MAX_BITS = 4096
"""Size of a number."""

# A wide field (`{:>100000}`, `%100000d`), or a width that is itself an argument.
_WIDE = re.compile(r"\d{5}|%[^a-zA-Z]*\*|\{[^{}]*\{")
_MAKE_TEXT = frozenset(
    {
        "capitalize", "center", "e", "escape", "forceescape", "format", "indent", "join", "lower", "pprint",
        "replace", "safe", "string", "striptags", "title", "tojson", "trim", "truncate", "upper", "urlencode",
        "urlize", "wordcount", "wordwrap", "xmlattr",
    }
)  # fmt: skip


_WIDTHS = frozenset({"batch", "center", "expandtabs", "indent", "ljust", "rjust", "round", "slice", "zfill"})
_NO_METHODS = frozenset({"encode", "to_bytes"})
"""Bytes have the methods of texts, and no conversation needs them."""


class TooCostly(SecurityError):
    """A template that takes more time or memory than a conversation can need."""


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's environment for templates of others, with a budget for each rendering."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=self._printed, **options)
        self._budget = threading.local()
        del self.globals["lipsum"]  # Makes as much text as it is asked for.
        for name, filter_ in list(self.filters.items()):
            self.add_filter(name, filter_)
        self.filters |= {" turns": self._turns, " concat": self._concat}

    def add_filter(self, name: str, filter_: Callable[..., Any]) -> None:
        """Add a filter that is counted."""

        @functools.wraps(filter_)
        def counted(*args: Any, **more: Any) -> Any:
            # The context or environment may come first: it is neither a number nor a text.
            self._before_call(name, args, more)
            return self._made(filter_(*args, **more))

        self.filters[name] = counted

    def begin(self) -> None:
        """Begin a rendering on this thread with a full budget."""
        self._budget.until = time.monotonic() + RENDER_S
        self._budget.left = MAX_TOTAL

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Tell whether a template may see an attribute."""
        return attr not in _NO_METHODS and super().is_safe_attribute(obj, attr, value)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = _filtered(loop.iter, " turns")
        return _with_concats(tree)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, macro or method of the template's."""
        method = getattr(obj, "__wrapped__", obj)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            self._before_call(method.__name__, (owner, *args), kwargs)
        self._spend(0)
        return self._made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute an operator whose result may be large."""
        if operator == "%" and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _check_length(len(left) + len(right))
        elif operator == "*":
            _check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int) and right > 0:
            _check_bits(left.bit_length() * right)
        return self._made(super().call_binop(context, operator, left, right))

    def _turns(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._spend(1)
            yield value

    def _concat(self, parts: list[Any]) -> str:
        texts = [part if isinstance(part, str) else str(_check_nodes(part)) for part in parts]
        _check_length(sum(map(len, texts)))
        return str(self._made("".join(texts)))

    def _printed(self, value: Any) -> Any:
        return self._made(_check_nodes(value))

    def _before_call(self, name: str, args: tuple[Any, ...], more: dict[str, Any]) -> None:
        values = [*args, *more.values()]
        numbers = [abs(value) for value in values if isinstance(value, int)]
        texts = [value for value in values if isinstance(value, str)]
        if numbers and name in _WIDTHS:
            _check_length(max(numbers))
        if name in _MAKE_TEXT:
            for value in values:
                _check_nodes(value)
        if name == "indent" and texts:
            _check_length((texts[0].count("\n") + 1) * max([*numbers, *map(len, texts[1:]), 1]) + len(texts[0]))
        elif name == "expandtabs":
            _check_length(texts[0].count("\t") * max([*numbers, 8]))
        elif name == "replace" and len(texts) == 3:
            _check_length(texts[0].count(texts[1]) * len(texts[2]) + len(texts[0]))
        elif name in ("format", "format_map") and texts:
            _check_format(texts[0], values[1:])
        elif name == "join":
            _check_join(values)
        elif name == "sum" and isinstance(more.get("start", args[3:] and args[3]), (list, tuple)):
            raise TooCostly("it adds up lists")
        elif name in ("translate", "xmlattr", "tojson", "wordwrap"):
            _check_growth(name, values, numbers)

    def _made(self, value: Any) -> Any:
        """Charge for a value; return it."""
        self._spend(len(value) if isinstance(value, (str, list, tuple, dict)) else 1)
        return value

    def _spend(self, n: int) -> None:
        # Constants are folded when a template is compiled, outside of any rendering.
        left = getattr(self._budget, "left", MAX_TOTAL) - n
        self._budget.left = left
        if left < 0 or n > MAX_LENGTH:
            raise TooCostly("it makes too much text")
        if time.monotonic() > getattr(self._budget, "until", float("inf")):
            raise TooCostly(f"it takes more than {RENDER_S:.0f} s")


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)


def _with_concats(tree: nodes.Template) -> nodes.Template:
    """Return the tree with `a ~ b` made a filter, which can be counted."""
    for parent in [tree, *tree.find_all(nodes.Node)]:
        for field, value in parent.iter_fields():
            if isinstance(value, nodes.Concat):
                setattr(parent, field, _concat_filter(value))
            elif isinstance(value, list):
                value[:] = [_concat_filter(item) if isinstance(item, nodes.Concat) else item for item in value]
    return tree


def _concat_filter(node: nodes.Concat) -> nodes.Filter:
    return _filtered(nodes.List(node.nodes, lineno=node.lineno), " concat")


def _check_length(length: int) -> None:
    if length > MAX_LENGTH:
        raise TooCostly(f"it makes a text or list of {length} parts")


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise TooCostly("it makes a number without end")


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    for sized, times in ((left, right), (right, left)):
        if isinstance(sized, Sized) and isinstance(times, int):
            _check_length(len(sized) * times)


def _check_format(form: str, args: Iterable[Any]) -> None:
    """Check `form % args` or `form.format(*args)`."""
    if _WIDE.search(form):
        raise TooCostly("it formats wide fields")
    longest = max((len(str(_check_nodes(arg))) for arg in args), default=0)
    _check_length((form.count("%") + form.count("{")) * longest + len(form))


def _check_join(values: list[Any]) -> None:
    separator = max((len(value) for value in values if isinstance(value, str)), default=0)
    for value in values:
        if isinstance(value, (list, tuple, dict)):
            _check_length(sum(separator + (len(part) if isinstance(part, str) else 1) for part in value))


def _check_growth(name: str, values: list[Any], numbers: list[int]) -> None:
    """Check what grows by the size of an argument for each of its parts."""
    if name == "translate":
        tables = [value for value in values if isinstance(value, dict)]
        longest = max((len(text) for table in tables for text in table.values() if isinstance(text, str)), default=1)
        _check_length(len(values[0]) * longest)
    elif name == "tojson":
        _check_length(max([0, *numbers]) * 1000)
    elif name == "wordwrap":
        texts = [len(value) for value in values if isinstance(value, str)]
        if texts[0] > MAX_WRAPPED:
            raise TooCostly("it wraps a long text")
        _check_length(max(texts[1:], default=1) * texts[0])


def _check_nodes(value: Any) -> Any:
    """Return the value, if it has few enough parts to be made a text: shared parts count each time."""
    if not isinstance(value, (list, tuple, dict)):
        return value
    left, waiting = MAX_NODES, [value]
    while waiting:
        part = waiting.pop()
        children = list(part.values()) if isinstance(part, dict) else part
        left -= len(children)
        if left < 0:
            raise TooCostly("it prints a structure without end")
        waiting.extend(child for child in children if isinstance(child, (list, tuple, dict)))
    return value
