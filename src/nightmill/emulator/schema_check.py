"""JSON Schema: resolves references, and says whether a value satisfies a schema. Drafts 4 to 2020-12.

The emulator checks each made-up value before it becomes an answer, so a schema with a rule that the generator
does not aim for leads to further candidates, and never to an answer that breaks the schema. `format` is not
checked. A reference to another document is an error: nothing is fetched.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final, TypeAlias, cast
from urllib.parse import unquote

from nightmill.emulator.content import BadBodyError

Schema: TypeAlias = Any
"""An object or a boolean, as decoded JSON."""

_MOST_NESTED: Final = 80
_NAMES: Final = ("$id", "id")
_ANCHORS: Final = ("$anchor", "$dynamicAnchor")


class SchemaDocument:
    """A whole schema, in which references are resolved."""

    def __init__(self, root: Schema) -> None:
        self.root = root
        self._named: dict[str, Schema] = {}
        self._collect(root)

    def _collect(self, node: Any) -> None:
        if isinstance(node, dict):
            members = cast("dict[str, Any]", node)
            for key in _NAMES:
                if isinstance(members.get(key), str):
                    self._named.setdefault(members[key].removesuffix("#"), members)
            for key in _ANCHORS:
                if isinstance(members.get(key), str):
                    self._named.setdefault(f"#{members[key]}", members)
            for below in members.values():
                self._collect(below)
        elif isinstance(node, list):
            for below in cast("list[Any]", node):
                self._collect(below)

    def target(self, reference: str) -> Schema:
        """The schema that a `$ref` names; raises BadBodyError if it is not in the document."""
        if reference in self._named:
            return self._named[reference]
        name, _, pointer = reference.partition("#")
        node: Any = self._document_named(name) if name else self.root
        if node is None or (pointer and not pointer.startswith("/")):
            raise BadBodyError(f"The reference {reference[:100]!r} is not in the schema.")
        for step in pointer.split("/")[1:]:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            try:
                node = cast("Any", node[int(key)] if isinstance(node, list) else node[key])
            except (KeyError, IndexError, ValueError, TypeError):
                raise BadBodyError(f"The reference {reference[:100]!r} is not in the schema.") from None
        return node

    def _document_named(self, name: str) -> Schema | None:
        """The schema with this id, or with an id that ends in it, as a relative reference names it."""
        if name in self._named:
            return self._named[name]
        return next((part for key, part in self._named.items() if key.endswith(f"/{name}")), None)

    def accepts(self, value: Any, schema: Schema, nested: int = 0) -> bool:
        """Whether `value` satisfies `schema`, a part of this document."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise BadBodyError("A schema must be an object or a boolean.")
        if nested > _MOST_NESTED:
            return False
        rules = cast("dict[str, Any]", schema)
        return (
            _has_type(value, rules)
            and self._accepts_combined(value, rules, nested + 1)
            and _number_fits(value, rules)
            and _text_fits(value, rules)
            and (not isinstance(value, list) or self._accepts_array(cast("Any", value), rules, nested + 1))
            and (not isinstance(value, dict) or self._accepts_object(cast("Any", value), rules, nested + 1))
        )

    def _accepts_combined(self, value: Any, rules: Mapping[str, Any], nested: int) -> bool:
        if "const" in rules and not same(value, rules["const"]):
            return False
        if "enum" in rules and not any(same(value, member) for member in rules["enum"]):
            return False
        if not all(self.accepts(value, part, nested) for part in self.parts(rules)):
            return False
        if "anyOf" in rules and not any(self.accepts(value, part, nested) for part in rules["anyOf"]):
            return False
        if "oneOf" in rules and sum(self.accepts(value, part, nested) for part in rules["oneOf"]) != 1:
            return False
        if "not" in rules and self.accepts(value, rules["not"], nested):
            return False
        if "if" in rules:
            branch = "then" if self.accepts(value, rules["if"], nested) else "else"
            return self.accepts(value, rules.get(branch, True), nested)
        return True

    def parts(self, rules: Mapping[str, Any]) -> list[Schema]:
        """The schemas that a value must satisfy besides `rules`: references and `allOf`."""
        references = [self.target(rules[key]) for key in ("$ref", "$dynamicRef") if key in rules]
        return [*references, *rules.get("allOf", ())]

    def _accepts_array(self, value: list[Any], rules: Mapping[str, Any], nested: int) -> bool:
        if not rules.get("minItems", 0) <= len(value) <= rules.get("maxItems", len(value)):
            return False
        if rules.get("uniqueItems") and any(
            same(value[first], value[second]) for first in range(len(value)) for second in range(first)
        ):
            return False
        first, rest = array_rules(rules)
        for index, entry in enumerate(value):
            if not self.accepts(entry, first[index] if index < len(first) else rest, nested):
                return False
        if "contains" in rules:
            count = sum(self.accepts(entry, rules["contains"], nested) for entry in value)
            if not rules.get("minContains", 1) <= count <= rules.get("maxContains", count):
                return False
        if rules.get("unevaluatedItems", True) is not True:
            seen = self._evaluated_items(value, rules, nested)
            unseen = [entry for index, entry in enumerate(value) if index not in seen]
            return all(self.accepts(entry, rules["unevaluatedItems"], nested) for entry in unseen)
        return True

    def _accepts_object(self, value: dict[str, Any], rules: Mapping[str, Any], nested: int) -> bool:
        if not rules.get("minProperties", 0) <= len(value) <= rules.get("maxProperties", len(value)):
            return False
        if not all(name in value for name in required_of(rules)):
            return False
        for name, entry in value.items():
            if not all(self.accepts(entry, part, nested) for part in property_rules(name, rules)):
                return False
            if "propertyNames" in rules and not self.accepts(name, rules["propertyNames"], nested):
                return False
        for name, wanted in dependencies_of(rules):
            if name not in value:
                continue
            if isinstance(wanted, list):
                if not all(other in value for other in cast("list[str]", wanted)):
                    return False
            elif not self.accepts(value, wanted, nested):
                return False
        if rules.get("unevaluatedProperties", True) is not True:
            seen = self._evaluated_properties(value, rules, nested)
            unseen = [entry for name, entry in value.items() if name not in seen]
            return all(self.accepts(entry, rules["unevaluatedProperties"], nested) for entry in unseen)
        return True

    def _applied(self, value: Any, rules: Mapping[str, Any], nested: int) -> Iterator[Mapping[str, Any]]:
        """The subschemas at the same place that `value` satisfies."""
        branches = [*self.parts(rules), *rules.get("anyOf", ()), *rules.get("oneOf", ())]
        if "if" in rules:
            is_true = self.accepts(value, rules["if"], nested)
            branches += [rules["if"], rules.get("then", True)] if is_true else [rules.get("else", True)]
        branches += [
            wanted
            for name, wanted in dependencies_of(rules)
            if not isinstance(wanted, list) and name in value
        ]
        for branch in branches:
            if isinstance(branch, dict) and self.accepts(value, branch, nested):
                yield cast("dict[str, Any]", branch)

    def _evaluated_properties(self, value: dict[str, Any], rules: Mapping[str, Any], nested: int) -> set[str]:
        seen = {name for name in value if is_evaluated(name, rules)}
        for branch in self._applied(value, rules, nested):
            if "unevaluatedProperties" in branch:
                return set(value)
            seen |= self._evaluated_properties(value, branch, nested + 1)
        return seen

    def _evaluated_items(self, value: list[Any], rules: Mapping[str, Any], nested: int) -> set[int]:
        first, _ = array_rules(rules)
        is_open = "additionalItems" in rules if isinstance(rules.get("items"), list) else "items" in rules
        seen = set(range(len(value) if is_open else len(first)))
        if "contains" in rules:
            seen |= {n for n, entry in enumerate(value) if self.accepts(entry, rules["contains"], nested)}
        for branch in self._applied(value, rules, nested):
            if "unevaluatedItems" in branch:
                return set(range(len(value)))
            seen |= self._evaluated_items(value, branch, nested + 1)
        return seen


def same(one: Any, other: Any) -> bool:
    """Equality as JSON Schema has it: 1 equals 1.0, and true does not equal 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        first, second = cast("list[Any]", one), cast("list[Any]", other)
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(one, dict) and isinstance(other, dict):
        left, right = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    return bool(one == other)


def types_of(rules: Mapping[str, Any]) -> list[str] | None:
    """The types that a value may have; None allows all."""
    given: Any = rules.get("type")
    if given is None:
        return None
    return [given] if isinstance(given, str) else list(cast("list[str]", given))


def required_of(rules: Mapping[str, Any]) -> Sequence[str]:
    """The required names; a boolean, as draft 3 has it, requires none."""
    required: Any = rules.get("required", ())
    return cast("list[str]", required) if isinstance(required, list) else ()


def array_rules(rules: Mapping[str, Any]) -> tuple[Sequence[Schema], Schema]:
    """The schemas of the first items, and that of all others."""
    items: Any = rules.get("items", True)
    if isinstance(items, list):
        return cast("list[Schema]", items), rules.get("additionalItems", True)
    return rules.get("prefixItems", ()), items


def property_rules(name: str, rules: Mapping[str, Any]) -> list[Schema]:
    """The schemas of the property `name`."""
    found: list[Schema] = []
    if name in (properties := rules.get("properties", {})):
        found.append(properties[name])
    for pattern, part in rules.get("patternProperties", {}).items():
        if compiled(pattern).search(name):
            found.append(part)
    return found or [rules.get("additionalProperties", True)]


def is_evaluated(name: str, rules: Mapping[str, Any]) -> bool:
    return (
        "additionalProperties" in rules
        or name in rules.get("properties", {})
        or any(compiled(pattern).search(name) for pattern in rules.get("patternProperties", {}))
    )


def dependencies_of(rules: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names, each with the names (a list) or the schema that it asks for."""
    for key in ("dependentRequired", "dependentSchemas", "dependencies"):
        for name, wanted in rules.get(key, {}).items():
            yield name, [wanted] if isinstance(wanted, str) else wanted


@lru_cache(maxsize=512)
def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern of ECMA 262; raises BadBodyError if Python cannot read it."""
    python = re.sub(r"\(\?<(?![=!])", "(?P<", pattern).replace(r"\p{L}", r"[^\W\d_]").replace(r"\p{N}", r"\d")
    try:
        return re.compile(python)
    except (re.error, OverflowError):
        raise BadBodyError(f"The emulator cannot read the pattern {pattern[:100]!r}.") from None


def _has_type(value: Any, rules: Mapping[str, Any]) -> bool:
    types = types_of(rules)
    return types is None or any(_is_of_type(value, name) for name in types)


def _is_of_type(value: Any, name: str) -> bool:
    match name:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            return is_whole and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
        case _:
            raise BadBodyError(f"The schema has the unknown type {name[:100]!r}.")


def _number_fits(value: Any, rules: Mapping[str, Any]) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    low, high = rules.get("minimum"), rules.get("maximum")
    above, below = rules.get("exclusiveMinimum"), rules.get("exclusiveMaximum")
    if isinstance(above, bool):  # draft 4
        above, low = (low, None) if above else (None, low)
    if isinstance(below, bool):
        below, high = (high, None) if below else (None, high)
    return (
        (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
        and (below is None or value < below)
        and ("multipleOf" not in rules or _is_multiple(value, rules["multipleOf"]))
    )


def _is_multiple(value: float, of: float) -> bool:
    # Some validators divide as floats, others exactly: both must agree.
    return Fraction(str(value)) % Fraction(str(of)) == 0 and (value / of).is_integer()


def _text_fits(value: Any, rules: Mapping[str, Any]) -> bool:
    if not isinstance(value, str):
        return True
    if not rules.get("minLength", 0) <= len(value) <= rules.get("maxLength", len(value)):
        return False
    return "pattern" not in rules or compiled(rules["pattern"]).search(value) is not None
