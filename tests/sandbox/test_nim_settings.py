"""What the simulated NIM's environment means, and what it says about a bad one."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from nimway.cli import main
from nimway.sandbox.nim.settings import (
    ENVIRONMENT_HELP,
    Behaviour,
    Settings,
    SettingsError,
    settings_from_environment,
)


def test_an_empty_environment_gives_the_defaults() -> None:
    assert settings_from_environment({}) == Settings()


def test_the_environment_the_operator_sets_is_understood() -> None:
    settings = settings_from_environment(
        {
            "NIM_CACHE_PATH": "/model-store",
            "NIM_SERVER_PORT": "8123",
            "NIM_HTTP_API_PORT": "8123",
            "NIM_JSONL_LOGGING": "1",
            "NIM_LOG_LEVEL": "info",
            "NIM_SERVED_MODEL_NAME": "meta/llama-3.1-8b-instruct, llama,llama",
            "NIM_MODEL_PROFILE": "tp1",
            "NGC_API_KEY": "nvapi-secret",
            "NIM_PEFT_SOURCE": "/loras",
            "NIM_PEFT_REFRESH_INTERVAL": "30",
            "OUTLINES_CACHE_DIR": "/tmp/outlines",  # noqa: S108 - as the NIM Operator sets it
            "NIMSIM_SERVICE_HOST": "10.96.0.9",
            "NIMSIM_PORT": "tcp://10.96.0.9:8000",
        }
    )
    assert settings.port == 8123
    assert settings.served_model_names == ("meta/llama-3.1-8b-instruct", "llama")
    assert settings.jsonl_logging
    assert settings.ngc_api_key_given
    assert settings.peft_refresh_s == 30.0
    assert "nvapi-secret" not in repr(settings)


@pytest.mark.parametrize("field", Behaviour.__struct_fields__)
def test_every_behaviour_can_be_set_by_its_environment_name(field: str) -> None:
    values = {"sigterm": "cut", "generation": "2", "early_head": "false"}
    settings = settings_from_environment({f"NIMSIM_{field.upper()}": values.get(field, "7")})
    assert getattr(settings.behaviour, field) != getattr(Behaviour(), field)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("NIM_SERVER_PORT", "eighty", "NIM_SERVER_PORT: expected"),
        ("NIM_HTTP_API_PORT", "70000", "NIM_HTTP_API_PORT: expected"),
        ("NIM_LOG_LEVEL", "LOUD", "NIM_LOG_LEVEL: 'LOUD' is none of"),
        ("NIM_SERVED_MODEL_NAME", " , ,", "NIM_SERVED_MODEL_NAME"),
        ("NIM_PEFT_REFRESH_INTERVAL", "-1", "NIM_PEFT_REFRESH_INTERVAL: expected"),
        ("NIMSIM_TTFT_S", "nan", "NIMSIM_TTFT_S: expected"),
        ("NIMSIM_TTFT_S", "inf", "NIMSIM_TTFT_S: expected"),
        ("NIMSIM_TTTF_S", "1", "NIMSIM_TTTF_S is not a setting"),
        ("NIMSIM_ttft_s", "1", "NIMSIM_ttft_s is not a setting"),
        ("NIMSIM_SIGTERM", "panic", "NIMSIM_SIGTERM: invalid enum value"),
        ("NIMSIM_CONTROL_PORT", "of", "NIMSIM_CONTROL_PORT: expected"),
        ("NIMSIM_KEEPALIVE_S", "x", "NIMSIM_KEEPALIVE_S: expected"),
        ("NIMSIM_FAULTS", "{", "NIMSIM_FAULTS is not a JSON list"),
        ("NIMSIM_FAULTS", '[{"kind": "explode"}]', "NIMSIM_FAULTS is not a JSON list"),
        ("NIMSIM_FAULTS", '[{"kind": "slow", "delay": 1}]', "unknown field `delay`"),
    ],
)
def test_a_bad_value_is_named_in_one_sentence(name: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words.replace("[", r"\[")) as caught:
        settings_from_environment({name: value})
    assert "\n" not in str(caught.value)


def test_a_bad_value_ends_the_command_with_exit_code_2_and_no_traceback() -> None:
    result = CliRunner().invoke(main, ["nim"], env={"NIM_SERVER_PORT": "eighty"})
    assert result.exit_code == 2
    assert "Error: NIM_SERVER_PORT: expected" in result.output
    assert "Traceback" not in result.output


def test_the_help_names_every_setting() -> None:
    help_text = CliRunner().invoke(main, ["nim", "--help"]).output
    names = [*ENVIRONMENT_HELP, *(f"NIMSIM_{name.upper()}" for name in Behaviour.__struct_fields__)]
    assert [name for name in names if name not in help_text] == []


def test_a_control_port_can_be_switched_off() -> None:
    assert settings_from_environment({"NIMSIM_CONTROL_PORT": "off"}).control_port is None


def test_starting_imports_neither_kubernetes_nor_the_operators_libraries() -> None:
    program = (
        "import sys; import nimway.sandbox.nim.command;"
        "print([m for m in ('kopf', 'kubernetes', 'pydantic', 'cryptography', 'pyroute2')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
