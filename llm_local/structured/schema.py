"""JSON Schema to its canonical form: fewer keywords, the same values. Any thread.

What the engines do not know is rewritten where an equivalent exists (`oneOf` of exclusive branches, `if`, `not`,
`dependentRequired`, `propertyNames`, `uniqueItems` over a small enum, ...) and refused by name and place where none
does. Unknown keywords are annotations, as the specification says, and so is a `format` that nothing checks.

Sources: JSON Schema 2020-12, core and validation; drafts 4 to 2019-09 where their keywords differ.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from llm_local.errors import InvalidSchema
from llm_local.structured.endings import can_end, endless, looping
from llm_local.structured.exclusion import exclusive, known, told_apart
from llm_local.structured.logic import REF, TYPES, Defs, Node, all_of, any_of, has_all_of, value_key
from llm_local.structured.negation import closed_names, negate
from llm_local.structured.pattern import to_rust
from llm_local.structured.property_counts import any_property, at_least, at_most
from llm_local.structured.references import References

MAX_NODES = 20_000
MAX_DEPTH = 48
MAX_ENUM_CHARACTERS = 2**20
MAX_LISTED = 100
MAX_COUNT = 2**31
MAX_MULTIPLE = 100_000
MAX_BRANCHES = 64
MAX_PROPERTIES = 4000
MAX_SECONDS = 1.5

FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"},
)
"""Formats that are enforced; others say nothing about validity."""

UNENFORCEABLE = {
    "contains": "say which items there must be with 'prefixItems'",
    "minContains": "say which items there must be with 'prefixItems'",
    "maxContains": "say which items there must be with 'prefixItems'",
    "unevaluatedItems": "use 'items': false",
    "$dynamicRef": "use '$ref'",
}


@dataclass(frozen=True, slots=True)
class Schema:
    """A canonical schema: `root` may refer to `defs` by `#/$defs/NAME`."""

    root: Node
    defs: Defs


def canonical(schema: Any) -> Schema:
    """Return the canonical form.

    Raises:
        InvalidSchema: it is no schema, cannot be enforced, or no value satisfies it.
    """
    try:
        return _canonical(schema)
    except RecursionError:
        raise InvalidSchema("#: the schema is nested, or its references are chained, too deep.") from None
    except OverflowError:
        raise InvalidSchema("#: a number in the schema is too large.") from None


def _canonical(schema: Any) -> Schema:
    _check_text(schema)
    rewriter = _Rewriter(schema)
    root = rewriter.node(schema, "#", 0)
    if looping(rewriter.defs) is not None:
        raise InvalidSchema("#: a '$ref' leads back to itself without going into a property or an item.")
    if rewriter.least_multiple > MAX_MULTIPLE and has_all_of([root, *rewriter.defs.values()]):
        raise InvalidSchema(
            f"#: the least common multiple of all 'multipleOf' is over {MAX_MULTIPLE}, and they may meet."
        )
    dead = endless(rewriter.defs)
    ending = set(rewriter.defs) - dead
    defs = {name: (False if name in dead else node) for name, node in rewriter.defs.items()}
    if not can_end(root, ending):
        raise InvalidSchema("#: no value satisfies this schema.")
    return Schema(root, defs)


def _check_text(schema: Any) -> None:
    """Refuse what JSON text cannot say."""
    try:
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise InvalidSchema("#: a text in the schema has half of a surrogate pair.") from None
    except ValueError:
        raise InvalidSchema("#: a number in the schema is infinite or none.") from None
    except RecursionError:
        raise InvalidSchema("#: the schema is nested too deep.") from None


class _Rewriter:
    """Walks a schema once; `$ref` targets become definitions of their own."""

    def __init__(self, root: Any) -> None:
        self._references = References(root)
        self._root = root
        self._names: dict[int, str] = {}
        self._n_nodes = 0
        self.least_multiple = 1
        self._deadline = time.monotonic() + MAX_SECONDS
        self.defs: dict[str, Node] = {}

    def node(self, node: Any, where: str, depth: int) -> Node:
        """Return the canonical form of a subschema."""
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise InvalidSchema(f"{where}: a schema is an object or a boolean, not {_kind(node)}.")
        self._n_nodes += 1
        if self._n_nodes > MAX_NODES:
            raise InvalidSchema(f"{where}: the schema has over {MAX_NODES} parts.")
        self.check_time(where)
        if depth > MAX_DEPTH:
            raise InvalidSchema(f"{where}: the schema is nested over {MAX_DEPTH} deep. Move parts to $defs.")
        return _Node(self, node, where, depth).canonical()

    def check_time(self, where: str) -> None:
        """Give up on a schema that takes too long, whatever makes it so."""
        if time.monotonic() > self._deadline:
            raise InvalidSchema(f"{where}: the schema takes over {MAX_SECONDS} s to translate. Make it smaller.")

    def reference(self, holder: dict[str, Any], key: str, where: str) -> Node:
        """Return a reference to the canonical form of what `holder` refers to."""
        target = self._references.resolve(holder[key], holder, where)
        if isinstance(target, bool):
            return target
        name = self._names.get(id(target))
        if name is None:
            name = self._names[id(target)] = f"d{len(self._names)}"
            self.defs[name] = self.node(target, str(holder[key]), 0)
        return {"$ref": f"#/$defs/{name}"}

    def target(self, node: Node) -> Node:
        """Return what a reference refers to, where that is translated already; all else as it is."""
        for _ in range(MAX_DEPTH):
            if not isinstance(node, dict) or "$ref" not in node or not known(node, self.defs):
                break
            node = self.defs[node["$ref"].removeprefix(REF)]
        return node

    def multiple(self, value: float, bad: Callable[[str, str], InvalidSchema]) -> None:
        """Check a `multipleOf`: an automaton counts its remainders."""
        if value <= 0:
            raise bad("multipleOf", "must be greater than 0.")
        count = int("".join(map(str, Decimal(repr(value)).normalize().as_tuple().digits)))
        self.least_multiple = math.lcm(self.least_multiple, count)
        if count > MAX_MULTIPLE:
            raise bad("multipleOf", f"{value} has too many digits or is too large; at most {MAX_MULTIPLE} is counted.")

    @property
    def ref_stands_alone(self) -> bool:
        """Whether keywords beside a `$ref` mean nothing (drafts 3 to 7)."""
        return self._references.ref_stands_alone

    @property
    def has_recursive_anchor(self) -> bool:
        """Whether what `$recursiveRef` means depends on where the schema is used (draft 2019-09)."""
        return isinstance(self._root, dict) and "$recursiveAnchor" in self._root

    def original(self, reference: str, holder: dict[str, Any], where: str) -> Any:
        """Return what a reference points to, as it was written."""
        return self._references.resolve(reference, holder, where)


class _Node:
    """One schema object on its way to canonical form.

    Attributes:
        plain: keywords that engines know.
        parts: schemas that must hold beside them.
    """

    def __init__(self, rewriter: _Rewriter, source: dict[str, Any], where: str, depth: int) -> None:
        self._rewriter = rewriter
        self.source = source
        self.where = where
        self.depth = depth
        self.plain: dict[str, Any] = {}
        self.parts: list[Node] = []

    def canonical(self) -> Node:
        """Translate all keywords, in the order in which they were written: it is the order of properties, too."""
        if "$ref" in self.source and self._rewriter.ref_stands_alone:
            return self._rewriter.reference(self.source, "$ref", self.where)
        place: int | None = None
        for key, value in self.source.items():
            if key in UNENFORCEABLE:
                raise InvalidSchema(f"{self.where}/{key}: this keyword cannot be enforced; {UNENFORCEABLE[key]}.")
            handler = HANDLERS.get(key)
            if handler is None or (value is None and key != "const"):
                continue
            handler(self, key, value)
            if key == "properties":
                place = len(self.parts)
        if self.plain:
            self.parts.insert(0 if place is None else place, self.plain)
        return all_of(self.parts)

    # -- helpers ----------------------------------------------------------------------------------------------------

    def sub(self, value: Any, *path: object) -> Node:
        """Return the canonical form of a schema inside this one."""
        return self._rewriter.node(value, "/".join([self.where, *map(str, path)]), self.depth + 1)

    def bad(self, key: str, message: str) -> InvalidSchema:
        """Return an error that names the keyword and its place."""
        return InvalidSchema(f"{self.where}/{key}: {message}")

    def _subs(self, key: str, value: Any) -> list[Node]:
        if not isinstance(value, list):
            raise self.bad(key, f"must be a list of schemas, not {_kind(value)}.")
        return [self.sub(item, key, index) for index, item in enumerate(value)]

    def _map(self, key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.bad(key, f"must be an object, not {_kind(value)}.")
        return value

    def _names(self, key: str, value: Any) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.bad(key, "must be a list of property names.")
        return list(dict.fromkeys(value))

    # -- any type ---------------------------------------------------------------------------------------------------

    def ref(self, key: str, value: Any) -> None:
        if key == "$recursiveRef" and value != "#":
            raise self.bad(key, "must be '#'.")
        if key == "$recursiveRef" and self._rewriter.has_recursive_anchor:
            raise self.bad(key, "together with $recursiveAnchor it cannot be enforced; use '$ref'.")
        self.parts.append(self._rewriter.reference(self.source, key, self.where))

    def type(self, key: str, value: Any) -> None:
        names = value if isinstance(value, list) else [value]
        for name in names:
            if not isinstance(name, str) or name not in (*TYPES, "integer"):
                raise self.bad(key, f"{name!r} is no type; types are {', '.join((*TYPES, 'integer'))}.")
        if not names:
            raise self.bad(key, "the list is empty.")
        self.plain["type"] = value if isinstance(value, str) else list(dict.fromkeys(names))

    def enum(self, key: str, value: Any) -> None:
        values = [value] if key == "const" else value
        if not isinstance(values, list) or not values:
            raise self.bad(key, "must be a list of at least one value.")
        if sum(len(item) if isinstance(item, str) else 8 for item in values) > MAX_ENUM_CHARACTERS:
            raise self.bad(key, f"its values have over {MAX_ENUM_CHARACTERS} characters.")
        self._conjoin({"enum": list({value_key(item): item for item in values}.values())})

    def _conjoin(self, part: dict[str, Any]) -> None:
        """Add a keyword that may be there already."""
        if any(key in self.plain for key in part):
            self.parts.append(part)
        else:
            self.plain.update(part)

    def all_of(self, key: str, value: Any) -> None:
        self.parts += self._subs(key, value)

    def any_of(self, key: str, value: Any) -> None:
        self.parts.append(any_of(self._subs(key, value)))

    def one_of(self, key: str, value: Any) -> None:
        """Branches that exclude each other are alternatives; others are, less what also satisfies another one."""
        defs = self._rewriter.defs
        branches = [branch for branch in self._subs(key, value) if branch is not False]
        if told_apart(branches, defs):
            self.parts.append(any_of(branches))
            return
        if len(branches) > MAX_BRANCHES:
            raise self.bad(
                key,
                f"over {MAX_BRANCHES} branches need a property that tells them apart (required, with a 'const' of its "
                "own in each); or use 'anyOf'.",
            )
        beside = self._beside()
        ways = []
        for at, branch in enumerate(branches):
            opposites = []
            names = closed_names(branch, defs)
            self._rewriter.check_time(self.where)
            for other_at, other in enumerate(branches):
                if other_at == at or exclusive(branch, other, defs) or exclusive(all_of([beside, branch]), other, defs):
                    continue
                opposite = negate(other, defs, names=names)
                if opposite is None:
                    raise self.bad(
                        key,
                        f"branches {at} and {other_at} may both match, which cannot be enforced. Make them exclusive "
                        "(types, a const, a required property that the other forbids), or use 'anyOf'.",
                    )
                opposites.append(opposite)
            ways.append(all_of([branch, *opposites]))
        self.parts.append(any_of(ways))

    def _beside(self) -> Node:
        """Return what holds besides the branches: it may make them exclusive."""
        told = {key: self.source[key] for key in ("type", "required", "properties") if key in self.source}
        return self.sub(told) if told else True

    def not_(self, key: str, value: Any) -> None:
        opposite = negate(self.sub(value, key), self._rewriter.defs)
        if opposite is None:
            raise self.bad(key, "the opposite of this schema cannot be enforced; say what is allowed instead.")
        self.parts.append(opposite)

    def if_(self, key: str, value: Any) -> None:
        if "then" not in self.source and "else" not in self.source:
            return
        condition = self.sub(value, key)
        opposite = negate(condition, self._rewriter.defs)
        if opposite is None:
            raise self.bad(
                key, "the opposite of this condition cannot be enforced; use 'anyOf' with exclusive branches."
            )
        then = self.sub(self.source.get("then", True), "then")
        otherwise = self.sub(self.source.get("else", True), "else")
        self.parts.append(any_of([all_of([condition, then]), all_of([opposite, otherwise])]))

    # -- numbers and strings ----------------------------------------------------------------------------------------

    def bound(self, key: str, value: Any) -> None:
        if isinstance(value, bool) and key.startswith("exclusive"):
            self._draft4_bound(key, value)
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.bad(key, f"must be a number, not {_kind(value)}.")
        if key == "multipleOf":
            self._rewriter.multiple(value, self.bad)
        if key not in self.plain:
            self.plain[key] = value

    def _draft4_bound(self, key: str, value: bool) -> None:
        """In draft 4 `exclusiveMinimum: true` makes `minimum` exclusive."""
        inclusive = "minimum" if key == "exclusiveMinimum" else "maximum"
        if value and isinstance(self.source.get(inclusive), int | float):
            self.plain[key] = self.source[inclusive]

    def count(self, key: str, value: Any) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        whole = number and value == int(value)
        if not whole or not 0 <= value < MAX_COUNT:
            raise self.bad(key, f"must be a whole number from 0 to {MAX_COUNT - 1}, not {value!r}.")
        self.plain[key] = int(value)

    def pattern(self, key: str, value: Any) -> None:
        if not isinstance(value, str):
            raise self.bad(key, f"must be a string, not {_kind(value)}.")
        self.plain[key] = to_rust(value, f"{self.where}/{key}")

    def format(self, key: str, value: Any) -> None:
        if not isinstance(value, str):
            raise self.bad(key, f"must be a string, not {_kind(value)}.")
        if value in FORMATS:
            self.plain[key] = value

    # -- arrays -----------------------------------------------------------------------------------------------------

    def items(self, key: str, value: Any) -> None:
        if isinstance(value, list):
            self.plain["prefixItems"] = self._subs(key, value)
        else:
            self.plain["items"] = self.sub(value, key)

    def additional_items(self, key: str, value: Any) -> None:
        if isinstance(self.source.get("items"), list):
            self.plain["items"] = self.sub(value, key)

    def prefix_items(self, key: str, value: Any) -> None:
        self.plain[key] = self._subs(key, value)

    def unique_items(self, key: str, value: Any) -> None:
        """Distinct items are listed where they are few, and watched elsewhere (`distinct.py`)."""
        most, least = self.source.get("maxItems"), self.source.get("minItems", 0)
        if value is not True or (isinstance(most, int) and most <= 1) or not self._may_be_array():
            return
        items = self.source.get("items")
        values = self._finite(self.sub(items, "items")) if isinstance(items, dict) else None
        counted = all(isinstance(n, int) and n >= 0 for n in (least, 0 if most is None else most))
        if values is None or not counted or len(values) > MAX_LISTED or self.source.get("prefixItems"):
            self.plain[key] = True
            return
        top = min(len(values), most if isinstance(most, int) else len(values))
        if least > len(values):
            raise self.bad(key, f"no value satisfies this schema: there are no {least} distinct items.")
        if sum(math.perm(len(values), n) for n in range(least, top + 1)) > MAX_LISTED:
            self.plain[key] = True
            return
        arrays = [list(way) for n in range(least, top + 1) for way in itertools.permutations(values, n)]
        others = [name for name in TYPES if name != "array"]
        self.parts.append(any_of([{"type": others}, *([{"enum": arrays}] if arrays else [])]))

    def _may_be_array(self) -> bool:
        kinds = self.source.get("type", "array")
        return "array" in (kinds if isinstance(kinds, list) else [kinds])

    def _finite(self, node: Node) -> list[Any] | None:
        if isinstance(node, dict) and "$ref" in node:
            node = self._rewriter.defs.get(node["$ref"].removeprefix("#/$defs/"))
        if not isinstance(node, dict):
            return None
        if "enum" in node and set(node) <= {"enum", "type"}:
            kinds = node.get("type")
            return list(node["enum"]) if kinds in (None, "string") or len(node) == 1 else None
        return [True, False] if node == {"type": "boolean"} else None

    # -- objects ----------------------------------------------------------------------------------------------------

    def properties(self, key: str, value: Any) -> None:
        if len(self._map(key, value)) > MAX_PROPERTIES:
            raise self.bad(key, f"there are {len(value)}; at most {MAX_PROPERTIES} can be enforced.")
        self.plain[key] = {name: self.sub(node, key, name) for name, node in value.items()}

    def pattern_properties(self, key: str, value: Any) -> None:
        nodes = self._map(key, value).items()
        place = f"{self.where}/{key}"
        self.plain[key] = {to_rust(name, place): self.sub(node, key, name) for name, node in nodes}

    def additional_properties(self, key: str, value: Any) -> None:
        self.plain["additionalProperties"] = self.sub(value, key)

    def required(self, key: str, value: Any) -> None:
        if isinstance(value, bool):
            raise self.bad(key, "must be a list of property names (a boolean is draft 3).")
        self.plain[key] = self._names(key, value)

    def min_properties(self, key: str, value: Any) -> None:
        """Keys that are not declared might be repeated, and then count once: more than one cannot be promised."""
        self.count(key, value)
        least = self.plain.pop(key)
        required, optional = self._declared()
        if least <= len(required):
            return
        if least == 1:
            ways = any_property(optional)
            if ways is None:
                self.plain[key] = 1
            else:
                self.parts.append(ways)
            return
        if self.source.get("additionalProperties") is not False:
            raise self.bad(
                key, f"at least {least} properties cannot be enforced unless they are declared; use 'required'."
            )
        ways = None if self.source.get("patternProperties") else at_least(least - len(required), optional)
        if ways is None:
            raise self.bad(key, f"at least {least} properties cannot be enforced here; use 'required'.")
        self.parts.append(ways)

    def max_properties(self, key: str, value: Any) -> None:
        """Engines count properties only where all that are declared must be there: see `property_counts.py`."""
        self.count(key, value)
        required, optional = self._declared()
        ways = at_most(self.plain[key], len(required), optional)
        if ways is not None:
            del self.plain[key]
            self.parts.append(ways)

    def _declared(self) -> tuple[list[str], list[str]]:
        """Return the names of properties that must be there, and those of other declared ones."""
        required = self._names("required", self.source.get("required") or [])
        declared = self._map("properties", self.source.get("properties") or {})
        return required, [name for name in declared if name not in required]

    def property_names(self, key: str, value: Any) -> None:
        """Names that a pattern or a list allows: all others are forbidden."""
        names = self._rewriter.target(self.sub(value, key))
        if names is True or names == {"type": "string"}:
            return
        kinds = names.get("type", "string") if isinstance(names, dict) else "string"
        if "string" not in (kinds if isinstance(kinds, list) else [kinds]):
            # No name is a number: no property is allowed.
            self.parts.append({"properties": {}, "additionalProperties": False})
            return
        if isinstance(names, dict) and set(names) <= {"type", "enum"} and "enum" in names:
            allowed = {name: True for name in names["enum"] if isinstance(name, str)}
            self.parts.append({"properties": allowed, "additionalProperties": False})
        elif isinstance(names, dict) and set(names) <= {"type", "pattern"} and "pattern" in names:
            self.parts.append({"patternProperties": {names["pattern"]: True}, "additionalProperties": False})
        elif isinstance(names, dict) and set(names) <= {"type", "minLength", "maxLength"}:
            most = names.get("maxLength", "")
            lengths = f"^[\\s\\S]{{{names.get('minLength', 0)},{most}}}$"
            self.parts.append({"patternProperties": {lengths: True}, "additionalProperties": False})
        else:
            raise self.bad(key, "only a pattern, lengths or an enum of names can be enforced.")

    def dependent_required(self, key: str, value: Any) -> None:
        for name, needed in self._map(key, value).items():
            self._depend(name, {"required": [name, *self._names(f"{key}/{name}", needed)]})

    def dependent_schemas(self, key: str, value: Any) -> None:
        for name, node in self._map(key, value).items():
            self._depend(name, self.sub(node, key, name))

    def dependencies(self, key: str, value: Any) -> None:
        for name, needed in self._map(key, value).items():
            single = [needed] if isinstance(needed, str) else needed
            (self.dependent_required if isinstance(single, list) else self.dependent_schemas)(key, {name: single})

    def _depend(self, name: str, then: Node) -> None:
        self.parts.append(any_of([{"properties": {name: False}}, then]))

    def unevaluated_properties(self, key: str, value: Any) -> None:
        """Where all branches always apply, the names are known, and what is left is `additionalProperties`."""
        if value is True:
            return
        names = self._evaluated(self.source, self.where, 0, {})
        if names is None:
            return
        self.parts.append({"properties": dict.fromkeys(names, True), "additionalProperties": self.sub(value, key)})

    def _evaluated(
        self, source: Any, where: str, depth: int, known: dict[int, dict[str, None] | None]
    ) -> dict[str, None] | None:
        """Return the names that `source` evaluates; None for all of them.

        Args:
            known: of the parts that were looked at, by their identities: many ways may lead to one definition.
        """
        names: dict[str, None] = {}
        if not isinstance(source, dict):
            return names
        if id(source) in known:
            return known[id(source)]
        self._rewriter.check_time(where)
        for applicator in ("anyOf", "oneOf", "if", "dependentSchemas", "patternProperties", "not", "$dynamicRef"):
            if applicator in source or depth > MAX_DEPTH:
                raise self.bad("unevaluatedProperties", f"together with '{applicator}' it cannot be enforced.")
        if "additionalProperties" in source or (depth and "unevaluatedProperties" in source):
            return known.setdefault(id(source), None)
        parts, declared = source.get("allOf"), source.get("properties")
        inner = [*parts] if isinstance(parts, list) else []
        if "$ref" in source:
            inner.append(self._rewriter.original(source["$ref"], source, where))
        for part in inner:
            found = self._evaluated(part, where, depth + 1, known)
            if found is None:
                return known.setdefault(id(source), None)
            names |= found
        return known.setdefault(id(source), names | dict.fromkeys(declared if isinstance(declared, dict) else ()))


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


HANDLERS: dict[str, Callable[[_Node, str, Any], None]] = {
    "$ref": _Node.ref,
    "$recursiveRef": _Node.ref,
    "type": _Node.type,
    "enum": _Node.enum,
    "const": _Node.enum,
    "allOf": _Node.all_of,
    "anyOf": _Node.any_of,
    "oneOf": _Node.one_of,
    "not": _Node.not_,
    "if": _Node.if_,
    "minimum": _Node.bound,
    "maximum": _Node.bound,
    "exclusiveMinimum": _Node.bound,
    "exclusiveMaximum": _Node.bound,
    "multipleOf": _Node.bound,
    "minLength": _Node.count,
    "maxLength": _Node.count,
    "pattern": _Node.pattern,
    "format": _Node.format,
    "items": _Node.items,
    "additionalItems": _Node.additional_items,
    "prefixItems": _Node.prefix_items,
    "minItems": _Node.count,
    "maxItems": _Node.count,
    "uniqueItems": _Node.unique_items,
    "properties": _Node.properties,
    "patternProperties": _Node.pattern_properties,
    "additionalProperties": _Node.additional_properties,
    "required": _Node.required,
    "minProperties": _Node.min_properties,
    "maxProperties": _Node.max_properties,
    "propertyNames": _Node.property_names,
    "dependentRequired": _Node.dependent_required,
    "dependentSchemas": _Node.dependent_schemas,
    "dependencies": _Node.dependencies,
    "unevaluatedProperties": _Node.unevaluated_properties,
}
