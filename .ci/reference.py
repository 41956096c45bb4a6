"""A room as a page: every public name by what one types, its call with defaults in the words of the source, its docstring."""

import ast
import functools
import importlib
import inspect
import itertools
import re
import textwrap

import equinox as eqx

ROOMS = (
    "analytic fields relaxation gradients stability homeostasis training language memory resonance "
    "recipes plots showcase cli"
).split()


@functools.cache
def public(room):
    """The names that a room shows, with what they are."""
    face = vars(importlib.import_module(f"eqjax.{room}"))
    shown = {n for n, v in face.items() if not n.startswith("_") and not inspect.ismodule(v)}
    if room == "cli":  # a command's face, which is no room to import from
        shown = {"main"}
    return {name: face[name] for name in sorted(shown, key=str.lower)}


def path(room, name):
    """What one types: flat where the name is flat."""
    flat = getattr(importlib.import_module("eqjax"), name, None)
    return f"ej.{name}" if flat is public(room)[name] else f"ej.{room}.{name}"


@functools.cache
def places():
    """Where every public name has its paragraph, from a page beside it."""
    return {name: f"{room}.md#{path(room, name)}" for room in ROOMS for name in public(room)}


def prose(text):
    """Markdown of a docstring: `z*` is a state, `<` no tag, and a public name leads to its paragraph. Code stays."""
    parts = re.split(r"(```.*?```|`[^`]*`)", text, flags=re.S)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            part = re.sub(r"(?<![\w*])(\w)\*(?!\*)", r"\1\\*", part)
            parts[i] = part.replace("<", "&lt;").replace("_", r"\_")
        elif part[1:-1] in places():
            parts[i] = f"[{part}]({places()[part[1:-1]]})"
    return "".join(parts)


def written(value):
    """Annotation and default of each parameter as the source has them: the values themselves would be long to print."""
    source = textwrap.dedent(inspect.getsource(value))
    node = ast.parse(source).body[0]

    def words(part):
        return part and " ".join(ast.get_source_segment(source, part).split())

    if isinstance(node, ast.FunctionDef):
        a = node.args
        plain = [*a.posonlyargs, *a.args]
        defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults + a.kw_defaults
        named = [*plain, *a.kwonlyargs, *(arg for arg in (a.vararg, a.kwarg) if arg)]
        found = {
            p.arg: (words(p.annotation), words(d))
            for p, d in zip(named, [*defaults, None, None], strict=False)
        }
        return found | {"return": (words(node.returns), None)}
    found = {}
    for base in value.__bases__:
        found |= written(base) if base.__module__.startswith("eqjax") else {}
    for line in node.body:
        if isinstance(line, ast.AnnAssign):
            default = line.value
            if isinstance(default, ast.Call) and ast.unparse(default.func).endswith("field"):
                said = {k.arg: k.value for k in default.keywords}
                default = said.get("default", said.get("default_factory"))
            found[line.target.id] = (words(line.annotation), words(default))
        elif isinstance(line, ast.FunctionDef) and line.name == "__init__":
            found |= written(value.__init__)
    return found


def signature(name, value):
    """The call as one writes it, a parameter a line where it is long."""
    try:
        parameters, texts = inspect.signature(value).parameters, written(inspect.unwrap(value))
    except (TypeError, ValueError, OSError):  # an enumeration
        return name
    parts = []
    for p in parameters.values():
        if p.name == "self":
            continue
        kind, default = texts.get(p.name, (None, None))
        if p.kind is p.KEYWORD_ONLY and not any(part.startswith("*") for part in parts):
            parts.append("*")
        text = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + p.name
        text += f": {kind}" if kind else ""
        if p.default is not p.empty:
            text += f" = {default or repr(p.default)}"
        parts.append(text)
    given = None if inspect.isclass(value) else texts["return"][0]
    back = f" -> {given}" if given else ""
    line = f"{name}({', '.join(parts)}){back}"
    return line if len(line) <= 88 else f"{name}(\n    " + ",\n    ".join(parts) + f",\n){back}"


def settings(kind):
    """What is said below the fields of a class, those that it inherits included, as a list."""
    for base in reversed([b for b in kind.__mro__ if b.__module__.startswith("eqjax")]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for field, said in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(said, ast.Expr):
                text = prose(" ".join(ast.literal_eval(said.value).split()))
                yield f"- `{field.target.id}`: {text}"


def members(kind):
    """Methods and properties with a docstring of their own; a default that is a function is none."""
    for name, value in vars(kind).items():
        value = getattr(value, "fget", getattr(value, "__func__", value))
        body = inspect.unwrap(value)
        own = inspect.isfunction(body) and body.__qualname__ == f"{kind.__qualname__}.{name}"
        if own and body.__doc__ and not name.startswith("_"):
            call = f"{kind.__name__}.{name}"
            if not isinstance(vars(kind)[name], property):
                call = signature(call, body)
            yield f"```python\n{call}\n```"
            yield prose(inspect.getdoc(body))


def entry(name, value):
    """One name, and what belongs to it."""
    found, about = [f"### `{name}` {{#{name}}}"], prose(inspect.getdoc(value) or "")
    if isinstance(value, type(eqx.Enumeration)):
        outcomes = vars(value)["_name_to_item"]
        told = ((k, " ".join(value[v].split("\n\n")[0].split())) for k, v in outcomes.items())
        return [*found, about, "\n".join(f"- `{k}`: {prose(text or '–')}" for k, text in told)]
    if not (inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value))):
        return [*found, f"```python\n{name} = {value!r}\n```"]
    found += [f"```python\n{signature(name, value)}\n```", about]
    if inspect.isclass(value):
        found += ["\n".join(settings(value)), *members(value)]
    return found


def page(room):
    """All that a room shows."""
    about = prose(inspect.getdoc(importlib.import_module(f"eqjax.{room}")) or "")
    entries = (
        block for name, value in public(room).items() for block in entry(path(room, name), value)
    )
    return "\n\n".join([about, *entries])
