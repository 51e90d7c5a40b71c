"""Configuration <-> the plain dict that lies beside a model's weights."""

import math
from dataclasses import asdict, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vae_core.config import models, networks, schedules
from vae_core.config.models import ModelConfig


def to_dict(config: object) -> dict[str, Any]:
    """JSON-ready form; `model_from_dict` reads that of a model back."""
    return asdict(config)  # type: ignore[call-overload,no-any-return]


def model_from_dict(data: dict[str, Any]) -> ModelConfig:
    """Inverse of `to_dict`.

    Raises:
        ValueError: an unknown kind, keys that the kind does not have, or a value that it does not allow.
    """
    model: ModelConfig = _build(get_args(models.ModelConfig), data)
    return model


def _build(kinds: tuple[Any, ...], values: Any) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"expected keys and values, got {values!r}")
    by_name = {name: kind for kind in kinds for name in get_args(get_type_hints(kind)["kind"])}
    name = values.get("kind")
    if not isinstance(name, str) or name not in by_name:
        raise ValueError(f"kind: expected one of {sorted(by_name)}, got {name!r}")
    kind = by_name[name]
    unknown = set(values) - {field.name for field in fields(kind)}
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {sorted(unknown)}")
    hints = get_type_hints(kind)
    return kind(**{name: _value(name, hints[name], value) for name, value in values.items()})


def _value(name: str, hint: Any, value: Any) -> Any:
    found = value
    if isinstance(value, list):
        found = tuple(value)
    elif isinstance(value, dict):
        found = _build(get_args(networks.NetworkConfig if name == "network" else schedules.ScheduleConfig), value)
    if not _fits(hint, found):
        expected = f"one of {list(get_args(hint))}" if get_origin(hint) is Literal else getattr(hint, "__name__", hint)
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return found


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value read from JSON is of the type of its field. A bool is no number; a number is finite."""
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return value in parts
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(parts[0], item) for item in value)
    if parts:
        return any(_fits(part, value) for part in parts)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint
