"""Configuration <-> the plain dict that lies beside a model's weights."""

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


def _build(kinds: tuple[Any, ...], values: dict[str, Any]) -> Any:
    by_name = {name: kind for kind in kinds for name in get_args(get_type_hints(kind)["kind"])}
    kind = by_name.get(values.get("kind", ""))
    if kind is None:
        raise ValueError(f"kind: expected one of {sorted(by_name)}, got {values.get('kind')!r}")
    unknown = set(values) - {field.name for field in fields(kind)}
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {sorted(unknown)}")
    hints = get_type_hints(kind)
    return kind(**{name: _value(name, hints[name], value) for name, value in values.items()})


def _value(name: str, hint: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, dict):
        return _build(get_args(networks.NetworkConfig if name == "network" else schedules.ScheduleConfig), value)
    if get_origin(hint) is Literal and value not in get_args(hint):
        raise ValueError(f"{name}: expected one of {list(get_args(hint))}, got {value!r}")
    return value
