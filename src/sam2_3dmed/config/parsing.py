"""From YAML to models: every mistake at once, each with its file, its key and the nearest key that exists."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sam2_3dmed.errors import ConfigError, suggest

Config = TypeVar("Config", bound=BaseModel)


def parse(data: Any, model: type[BaseModel], source: str) -> Any:
    """`data` as a `model`, or every mistake in it at once.

    Raises:
        ConfigError: one line per mistake, with the key, what is wrong, and for an unknown key the nearest that exists.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: expected keys and values, found {type(data).__name__}")
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e, model, source) for e in _causes(error.errors()))) from None


def changed(config: Config, changes: Mapping[str, Any], source: str) -> Config:
    """A config with some of its keys changed.

    Raises:
        ConfigError: as `parse`.
    """
    result: Config = parse(config.model_dump() | dict(changes), type(config), source)
    return result


def _causes(errors: Sequence[Any]) -> list[Any]:
    """Without what follows from another: a mistake in an item also makes its list seem too short."""
    places = [error["loc"] for error in errors]
    return [
        error
        for error, place in zip(errors, places, strict=True)
        if not any(len(other) > len(place) and other[: len(place)] == place for other in places)
    ]


def _explain(error: Any, model: type[BaseModel], source: str) -> str:
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] != "extra_forbidden":
        reason = error["msg"].removeprefix("Value error, ")
        about_many = error["type"] == "missing" or isinstance(error["input"], Mapping | BaseModel)
        found = "" if about_many else f" (got {error['input']!r})"
        return f"{source}: {key or 'configuration'}: {reason}{found}"[:300]
    known = _keys_beside(model, path)
    return f"{source}: no such key {key!r}; {suggest(path[-1], known)}"


def _keys_beside(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys that exist where the last part of `path` was looked for."""
    for part in path[:-1]:
        field = model.model_fields.get(part)
        if field is None:
            continue
        kinds = get_args(field.annotation) if isinstance(field.annotation, UnionType) else (field.annotation,)
        inner = [
            k for kind in kinds for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, BaseModel)
        ]
        model = inner[0] if inner else model
    return list(model.model_fields)


def parse_yaml(text: str, source: str) -> Any:
    """What a YAML text holds.

    Raises:
        ConfigError: it is not YAML.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> Any:
    """The contents of a YAML file.

    Raises:
        ConfigError: the file cannot be read, or is not YAML.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
