"""Ray's own validation of a cluster file, all of its complaints at once, each with its place. No network."""

import contextlib
import copy
import io
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.cluster.findings import Config, Problem, Problems
from pipeline.errors import did_you_mean


def ray_problems(config: Config) -> Problems:
    """What Ray's JSON schema says; where it says nothing, what Ray says once it has filled in its defaults."""
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    found = list(schema_problems(config, schema))
    yield from found
    if not found:
        yield from _once_prepared(config)


def schema_problems(value: Any, schema: Mapping[str, Any]) -> Problems:
    """What a JSON schema says: an unknown key with the nearest known one, a wrong type, a missing key."""
    from jsonschema import Draft7Validator  # type: ignore[import-untyped]

    for error in sorted(Draft7Validator(schema).iter_errors(value), key=lambda e: [str(part) for part in e.path]):
        at = tuple(error.absolute_path)
        if error.validator == "additionalProperties" and isinstance(error.instance, dict):
            known = error.schema.get("properties", {})
            for key in error.instance:
                if key not in known:
                    yield Problem((*at, key), f"unknown key{did_you_mean(str(key), known)}")
        elif error.validator == "required":
            missing = [key for key in error.validator_value if key not in error.instance]
            for key in missing if error.message.split("'")[1:2] == missing[:1] else []:
                yield Problem((*at, key), "missing; add it")
        else:
            yield Problem(at, f"{error.message.splitlines()[0][:200]}; correct it")


@contextlib.contextmanager
def _no_logs() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _once_prepared(config: Config) -> Problems:
    from click import ClickException
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    said = io.StringIO()  # Ray's launcher prints why it gives up
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), _no_logs():
            validate_config(prepare_config(copy.deepcopy(config)))
    except (ValidationError, ValueError, KeyError, RuntimeError, ClickException) as error:
        reason = str(error).strip() or said.getvalue().strip() or type(error).__name__
        known = ("head_node_type", "max_workers", "available_node_types", "docker")
        key = next((key for key in known if key in reason), "provider")
        yield Problem((key,), f"Ray refuses it: {reason.splitlines()[0]}; correct it")
