"""docs/argocd/health.lua says what Argo CD shall show, over statuses recorded from an operator."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa import lua51

from nimway.api.crd import build_crds
from tests.docs.pages import DOCS

DATA = Path(__file__).parent / "data"
SCRIPT = (DOCS / "argocd/health.lua").read_text(encoding="utf-8")


def _recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DATA / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


def _health(manifest: dict[str, Any]) -> tuple[str, str]:
    """Run the script as Argo CD does: Lua 5.1, the object in the global `obj`."""
    lua = lua51.LuaRuntime(register_eval=False)
    for unsafe in ("io", "os", "debug", "package", "require", "python"):
        lua.globals()[unsafe] = None
    lua.globals().obj = lua.table_from(manifest, recursive=True)
    answer = lua.execute(SCRIPT)
    return answer.status, answer.message


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("serving", "Healthy", "1 of 1 replicas serve"),
        ("proxy", "Healthy", "serving 7 models"),
        ("rolling", "Progressing", "Progressing: "),
        ("waiting-for-gpu", "Progressing", "WaitingForGPU: needs 16 nvidia.com/gpu"),
        ("switched-off", "Suspended", "switched off: spec.replicas is 0"),
        ("proxy-switched-off", "Suspended", "switched off: spec.replicas is 0"),
        ("name-conflict", "Degraded", "NameConflict: the name meta/llama-3.2-3b-instruct is held"),
    ],
)
def test_a_recorded_object_is_shown_as_its_status_says(
    name: str, status: str, message: str
) -> None:
    shown, text = _health(_recorded(name))
    assert shown == status
    assert text.startswith(message)


@pytest.mark.parametrize("name", [path.stem for path in sorted(DATA.glob("*.yaml"))])
def test_a_spec_that_the_operator_has_not_seen_is_progressing(name: str) -> None:
    manifest = _recorded(name)
    manifest["metadata"]["generation"] += 1
    assert _health(manifest) == ("Progressing", "waiting for the operator")


@pytest.mark.parametrize("status", [{"observedGeneration": -1}, None, {"observedGeneration": 3}])
def test_an_object_without_conditions_is_progressing(status: dict[str, Any] | None) -> None:
    manifest = _recorded("serving")
    del manifest["status"]
    if status is not None:
        manifest["status"] = status
    assert _health(manifest) == ("Progressing", "waiting for the operator")


def test_no_application_takes_the_crds_and_every_model_with_them() -> None:
    for crd in build_crds().values():
        options = crd["metadata"]["annotations"]["argocd.argoproj.io/sync-options"]
        assert options == "Prune=false,Delete=false"


def test_asleep_by_an_autoscaler_is_healthy() -> None:
    manifest = _recorded("serving")
    manifest["status"]["conditions"][0]["reason"] = "ScaledToZero"
    assert _health(manifest)[0] == "Healthy"


def test_a_name_that_becomes_free_by_itself_is_waited_for() -> None:
    manifest = _recorded("name-conflict")
    conditions = {each["type"]: each for each in manifest["status"]["conditions"]}
    conditions["Stalled"]["status"], conditions["Reconciling"]["status"] = "False", "True"
    assert _health(manifest)[0] == "Progressing"
