"""Guarantee 12, read from the source: who touches what is private to Lightning, and who owns Lightning's hooks."""

import ast
from collections.abc import Iterator

from lightning.pytorch import Callback

__all__ = ["HOOKS", "hooks_outside_seams", "private_touches"]

# The hooks of Lightning; state that a method keeps (`state_dict`, `load_state_dict`) is data, no moment of a run.
HOOKS = {name for name in dir(Callback) if name.startswith("on_") or name in ("setup", "teardown")}
# What these names, as a variable, argument or attribute, stand for belongs to Lightning.
FOREIGN = {"trainer", "strategy", "pl_module", "precision_plugin", "fit_loop", "optimizer", "optimizers"}


def private_touches(source: str) -> Iterator[str]:
    """`line: expression` of each underscore attribute on something of Lightning's, and each private import of it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and _private(node.attr) and FOREIGN & set(_names(node.value)):
            yield f"{node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            owner, name, *_ = node.args
            private = isinstance(name, ast.Constant) and _private(str(name.value))
            if private and FOREIGN & set(_names(owner)):
                yield f"{node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning."):
            parts = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            if any(map(_private, parts)):
                yield f"{node.lineno}: {ast.unparse(node)}"


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _names(expression: ast.expr) -> Iterator[str]:
    """The names along `a.b(c).d[e]`, without what stands in parentheses and brackets."""
    while not isinstance(expression, ast.Name):
        if isinstance(expression, ast.Attribute):
            yield expression.attr
            expression = expression.value
        elif isinstance(expression, ast.Call):
            expression = expression.func
        elif isinstance(expression, ast.Subscript):
            expression = expression.value
        else:
            return
    yield expression.id


def hooks_outside_seams(source: str) -> Iterator[str]:
    """`line: Class.hook` of each Lightning hook that a class defines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            for it in node.body:
                if isinstance(it, (ast.FunctionDef, ast.AsyncFunctionDef)) and it.name in HOOKS:
                    yield f"{it.lineno}: {node.name}.{it.name}"
