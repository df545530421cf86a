"""The reference pages of commands and recipe keys, generated from the code while the site is built.

A page asks with `<!-- generated: NAME -->` on a line of its own; `GENERATED` has the names.
"""

import ast
import types
import typing
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from annotated_types import BaseMetadata
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sphinx.pycode import ModuleAnalyzer


def commands_markdown() -> str:
    """Every command with its usage, arguments, options and examples."""
    from sam2_3dmed.cli.main import app

    root = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in _leaves(root, "sam2-3dmed"))


def _leaves(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from _leaves(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _command(path: str, command: Any) -> str:
    options = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [_names(option).strip("`") for option in options if option.param_type_name == "argument"]
    usage = " ".join([path, *arguments, "[OPTIONS]"])
    parts = [f"## {path.removeprefix('sam2-3dmed ')}", cleandoc(command.help or ""), f"```text\n{usage}\n```"]
    if options:
        lines = ["| argument or option | default | meaning |", "|---|---|---|"]
        lines += [f"| {_names(option)} | {_default(option)} | {_cell(option)} |" for option in options]
        parts.append("\n".join(lines))
    if command.epilog:
        examples = command.epilog.replace("[b]Examples[/b]", "").split("\n\n")
        parts.append("Examples:\n\n```bash\n" + "\n".join(line.strip() for line in examples if line.strip()) + "\n```")
    return "\n\n".join(parts)


def _names(option: Any) -> str:
    if option.param_type_name == "argument":
        name = (option.metavar or option.name.upper()).strip("[]")
        name = name if option.required else f"[{name}]"
        return f"`{name}...`" if option.nargs == -1 and not name.endswith("...") else f"`{name}`"
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} {_kind(option.type_descriptor.annotation)}"


def _kind(kind: Any) -> str:
    """The value of an option in one word, or the words to choose from."""
    arguments = [part for part in get_args(kind) if part is not type(None)]
    if get_origin(kind) is Literal:
        return "`" + "\\|".join(arguments) + "`"
    if get_origin(kind) in (typing.Union, types.UnionType, list):
        return _kind(arguments[0])
    return f"`{getattr(kind, '__name__', 'TEXT').replace('str', 'text').upper()}`"


def _default(option: Any) -> str:
    if option.required:
        return "required"
    value = option.default
    return "" if value is None or value is False or value == () or callable(value) else f"`{value}`"


def _cell(option: Any) -> str:
    return " ".join((option.help or "").split()).replace("|", "\\|")


def recipe_markdown() -> str:
    """Every key of a recipe: section by section, with type, limits, default and meaning."""
    from sam2_3dmed.config.schema import RunConfig

    top = [name for name, field in RunConfig.model_fields.items() if not _section(field)]
    parts = [_keys(RunConfig, "", top, "Top-level keys")] if top else []
    for name, field in RunConfig.model_fields.items():
        if section := _section(field):
            text = _keys(section, f"{name}.", list(section.model_fields), f"Section `{name}`")
            parts.append(text)
    return "\n\n".join(parts)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _keys(model: type[BaseModel], prefix: str, names: list[str], title: str) -> str:
    lines = [f"## {title}", cleandoc(model.__doc__ or "").replace("\n", " ") if prefix else ""]
    lines += ["| key | values | default | meaning |\n|---|---|---|---|"]
    rows = []
    for name in names:
        field = model.model_fields[name]
        default = _yaml(field.get_default(call_default_factory=True))
        meaning = " ".join(_meaning(model, name, field).split()).replace("|", "\\|")
        rows.append(f"| `{prefix}{name}` | {_values(field)} | {default} | {meaning} |")
    return "\n\n".join(line for line in lines if line) + "\n" + "\n".join(rows)


def _meaning(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    """The docstring below a field, also of a class that this one extends."""
    if field.description:
        return field.description
    for owner in model.__mro__:
        if issubclass(owner, BaseModel) and owner is not BaseModel:
            found = ModuleAnalyzer.for_module(owner.__module__).find_attr_docs().get((owner.__qualname__, name))
            if found:
                return " ".join(found).replace("``", "`")
    return ""


def _values(field: FieldInfo) -> str:
    text = _type(field.annotation)
    limits = ", ".join(filter(None, map(_limit, field.metadata)))
    return f"{text}, {limits}" if limits else text


def _type(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, typing.TypeAliasType if hasattr(typing, "TypeAliasType") else ()):
        return _type(kind.__value__)
    if origin is Annotated:
        limits = ", ".join(filter(None, map(_limit, _metadata(arguments[1:]))))
        return f"{_type(arguments[0])} ({limits})" if limits else _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(part) for part in arguments)
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is dict or getattr(origin, "__name__", "") == "Mapping":
        return f"{_type(arguments[1])} by {_type(arguments[0])}"
    words = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text", type(None): "`none`"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _metadata(found: tuple[Any, ...]) -> list[Any]:
    return [part for item in found for part in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _limit(item: Any) -> str:
    if not isinstance(item, BaseMetadata):
        return ""
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}
    signs |= {"min_length": "at least so many:", "max_length": "at most so many:"}
    found = [f"{word} {getattr(item, key):g}" for key, word in signs.items() if getattr(item, key, None) is not None]
    return ", ".join(found)


def _yaml(value: Any) -> str:
    if value is None:
        return "`none`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple | list):
        return "`[" + ", ".join(map(str, value)) + "]`"
    if isinstance(value, dict):
        return "`{" + ", ".join(f"{key}: {entry}" for key, entry in value.items()) + "}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def loss_terms_markdown() -> str:
    """Every term that `loss.terms` can name, with the first sentence about it."""
    from sam2_3dmed.training import losses

    rows = []
    for file in sorted(Path(losses.__file__).parent.glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            for call in (item for item in function.decorator_list if isinstance(item, ast.Call)):
                meaning = (ast.get_docstring(function) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
                rows.append(f"| `{ast.literal_eval(call.args[0])}` | {meaning} |")
    return "\n".join(["| term | meaning |", "|---|---|", *sorted(rows)])


GENERATED = {"commands": commands_markdown, "recipe": recipe_markdown, "loss_terms": loss_terms_markdown}


def setup(app: Any) -> dict[str, bool]:
    """Put the generated text into the pages that ask for it, as Sphinx reads them."""

    def fill(app: Any, docname: str, source: list[str]) -> None:
        for name, make in GENERATED.items():
            marker = f"<!-- generated: {name} -->"
            if marker in source[0]:
                app.env.note_reread()
                source[0] = source[0].replace(marker, make())

    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
