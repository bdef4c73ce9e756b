"""Prints the generated parts of python.md, the page of the Python client, from the docstrings of the client.

The docstrings have sections as in Google's style (`Args:`, `Attributes:`, `Returns:`, `Raises:`, `Example:`).
What a class of asyncio only repeats is left out.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from enum import Enum
from inspect import cleandoc
from textwrap import dedent
from typing import Any, Final, TypeGuard

from nightmill import client, errors

SECTION: Final = re.compile(r"^(Args|Attributes|Returns|Raises|Example):$", re.MULTILINE)
ENTRY: Final = re.compile(r"^(?P<names>[\w., ]+?): (?P<text>.*)$", re.DOTALL)
LONGEST_SIGNATURE: Final = 100
TITLES: Final = {"Args": "Arguments", "Attributes": "Attributes", "Returns": "Returns", "Raises": "Raises"}

# In the order of the page; every other exported name follows under the last title.
GROUPS: Final = {
    "Sending and waiting": ("Client", "AsyncClient", "SubmitArguments", "Answer", "to_frame", "Frame"),
    "Without a server": ("run", "RunArguments", "RowArguments", "RunSummary"),
    "The published operations": (
        "BatchApi",
        "AsyncBatchApi",
        "ApiKeyAuth",
        "CreateBatchRequest",
        "OutputExpiresAfter",
        "BatchOptions",
        "OnInvalid",
        "ListBatchesResponse",
    ),
    "What only nightmill has": (
        "InputApi",
        "InsightApi",
        "Why",
        "Forecast",
        "BatchEvent",
        "Steering",
        "BatchSelection",
        "RetryApi",
        "FollowedLine",
        "WantedResults",
        "ResultPage",
        "WebhookApi",
        "UpstreamApi",
        "LogApi",
    ),
}
REST: Final = "Other names"


def python_errors() -> str:
    """A table of the errors."""
    rows = [
        f"| `{name}` | `{value.__bases__[0].__name__}` | {_first_line(value)} |\n"
        for name, value in vars(errors).items()
        if _is_error(value) and name in client.__all__
    ]
    return "| error | is a | meaning |\n|---|---|---|\n" + "".join(rows)


def python_reference() -> str:
    """Every exported name with its description."""
    return "\n".join(_reference())


def _is_error(value: object) -> TypeGuard[type[errors.NightmillError]]:
    return isinstance(value, type) and issubclass(value, errors.NightmillError)


def _first_line(value: object) -> str:
    text = inspect.getdoc(value) or ""
    return re.sub(r" \(docs/[^)]*\)", "", text.partition("\n")[0])


def _reference() -> Iterator[str]:
    listed = {name for names in GROUPS.values() for name in names}
    rest = [name for name in client.__all__ if name not in listed and not _is_error(getattr(client, name))]
    for title, names in (GROUPS | {REST: tuple(rest)}).items():
        yield f"### {title}\n"
        for name in names:
            yield from _entry(name, getattr(client, name))


def _entry(name: str, value: Any) -> Iterator[str]:
    if not getattr(value, "__module__", "").startswith("nightmill."):
        # An alias, or a class of a package, which has its own reference.
        if inspect.isclass(value):
            yield f"#### {name}\n\nThe class of the `{value.__module__.partition('.')[0]}` package.\n"
        return
    yield f"#### {name}\n"
    if not inspect.isclass(value):
        yield _signature(name, value)
        yield from _described(value)
        return
    if _is_shown_with_arguments(value):
        yield _signature(name, value)
    yield from _described(value)
    if issubclass(value, Enum):
        yield f"Values: {', '.join(f'`{it.value}`' for it in value)}.\n"
    properties = {it: found for it, found in vars(value).items() if isinstance(found, property)}
    if properties:
        yield "Properties:\n"
        yield "".join(
            f"- `{it}`: {_paragraph(inspect.getdoc(found) or '')}\n" for it, found in properties.items()
        )
    for method, function in vars(value).items():
        if method.startswith("_") or not inspect.isfunction(function):
            continue
        if not name.startswith("Async") or _says_more(name, method, function):
            yield f"##### {name}.{method}\n"
            yield _signature(method, function)
            yield from _described(function)


def _says_more(name: str, method: str, function: object) -> bool:
    """Whether a method of asyncio has a description of its own."""
    twin = getattr(getattr(client, name.removeprefix("Async")), method, None)
    text = inspect.getdoc(function) or ""
    return bool(text) and twin is not None and text != inspect.getdoc(twin)


def _is_shown_with_arguments(value: type) -> bool:
    return hasattr(value, "__struct_fields__") or (
        "__init__" in vars(value) and not getattr(value, "_is_protocol", False)
    )


def _signature(name: str, function: Callable[..., Any]) -> str:
    """The call as a block of text, with an argument on each line where one line is too long."""
    types = _types(function)
    given = [it for it in inspect.signature(function).parameters.values() if it.name != "self"]
    parameters = [_parameter(it, types.get(it.name)) for it in given]
    kinds = [it.kind for it in given]
    keyword_only, var_positional = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_POSITIONAL
    if keyword_only in kinds and var_positional not in kinds:
        parameters.insert(kinds.index(keyword_only), "*")
    returned = types.get("return")
    end = "" if returned in (None, "None", "Any") else f" -> {returned}"
    whole = f"{name}({', '.join(parameters)}){end}"
    if len(whole) > LONGEST_SIGNATURE:
        inner = "".join(f"    {parameter},\n" for parameter in parameters)
        whole = f"{name}(\n{inner}){end}"
    return f"```text\n{whole}\n```\n"


def _parameter(parameter: inspect.Parameter, kind: str | None) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    text = stars.get(parameter.kind, "") + parameter.name + (f": {kind}" if kind else "")
    default: object = parameter.default
    if default is parameter.empty:
        return text
    is_plain = default is None or default == () or isinstance(default, str | int | float)
    shown = "..." if not is_plain else f'"{default}"' if isinstance(default, str) else repr(default)
    return f"{text} = {shown}"


def _types(function: Callable[..., Any]) -> dict[str, str]:
    """The types of the arguments and of `return` as the source has them, the same for every Python."""
    found: dict[str, str] = {}
    if not inspect.isclass(function):
        node = _source(function)
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.returns is not None:
            found["return"] = _text(node.returns)
        arguments = node.args
        extra = [it for it in (arguments.vararg, arguments.kwarg) if it is not None]
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *extra):
            if argument.annotation is not None:
                found[argument.arg] = _text(argument.annotation)
        return found
    made_by_hand = vars(function).get("__init__")
    if made_by_hand is not None and "__dataclass_fields__" not in vars(function):
        return {name: text for name, text in _types(made_by_hand).items() if name != "return"}
    node = _source(function)
    assert isinstance(node, ast.ClassDef)
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            found[line.target.id] = _text(line.annotation)
    return found


def _source(value: Callable[..., Any]) -> ast.stmt:
    return ast.parse(dedent(inspect.getsource(value))).body[0]


def _text(annotation: ast.expr) -> str:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return annotation.value
    return ast.unparse(annotation).replace("'", '"')


def _described(value: object) -> Iterator[str]:
    """The docstring as Markdown."""
    text, *sections = SECTION.split(inspect.getdoc(value) or "")
    if text.strip():
        yield text.strip() + "\n"
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        content = cleandoc(body)
        if title == "Example":
            # A help text in an editor has it; here the beginning of the page has such examples.
            continue
        entries = [ENTRY.match(_paragraph(entry)) for entry in re.split(r"\n(?! )", content)]
        if all(entries) and title != "Returns":
            yield f"{TITLES[title]}:\n"
            yield "".join(f"- {_names(entry['names'])}: {entry['text']}\n" for entry in entries if entry)
        else:
            yield f"{TITLES[title]}: {_paragraph(content)}\n"


def _names(names: str) -> str:
    return ", ".join(f"`{name.strip()}`" for name in names.split(","))


def _paragraph(text: str) -> str:
    return " ".join(text.split())
