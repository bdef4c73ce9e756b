"""Rules of the source: only its owner changes state, and no constructor takes more than 8 arguments."""

import ast
from collections.abc import Iterator
from pathlib import Path

import nightmill

SOURCE = Path(nightmill.__file__).parent
MOST_PARAMETERS = 8


def trees(folder: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        yield path.relative_to(SOURCE), ast.parse(path.read_text())


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def test_a_role_changes_no_attribute_of_another_object():
    assert [
        f"{path}:{node.lineno} {ast.unparse(node)}"
        for path, tree in trees(SOURCE / "roles")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and not is_own(node)
    ] == []


def test_no_constructor_takes_more_than_eight_arguments():
    assert [
        f"{path}: {class_.name} takes {count}"
        for path, tree in trees(SOURCE)
        for class_ in ast.walk(tree)
        if isinstance(class_, ast.ClassDef)
        for function in class_.body
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
        if (count := len(function.args.args) + len(function.args.kwonlyargs) - 1) > MOST_PARAMETERS
    ] == []
