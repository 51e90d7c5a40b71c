"""What Ray Tune tells the processes of its trials."""

import pytest
from ray.tune.execution.class_cache import _ActorClassCache

from pipeline.tune.packing import keep_secrets

NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")


class Trial:
    """What Ray makes an actor of."""


def test_no_password_is_sent_with_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would write it to runtime_env_agent.log, which all users of a node can read."""
    for name in NAMES:
        monkeypatch.setenv(name, f"planted-{name}")
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
    keep_secrets()
    sent = _ActorClassCache().get(Trial)._default_options["runtime_env"]["env_vars"]
    assert sent["RAY_CHDIR_TO_TRIAL_DIR"] == "0"
    assert not [value for value in sent.values() if "planted" in value]
