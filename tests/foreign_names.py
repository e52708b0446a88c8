"""Finds the private names of other libraries that a module uses."""

import ast
import re
from collections.abc import Collection, Iterator

PRIVATE = re.compile(r"_(?!_)\w*[A-Za-z]\w*")
# These look private, but the standard library documents them.
_DOCUMENTED = {"_asdict", "_current_frames", "_exit", "_fields", "_getframe", "_make", "_replace"}
# Begins the names of attributes that this library adds to objects of others.
_MARK = "_spark_tensorflow_"


def defined_names(tree: ast.Module) -> set[str]:
    """Return the private names that a module defines: functions, classes, variables, fields and attributes.

    An attribute is the module's own if a method sets it on its object. The ``self`` of a function outside of classes,
    which replaces a method of another library, is an object of that library.
    """
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.Module | ast.ClassDef):
            names |= {each.id for each in _assigned(node.body) if isinstance(each, ast.Name)}
        if isinstance(node, ast.ClassDef):
            methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            names |= {each.attr for method in methods for each in ast.walk(method) if _is_set_on_self(each)}
    return {name for name in names if PRIVATE.fullmatch(name)}


def _assigned(statements: list[ast.stmt]) -> Iterator[ast.expr]:
    """Yield what some statements assign to."""
    for statement in statements:
        if isinstance(statement, ast.AnnAssign):
            yield statement.target
        for target in statement.targets if isinstance(statement, ast.Assign) else ():
            yield from target.elts if isinstance(target, ast.Tuple) else [target]


def _is_set_on_self(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(ast.Name("self" | "cls"), _, ast.Store()):
            return True
    return False


def foreign_names(tree: ast.Module, ours: Collection[str]) -> Iterator[str]:
    """Yield the private names in a module that are not ours: attributes, imports, and whole strings.

    Strings count because ``getattr``, ``setattr``, ``hasattr`` and ``vars`` take names.

    Args:
        tree: The module.
        ours: The private names that this module and those of ours that it imports define.
    """
    parts_of_texts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts_of_texts:
            names = [node.value]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        for name in names:
            if PRIVATE.fullmatch(name) and name not in ours and name not in _DOCUMENTED and not name.startswith(_MARK):
                yield name
