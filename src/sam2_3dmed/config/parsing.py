"""From keys and values to frozen models. A message has a line for each mistake: file, key, nearest known key."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from sam2_3dmed.errors import ConfigError, shown, suggest

Config = TypeVar("Config", bound=BaseModel)
_LONGEST_KEY = 80
_MOST_LINES = 8


def parse(data: Any, model: type[BaseModel], source: str) -> Any:
    """Make a `model` of keys and values; a ConfigError has a line for each mistake, which `source` begins."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: expected keys and values, found {type(data).__name__}")
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        causes = _causes(error.errors())
        more = [f"{source}: {len(causes) - _MOST_LINES} more mistakes"] if len(causes) > _MOST_LINES else []
        raise ConfigError("\n".join([*(_explain(e, model, source) for e in causes[:_MOST_LINES]), *more])) from None


def changed(config: Config, changes: Mapping[str, Any], source: str) -> Config:
    """Copy a config with some of its keys changed; errors are those of `parse`."""
    result: Config = parse(config.model_dump() | dict(changes), type(config), source)
    return result


def _causes(errors: Sequence[Any]) -> list[Any]:
    """Leave out errors that follow from others: a mistake in an item also makes its list seem too short."""

    def has_inner_error(place: tuple[Any, ...]) -> bool:
        return any(len(e["loc"]) > len(place) and e["loc"][: len(place)] == place for e in errors)

    return [error for error in errors if not has_inner_error(error["loc"])]


def _explain(error: Any, model: type[BaseModel], source: str) -> str:
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] != "extra_forbidden":
        reason = error["msg"].removeprefix("Value error, ")
        about_many = error["type"] == "missing" or isinstance(error["input"], Mapping | BaseModel)
        found = "" if about_many else f" (got {shown(error['input'])})"
        return f"{source}: {key[:_LONGEST_KEY] or 'configuration'}: {' '.join(reason[:300].split())}{found}"
    return f"{source}: no such key {shown(key)}; {suggest(path[-1], _keys_beside(model, path))}"


def _keys_beside(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys of the section that the last part of `path` is in. Items of a list have no field of their own."""
    for part in path[:-1]:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        kinds = (annotation, *get_args(annotation))
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), model)
    return list(model.model_fields)
