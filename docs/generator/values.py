"""The page of values: what hooks are given and may answer, field by field."""

from __future__ import annotations

import ast
import inspect

from docs.generator.markdown import code, page, prose, table
from kernel import agent, broker, environment, finding, intent, message, route, session, transition

VALUES: tuple[type, ...] = (
    route.RouteRequest,
    route.RouteAdvice,
    route.Route,
    route.PlacementRequest,
    broker.Broker,
    intent.Intent,
    intent.Op,
    intent.Lane,
    intent.State,
    agent.Agent,
    agent.Phase,
    message.Message,
    transition.Transition,
    environment.Environment,
    environment.Secret,
    session.Request,
    session.Principal,
    session.Resource,
    session.Decision,
    finding.Finding,
    finding.Level,
)
VALUES_ARE = """
What hooks are given and may answer. All are frozen. `kernel` exports each: `from kernel import RouteAdvice`.
Instants are whole microseconds since the Unix epoch. Spans are seconds.
"""


def values() -> str:
    parts = [VALUES_ARE]
    for value in VALUES:
        parts += [f"## {value.__name__}", prose(_own_doc(value)), table(("field", "type", "default", ""), _rows(value))]
    return page("Values", "kernel/", *parts)


def _own_doc(value: type) -> str:
    return ast.get_docstring(_definition(value)) or ""


def _definition(value: type) -> ast.ClassDef:
    module = ast.parse(inspect.getsource(value))
    assert isinstance(module.body[0], ast.ClassDef)
    return module.body[0]


def _rows(value: type) -> list[tuple[str, ...]]:
    """One row a field, with the docstring that stands below it; for a Protocol, its members."""
    body = _definition(value).body
    rows: list[tuple[str, ...]] = []
    for node, below in zip(body, [*body[1:], None], strict=True):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)):
                default = ast.unparse(node.value) if node.value else ""
                rows.append((code(name), code(ast.unparse(node.annotation)), code(default), _doc(below)))
            case ast.Assign(targets=[ast.Name(id=name)]):
                rows.append((code(name), "", code(ast.unparse(node.value)), _doc(below)))
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if _is_field(node):
                told = " ".join((ast.get_docstring(node) or "").partition("Raises:")[0].split())
                rows.append((code(_called(node)), code(ast.unparse(node.returns) if node.returns else ""), "", told))
    return rows


def _is_field(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return not node.name.startswith("_")


def _called(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """`path` for a property, `can(capability)` for a method, `await body()` for an asynchronous one."""
    if any(isinstance(mark, ast.Name) and mark.id == "property" for mark in node.decorator_list):
        return node.name
    arguments = ", ".join(argument.arg for argument in node.args.args if argument.arg != "self")
    return f"{'await ' if isinstance(node, ast.AsyncFunctionDef) else ''}{node.name}({arguments})"


def _doc(node: ast.stmt | None) -> str:
    match node:
        case ast.Expr(value=ast.Constant(value=str(told))):
            return " ".join(told.split())
    return ""
