"""The proxies that are compared, each in its best configuration, which is in configs/.

Owns their names, commands and versions. All listen on loopback, know one model and one model
server, and write no log; only nimway writes its access log and counts its metrics.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tests.bench import install, interpreter, product
from tests.bench.product import Program
from tests.bench.running import Launch
from tests.support.ports import free_port

MODEL = "bench/model"
HAPROXY_BUFFER_BYTES = 1_280 * 1024
"""Holds the largest prompt: json_query sees no further than one buffer."""

HAPROXY_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""Keeps freed buffers in the heap. Without it glibc maps and unmaps each large buffer, and a small
request costs half as much again (2.6 has no tune.memory.hot-size)."""

REFERENCE = "haproxy"
SUBJECT = "nimway"


@dataclass(frozen=True, slots=True)
class Site:
    """Where one contender runs: its folder, its port, the model server's port, its workers."""

    folder: Path
    port: int
    upstream: int
    workers: int


@dataclass(frozen=True, slots=True)
class Contender:
    """One proxy; `title` is how the table calls it, `launch` how it is started."""

    name: str
    title: str
    version: str
    launch: Callable[[Site], Launch]


def _configured(template: str, site: Site) -> Path:
    """Write configs/`template` into the contender's folder with the site's values."""
    values = {
        "@FOLDER@": str(site.folder),
        "@PORT@": str(site.port),
        "@UPSTREAM@": str(site.upstream),
        "@WORKERS@": str(site.workers),
        "@BUFFER_BYTES@": str(HAPROXY_BUFFER_BYTES),
    }
    text = (install.HERE / "configs" / template).read_text()
    for mark, value in values.items():
        text = text.replace(mark, value)
    path = site.folder / template
    path.write_text(text)
    return path


def _haproxy(site: Site) -> Launch:
    (site.folder / "models.map").write_text(f"{MODEL} model\n")
    command = ["haproxy", "-db", "-f", str(_configured("haproxy.cfg", site))]
    return Launch(command, site.folder, HAPROXY_ENVIRONMENT)


def haproxy() -> Contender:
    version = _found(r"version ([\w.]+)", install.run(["haproxy", "-v"]))
    return Contender(REFERENCE, "HAProxy, `json_query` + map", version, _haproxy)


def _nginx(site: Site) -> Launch:
    config = str(_configured("nginx.conf", site))
    return Launch(["nginx", "-p", str(site.folder), "-c", config], site.folder)


def nginx() -> Contender:
    version = _found(r"nginx/([\w.]+)", install.run(["nginx", "-v"]))
    return Contender("nginx", "nginx `proxy_pass` (looks at nothing)", version, _nginx)


def nimway(program: Program) -> Contender:
    """The product, as its image holds it."""

    def launch(site: Site) -> Launch:
        arguments = [str(site.port), str(site.upstream), str(site.workers), MODEL]
        environment = {"PYTHONPATH": f"{program.packages}:{install.HERE.parents[1]}"}
        command = [str(program.python), "-m", "tests.bench.parent", *arguments]
        return Launch(command, site.folder, environment)

    return Contender(SUBJECT, "**Nimway**, everything on", metadata.version("nimway"), launch)


def goproxy() -> Contender:
    program = install.go_program("goproxy")
    version = _found(r"go(\d[\w.]+)", install.run([str(install.go()), "version"]))

    def launch(site: Site) -> Launch:
        upstream = f"http://127.0.0.1:{site.upstream}"
        flags = [f"-listen=127.0.0.1:{site.port}", f"-upstream={upstream}", f"-model={MODEL}"]
        return Launch([str(program), *flags], site.folder)

    return Contender("go", "Go `httputil.ReverseProxy`", version, launch)


def _router_flags(site: Site) -> list[str]:
    """Flags that both Rust routers share.

    Round robin is their cheapest policy; retries and the circuit breaker, which copy the body and
    lock the worker, are off; health checks do not fall into a window.
    """
    return [
        "--host=127.0.0.1",
        f"--port={site.port}",
        f"--worker-urls=http://127.0.0.1:{site.upstream}",
        f"--prometheus-port={free_port()}",
        "--prometheus-host=127.0.0.1",
        "--policy=round_robin",
        "--log-level=error",
        "--disable-retries",
        "--disable-circuit-breaker",
        "--worker-startup-check-interval=1",
        "--health-check-interval-secs=3600",
    ]


def vllm_router() -> Contender:
    programs = install.venv("vllm-router")

    def launch(site: Site) -> Launch:
        return Launch([str(programs / "vllm-router"), *_router_flags(site)], site.folder)

    version = install.venv_version(programs, "vllm-router")
    return Contender("vllm-router", "vllm-router (Rust)", version, launch)


def sglang_router() -> Contender:
    programs = install.venv("sglang-router")

    def launch(site: Site) -> Launch:
        command = [str(programs / "sglang-router"), "launch", *_router_flags(site)]
        return Launch([*command, "--history-backend=none"], site.folder)

    version = install.venv_version(programs, "sglang-router")
    return Contender("sglang-router", "sglang-router (Rust)", version, launch)


def litellm() -> Contender:
    """Only ever 1.82.6, as locked: 1.82.7 and 1.82.8 were malicious."""
    programs = install.venv("litellm")

    def launch(site: Site) -> Launch:
        config = str(_configured("litellm.yaml", site))
        flags = ["--host=127.0.0.1", f"--port={site.port}", f"--num_workers={site.workers}"]
        environment = {
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "HOME": str(site.folder),
            "PATH": f"{programs}:{os.environ['PATH']}",
        }
        command = [str(programs / "litellm"), f"--config={config}", *flags, "--telemetry=False"]
        return Launch(command, site.folder, environment)

    return Contender("litellm", "LiteLLM", install.venv_version(programs, "litellm"), launch)


MAKERS: dict[str, Callable[[], Contender]] = {
    "nginx": nginx,
    REFERENCE: haproxy,
    SUBJECT: lambda: nimway(product.build(interpreter.choose()[0])),
    "go": goproxy,
    "vllm-router": vllm_router,
    "sglang-router": sglang_router,
    "litellm": litellm,
}
DEFAULT = tuple(name for name in MAKERS if name != "litellm")
QUICK = (REFERENCE, SUBJECT)


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else "unknown"
