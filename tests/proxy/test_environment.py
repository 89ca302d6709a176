"""What a proxy reads from its environment, and what it refuses there."""

import os
import subprocess
import sys

import pytest

from nimway.proxy import environment
from nimway.proxy.policy import resolve
from nimway.proxy.settings import Settings
from nimway.routes import DEFAULT_POLICY, Policy


def test_an_empty_environment_changes_nothing() -> None:
    assert environment.read({"PATH": "/bin", "NIMWAY_WORKERS": "2"}) == {}


def test_every_variable_is_a_setting_and_takes_its_default() -> None:
    defaults = Settings()
    for name in environment._LEAST:
        value = getattr(defaults, name)
        text = str(value).lower() if isinstance(value, bool) else str(int(value))
        read = environment.read({environment.variable(name): text})
        assert read == {name: value}
        assert type(read[name]) is type(value)


def test_what_a_model_says_wins_over_what_its_proxy_says() -> None:
    names = ("CONNECT", "FIRST_BYTE", "IDLE", "TOTAL")
    env = {f"NIMWAY_TIMEOUT_{name}_S": "7" for name in names}
    env |= {"NIMWAY_QUEUE_REQUESTS_MAX": "7", "NIMWAY_QUEUE_WAIT_MAX_S": "7"}
    settings = Settings(**environment.read(env))
    own = Policy(
        timeout_connect_s=1,
        timeout_first_byte_s=2,
        timeout_idle_s=3,
        timeout_total_s=4,
        queue_requests_max=5,
        queue_wait_max_s=6,
    )
    for policy, expected in ((DEFAULT_POLICY, [7] * 6), (own, [1, 2, 3, 4, 5, 6])):
        limits = resolve(policy, settings, pods=1, workers=1)
        assert [
            limits.timeout_connect_s,
            limits.timeout_first_byte_s,
            limits.timeout_idle_s,
            limits.timeout_total_s,
            limits.queue_requests,
            limits.queue_wait_s,
        ] == expected


def test_the_largest_body_that_is_taken_can_wait() -> None:
    usual = Settings().queue_bytes_max
    found = environment.read({"NIMWAY_BODY_BYTES_MAX": str(usual + 1)})
    assert found == {"body_bytes_max": usual + 1, "queue_bytes_max": usual + 1}
    assert "queue_bytes_max" not in environment.read({"NIMWAY_BODY_BYTES_MAX": str(usual)})
    size = Settings().held_bytes_max + 1
    found = environment.read({"NIMWAY_BODY_BYTES_MAX": str(size)})
    assert found == dict.fromkeys(("body_bytes_max", "queue_bytes_max", "held_bytes_max"), size)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("NIMWAY_BODY_BYTES_MAX", "64Mi", "'64Mi' is not a whole number of at least 1024."),
        ("NIMWAY_BODY_BYTES_MAX", "1", "'1' is not a whole number of at least 1024."),
        ("NIMWAY_CONNECTIONS_MAX", "0", "'0' is not a whole number of at least 1."),
        ("NIMWAY_TIMEOUT_TOTAL_S", "-1", "'-1' is not a whole number of at least 1."),
        ("NIMWAY_TIMEOUT_TOTAL_S", "nan", "'nan' is not a whole number of at least 1."),
        ("NIMWAY_QUEUE_REQUESTS_MAX", "", "'' is not a whole number of at least 0."),
        ("NIMWAY_PASS_AUTHORIZATION", "yes", "'yes' is neither true nor false."),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(
    name: str, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=r"^NIMWAY_") as caught:
        environment.read({name: text})
    assert str(caught.value) == f"{name}: {message}"


def test_the_proxy_does_not_start_with_a_wrong_value() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nimway", "proxy"],
        env=os.environ | {"POD_NAMESPACE": "a", "NIMWAY_BODY_BYTES_MAX": "64Mi"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip().endswith("'64Mi' is not a whole number of at least 1024.")
    assert "Traceback" not in done.stderr
