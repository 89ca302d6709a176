"""What a proxy reads from its environment, and what it refuses there."""

import os
import subprocess
import sys

import pytest

from nimway.proxy import environment
from nimway.proxy.settings import Settings


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


def test_the_largest_body_that_is_taken_can_wait() -> None:
    usual = Settings().queue_bytes_max
    found = environment.read({"NIMWAY_BODY_BYTES_MAX": str(usual + 1)})
    assert found == {"body_bytes_max": usual + 1, "queue_bytes_max": usual + 1}
    assert "queue_bytes_max" not in environment.read({"NIMWAY_BODY_BYTES_MAX": str(usual)})


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
