"""The demo: from nothing to a completion through the proxy, each step shown with its time.

Owns the order of the steps and their words. Every step is something a user would do: the real helm,
kubectl and curl, on a real control plane; only the NIMs are simulated.
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx

import nimway
from nimway.sandbox import binaries
from nimway.sandbox.errors import FailedError, SandboxError
from nimway.sandbox.launcher import Options, Sandbox, launch

RELEASE_NAMESPACE: Final = "nimway-system"
MODELS_NAMESPACE: Final = "models"
PROXY_SERVICE: Final = "nimway-default"
SAMPLES: Final = Path(__file__).parent / "samples"
MODEL: Final = "meta/llama-3.1-8b-instruct"
SLEEPING_MODEL: Final = "mistralai/mistral-7b-instruct-v0.3"
_WAIT_S: Final = 90
_CURL_S: Final = 60.0
_CURL_OPTIONS: Final = ("-sS", "-N", "--fail-with-body", "--max-time", str(_CURL_S))

Say = Callable[[str], None]


class DemoError(FailedError):
    """A step failed; the text says which and why."""


def check_completion(answer: str) -> None:
    """Raise DemoError unless the answer is a completion with a text."""
    try:
        text = json.loads(answer)["choices"][0]["text"]
    except (ValueError, LookupError, TypeError) as error:
        raise DemoError(f"this is no completion: {answer[:200]}") from error
    if not text:
        raise DemoError("the completion is empty")


def chart() -> Path:
    """Return the Helm chart: of this checkout, else the one in the wheel."""
    folders = [
        Path(nimway.__file__).parents[3] / "charts" / "nimway",
        Path(__file__).parent / "share" / "charts" / "nimway",
    ]
    for folder in folders:
        if (folder / "Chart.yaml").is_file():
            return folder
    raise FailedError(f"the Helm chart is in neither {folders[0]} nor {folders[1]}")


class Demo:
    """One run of the demo; `run` leaves everything up, the caller stops the sandbox."""

    def __init__(self, options: Options, listener: socket.socket, say: Say) -> None:
        self._options = options
        self._listener = listener
        self._port = listener.getsockname()[1]
        self._began = time.monotonic()
        self._say = say
        self.sandbox: Sandbox | None = None

    @property
    def address(self) -> str:
        """The users' base URL."""
        return f"http://127.0.0.1:{self._port}"

    def run(self) -> None:
        """Do every step.

        Raises:
            SandboxError: this machine or its user must change something first.
            FailedError: a step failed.
        """
        helm = binaries.helm(self._step)
        self._step("starting a control plane: etcd, kube-apiserver, scheduler, 2 nodes of 8 GPUs")
        self.sandbox = launch(self._options, self._step)
        self._install(helm)
        self._apply_samples()
        self._await_ready()
        self._ask()
        self._wake()
        self._step("done: from nothing to answers")

    def _step(self, text: str) -> None:
        self._say(f"[{time.monotonic() - self._began:5.1f} s] {text}")

    def _install(self, helm: Path) -> None:
        self._step("installing Nimway with its Helm chart")
        command = ["install", "nimway", str(chart()), "--namespace", RELEASE_NAMESPACE]
        self._shown("helm", [*command, "--create-namespace", "--hide-notes"], program=helm)

    def _apply_samples(self) -> None:
        self._step("applying Secrets and four models, of which one sleeps until it is asked")
        self._kubectl("create", "namespace", MODELS_NAMESPACE)
        self._kubectl("apply", "-n", MODELS_NAMESPACE, "-f", str(SAMPLES))

    def _await_ready(self) -> None:
        self._step("waiting until the models are loaded, or asleep, and routed")
        self._kubectl(
            "wait", "-n", MODELS_NAMESPACE, "nimmodels", "--all",
            "--for=condition=Ready", f"--timeout={_WAIT_S}s",
        )  # fmt: skip
        self._step("ready")
        self._kubectl("get", "nimmodels", "-n", MODELS_NAMESPACE)

    def _ask(self) -> None:
        sandbox = self._running()
        sandbox.forward_service(RELEASE_NAMESPACE, PROXY_SERVICE, "http", self._listener)
        self._step(f"asking the proxy, which is at {self.address}")
        if f'"{MODEL}"' not in self._curl([f"{self.address}/v1/models"]):
            raise DemoError(f"/v1/models does not list {MODEL}")
        body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 64}
        check_completion(self._curl(self._post("/v1/completions", body)))
        self._step("and one streamed answer")
        message = {"role": "user", "content": "Say something short."}
        chat = {"model": MODEL, "messages": [message], "max_tokens": 8, "stream": True}
        if "data: [DONE]" not in self._curl(self._post("/v1/chat/completions", chat)):
            raise DemoError("the stream has no end")

    def _wake(self) -> None:
        """Ask a model that sleeps: the request is held until its pod is ready."""
        self._step(f"asking {SLEEPING_MODEL}, which sleeps and holds no GPU: the request wakes it")
        began = time.monotonic()
        body = {"model": SLEEPING_MODEL, "prompt": "Good morning", "max_tokens": 16}
        check_completion(self._curl(self._post("/v1/completions", body)))
        self._step(f"woken, started and answered in {time.monotonic() - began:.1f} s")
        self._kubectl("get", "nimmodels", "-n", MODELS_NAMESPACE)

    def _post(self, path: str, body: dict[str, object]) -> list[str]:
        headers = ["-H", "accept: application/json", "-H", "Content-Type: application/json"]
        return ["-X", "POST", f"{self.address}{path}", *headers, "-d", json.dumps(body)]

    def _curl(self, arguments: list[str]) -> str:
        """Show and run a curl of the user's; without curl on this machine, ask as it would."""
        self._say(f"\n$ curl -N {shlex.join(arguments)}")
        if program := shutil.which("curl"):
            return self._run_curl([program, *_CURL_OPTIONS, *arguments])
        text = _ask_without_curl(arguments)
        self._say(f"(curl is not installed here: asked in its place)\n{text.strip()}\n")
        return text

    def _run_curl(self, command: list[str]) -> str:
        """Run curl, showing each line when it comes: a stream is seen to be one."""
        text = ""
        with subprocess.Popen(  # noqa: S603 - no shell, our own arguments
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            for line in process.stdout or ():
                text += line
                if line.strip():
                    self._say(line.rstrip())
        if process.returncode != 0:
            raise DemoError(f"curl failed with status {process.returncode}{self._what_pods_say()}")
        self._say("")
        return text

    def _kubectl(self, *arguments: str) -> None:
        self._shown("kubectl", list(arguments), program=binaries.kubectl(self._step))

    def _shown(self, name: str, arguments: list[str], *, program: Path) -> None:
        """Show a command as the user would type it, run it and show what it prints."""
        self._say(f"\n$ {name} {shlex.join(arguments)}")
        self._say(self._run([str(program), *arguments], name).strip() + "\n")

    def _run(self, command: list[str], name: str) -> str:
        done = subprocess.run(  # noqa: S603 - no shell, our own arguments
            command,
            env=os.environ | {"KUBECONFIG": str(self._running().kubeconfig)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip()) + self._what_pods_say()
            raise DemoError(f"{name} failed with status {done.returncode}: {said}")
        return done.stdout

    def _what_pods_say(self) -> str:
        """Return the state of the pods, and what those printed that are not ready."""
        sandbox = self._running()
        try:
            lines = ["", sandbox.kubectl("get", "nimmodels,pods", "-A")]
            pods = json.loads(sandbox.kubectl("get", "pods", "-A", "-o", "json"))["items"]
        except SandboxError as error:
            return f"\n{error}"
        for pod in pods:
            containers = pod["status"].get("containerStatuses") or []
            if not all(each["ready"] for each in containers):
                metadata = pod["metadata"]
                lines += sandbox.last_output(metadata["namespace"], metadata["name"])
        return "\n".join(lines)

    def _running(self) -> Sandbox:
        if self.sandbox is None:
            raise DemoError("the sandbox is not up yet")
        return self.sandbox

    def next_steps(self) -> str:
        """Return what to try now, for a second terminal."""
        sandbox = self._running()
        sample = SAMPLES / "llama-3-1-8b.yaml"
        return f"""\
It stays up until Ctrl-C. In a second terminal:

  export KUBECONFIG={sandbox.kubeconfig}
  kubectl get nimmodels -n {MODELS_NAMESPACE} --watch   # mistral-7b sleeps again after a minute
  kubectl get nimmodels,pods -A   # or: nimway sandbox kubectl --name {sandbox.name} get ...
  kubectl scale -n {MODELS_NAMESPACE} nimmodel/llama-3-1-8b --replicas=3
  kubectl delete -n {MODELS_NAMESPACE} pod --all   # they come back
  kubectl apply -n {MODELS_NAMESPACE} -f your-model.yaml   # such as
  {sample}

  pip install openai
  python3 - <<'EOF'
  from openai import OpenAI
  client = OpenAI(base_url="{self.address}/v1", api_key="none")
  answer = client.completions.create(model="{MODEL}", prompt="Once upon a time", max_tokens=64)
  print(answer.choices[0].text)
  EOF
"""


def _ask_without_curl(arguments: list[str]) -> str:
    """Do what the few curl arguments of this demo say."""
    url = next(each for each in arguments if each.startswith("http://"))
    content = arguments[arguments.index("-d") + 1] if "-d" in arguments else None
    headers = {"content-type": "application/json"}
    method = "POST" if content else "GET"
    try:
        answer = httpx.request(
            method, url, content=content, headers=headers, timeout=_CURL_S, trust_env=False
        )
    except httpx.HTTPError as error:
        raise DemoError(f"{method} {url}: {error}") from error
    if answer.is_error:
        raise DemoError(f"{method} {url}: {answer.status_code} {answer.text}")
    return answer.text
