"""Made-up values that satisfy a JSON Schema.

A value is made from the rules of its schema: references and `allOf` are joined, and choices are decided by
chance. Each value is checked against the whole schema before it is used (`schema_check`), so rules that are
not aimed for, such as `not`, lead to another candidate. A schema for which none is found is refused with a
reason, and never answered with a value that breaks it. Recursive schemas end, because only choices that can
end within a number of levels are taken. Values are kept for each schema: the lines of a batch mostly share
one.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from random import Random
from typing import Any, Final, cast

import msgspec

from nightmill.emulator.content import BadBodyError
from nightmill.emulator.number_sample import NoValueError, number_sample
from nightmill.emulator.schema_check import (
    Schema,
    SchemaDocument,
    array_rules,
    dependencies_of,
    property_rules,
    required_of,
    types_of,
)
from nightmill.emulator.schema_merge import all_of, contained_in, merged, plain_rules
from nightmill.emulator.text_sample import name_sample, text_sample

VARIANTS: Final = 16
"""Different values for a schema."""

_LEVELS: Final = (5, 10, 20)
_MOST_STEPS: Final = 20_000
_FULL_STEPS: Final = 400
"""After so many steps no more optional properties are made, so that large schemas have small values."""
_MOST_NESTED: Final = 60
_JOINED: Final = 12
"""Combinations of choices that are tried for one value."""
_FULLNESS: Final = (0.8, 0.8, 0.4, 0.0, 0.0)
"""The share of optional properties, for each try."""
_CONTAINERS: Final = frozenset({"object", "array"})
_SCALARS: Final = ("string", "number", "integer", "boolean", "null")
_OBJECT_RULES: Final = frozenset(
    {
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "dependentRequired",
        "dependentSchemas",
        "unevaluatedProperties",
    }
)
_ARRAY_RULES: Final = frozenset({"items", "prefixItems", "minItems", "contains", "uniqueItems"})
_NUMBER_RULES: Final = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})


def sample(schema: bytes, seed: bytes) -> bytes:
    """A value that satisfies the schema, as JSON. The same for equal arguments.

    Raises:
        BadBodyError: the schema is invalid, or no value was found.
    """
    return _variant(schema, seed[0] % VARIANTS)


@lru_cache(maxsize=512)
def _variant(schema: bytes, number: int) -> bytes:
    root: Schema = msgspec.json.decode(schema)
    sampler = _Sampler(SchemaDocument(root), Random(number))  # noqa: S311 - made-up values, not secrets
    try:
        for levels in _LEVELS:
            if sampler.fits(root, levels):
                return msgspec.json.encode(sampler.value(root, levels))
    except NoValueError:
        pass
    except RecursionError:
        raise BadBodyError("The schema is nested too deeply for the emulator.") from None
    except (TypeError, AttributeError, ValueError, LookupError, ArithmeticError):
        raise BadBodyError("The schema is not a valid JSON Schema.") from None
    raise BadBodyError("The emulator finds no answer that satisfies the schema.")


class _Sampler:
    """Makes values of the parts of one document."""

    def __init__(self, document: SchemaDocument, random: Random) -> None:
        self._document = document
        self._random = random
        self._steps = 0
        self._deepest = 0
        self._fitting: dict[tuple[int, int], bool] = {}
        self._kept: list[Schema] = []  # schemas whose id is in `_fitting` must not be freed

    def value(self, schema: Schema, levels: int) -> Any:
        """A value of the schema, with at most `levels` containers in each other; raises NoValueError."""
        for rules in islice(self._joined(schema, levels), _JOINED):
            for fullness in _FULLNESS:
                self._step()
                try:
                    made = self._made(rules, levels, fullness)
                except NoValueError:
                    continue
                if self._document.accepts(made, schema):
                    return made
        raise NoValueError

    def _step(self) -> None:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise BadBodyError("The schema is too large for the emulator.")

    # --- choices -------------------------------------------------------------------------------------

    def _joined(self, schema: Schema, levels: int, nested: int = 0) -> Iterator[dict[str, Any]]:
        """The rules of the schema without choices, one combination of its choices after the other."""
        self._step()
        if schema is False or nested > _MOST_NESTED:
            return
        if schema is True:
            yield {}
            return
        rules = cast("dict[str, Any]", schema)
        choices: list[list[Schema]] = [[part] for part in self._document.parts(rules)]
        choices += [self._ordered(rules[key], levels) for key in ("anyOf", "oneOf") if key in rules]
        if "if" in rules:
            met, unmet = [all_of([rules["if"], rules.get("then", True)])], [rules.get("else", True)]
            choices.append(met + unmet if self._random.random() < 0.5 else unmet + met)
        names = required_of(rules)
        for name, wanted in dependencies_of(rules):
            if not isinstance(wanted, list):
                choices.append([wanted] if name in names else [wanted, True])
        yield from self._combined(plain_rules(rules), choices, levels, nested + 1)

    def _combined(
        self, rules: dict[str, Any], choices: list[list[Schema]], levels: int, nested: int
    ) -> Iterator[dict[str, Any]]:
        if not choices:
            yield rules
            return
        for branch in choices[0]:
            for joined in self._joined(branch, levels, nested):
                both = merged(rules, joined)
                if both is not None:
                    yield from self._combined(both, choices[1:], levels, nested)

    def _ordered(self, branches: list[Schema], levels: int) -> list[Schema]:
        """The branches that can end, in an order by chance; null mostly comes last."""
        fitting = [branch for branch in branches if self.fits(branch, levels)]
        self._random.shuffle(fitting)
        if self._random.random() < 0.8:
            fitting.sort(key=lambda branch: branch == {"type": "null"})
        return fitting

    def fits(self, schema: Schema, levels: int) -> bool:
        """Whether some value of the schema has at most `levels` containers in each other."""
        if isinstance(schema, bool):
            return schema
        key = (id(schema), levels)
        if key not in self._fitting:
            self._step()
            self._fitting[key] = False  # until it is known: a part that needs itself never ends
            self._kept.append(schema)
            self._fitting[key] = self._can_end(cast("dict[str, Any]", schema), levels)
        return self._fitting[key]

    def _can_end(self, rules: dict[str, Any], levels: int) -> bool:
        for key in ("anyOf", "oneOf"):
            if key in rules and not any(self.fits(branch, levels) for branch in rules[key]):
                return False
        if not all(self.fits(part, levels) for part in self._document.parts(rules)):
            return False
        if "const" in rules or "enum" in rules:
            return True
        types = types_of(rules) or _guessed_types(rules)
        if any(name not in _CONTAINERS for name in types):
            return True
        return any(self._container_ends(name, rules, levels) for name in types)

    def _container_ends(self, kind: str, rules: dict[str, Any], levels: int) -> bool:
        if levels < 1:
            return False
        if kind == "object":
            return all(
                self.fits(part, levels - 1)
                for name in required_of(rules)
                for part in property_rules(name, rules)
            )
        first, rest = array_rules(rules)
        fewest = rules.get("minItems", 0)
        needed = [*first[:fewest], *([rest] if fewest > len(first) else [])]
        return all(self.fits(part, levels - 1) for part in needed)

    # --- values --------------------------------------------------------------------------------------

    def _made(self, rules: dict[str, Any], levels: int, fullness: float) -> Any:
        """A value by rules without choices."""
        if "enum" in rules:
            members = [member for member in rules["enum"] if self._document.accepts(member, rules)]
            if not members:
                raise NoValueError
            return self._random.choice(members)
        types = [
            name
            for name in rules.get("type") or _guessed_types(rules)
            if name not in _CONTAINERS or self._container_ends(name, rules, levels)
        ]
        if not types:
            raise NoValueError
        kinds = [name for name in types if name != "null"]
        kind = self._random.choice(kinds if kinds and self._random.random() < 0.85 else types)
        match kind:
            case "null":
                return None
            case "boolean":
                return self._random.random() < 0.5
            case "integer" | "number":
                return number_sample(rules, self._random, is_whole=kind == "integer")
            case "string":
                return text_sample(rules, self._random)
            case "array":
                return self._array(rules, levels - 1)
            case "object":
                return self._object(rules, levels - 1, fullness)
            case other:
                raise BadBodyError(f"The schema has the unknown type {other[:100]!r}.")

    def _array(self, rules: dict[str, Any], levels: int) -> list[Any]:
        first, rest = array_rules(rules)
        contained = contained_in(rules)
        fewest = max(rules.get("minItems", 0), len(contained))
        most = rules.get("maxItems", max(fewest, len(first), 3))
        count = max(fewest, min(most, max(len(first), self._random.randint(1, 3))))
        made: list[Any] = []
        for place in range(count):
            part = first[place] if place < len(first) else rest
            if place < len(contained):
                part = self._keep(all_of([part, contained[place]]))
            try:
                made.append(self._item(part, levels, made if rules.get("uniqueItems") else []))
            except NoValueError:
                if place < fewest:
                    raise
                break
        return made

    def _item(self, part: Schema, levels: int, different_from: list[Any]) -> Any:
        if not self.fits(part, levels):
            raise NoValueError
        for _ in range(1 + 4 * len(different_from)):
            made = self.value(part, levels)
            if made not in different_from:
                return made
        raise NoValueError

    def _object(self, rules: dict[str, Any], levels: int, fullness: float) -> dict[str, Any]:
        required = dict.fromkeys(required_of(rules))
        fewest = max(rules.get("minProperties", 0), len(required))
        most = rules.get("maxProperties", 1 << 30)
        optional = [name for name in rules.get("properties", {}) if name not in required]
        chosen = [name for name in optional if self._random.random() < self._share(fullness, levels)]
        left = [name for name in optional if name not in chosen]
        made: dict[str, Any] = {}
        for name in self._with_dependencies([*required, *chosen], rules):
            if name in required or len(made) < most:
                self._add(made, name, rules, levels, is_needed=name in required)
        is_map = not optional and not required and ("additionalProperties" in rules or fullness > 0.5)
        if is_map and rules.get("additionalProperties") is not False:
            fewest = max(fewest, min(most, self._random.randint(1, 2)))
        for name in left:
            if len(made) >= fewest:
                break
            self._add(made, name, rules, levels, is_needed=False)
        for place in range(4 * fewest):
            if len(made) >= fewest:
                break
            name = self._new_name(rules, place)
            self._add(made, name, rules, levels, is_needed=False)
        return made

    def _share(self, fullness: float, levels: int) -> float:
        """The share of optional properties: fewer in deeper objects, so that a value stays readable."""
        self._deepest = max(self._deepest, levels)
        return 0.0 if self._steps > _FULL_STEPS else fullness / (1 << (self._deepest - levels))

    def _add(
        self, made: dict[str, Any], name: str, rules: dict[str, Any], levels: int, *, is_needed: bool
    ) -> None:
        part = self._keep(all_of(property_rules(name, rules)))
        try:
            if name not in made:
                made[name] = self._item(part, levels, [])
        except NoValueError:
            if is_needed:
                raise

    def _with_dependencies(self, names: list[str], rules: dict[str, Any]) -> list[str]:
        """The names, and those that they ask for."""
        found = list(names)
        for name in found:
            for asking, wanted in dependencies_of(rules):
                if asking == name and isinstance(wanted, list):
                    found += [other for other in cast("list[str]", wanted) if other not in found]
        return found

    def _new_name(self, rules: dict[str, Any], place: int) -> str:
        if "propertyNames" in rules:
            name = self.value(all_of([{"type": "string"}, rules["propertyNames"]]), 0)
            return cast("str", name)
        return name_sample(list(rules.get("patternProperties", {})), self._random, place)

    def _keep(self, schema: Schema) -> Schema:
        self._kept.append(schema)
        return schema


def _guessed_types(rules: dict[str, Any]) -> tuple[str, ...]:
    """The types that the other rules are about."""
    if rules.keys() & _OBJECT_RULES:
        return ("object",)
    if rules.keys() & _ARRAY_RULES:
        return ("array",)
    if rules.keys() & _NUMBER_RULES:
        return ("number",)
    return ("string",)
