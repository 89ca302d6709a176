"""Which program stands for a container image. Pure.

Three kinds: images whose name ends in `nimway` are this checkout's `nimway`, images with `/nim/` in
their path are the simulated NIM, and nothing else can be pulled.
"""

from collections.abc import Sequence


class UnknownImageError(Exception):
    """No program stands for the image; the text is what a kubelet would report."""


def entrypoint(image: str, nimway: Sequence[str]) -> list[str]:
    """Return the program that an image's ENTRYPOINT would be; `nimway` starts nimway's CLI."""
    name = repository(image)
    if "/nim/" in name:
        return [*nimway, "nim"]
    if name.rpartition("/")[2] == "nimway":
        return list(nimway)
    reference = image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest"
    raise UnknownImageError(
        f'failed to pull and unpack image "{reference}": failed to resolve reference '
        f'"{reference}": not found (the sandbox has images named .../nimway and .../nim/... only)'
    )


def repository(image: str) -> str:
    """Return an image reference without tag and digest."""
    name = image.partition("@")[0]
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(":")[0]


def command_line(
    container_command: Sequence[str], container_args: Sequence[str], image_entrypoint: Sequence[str]
) -> list[str]:
    """Combine them as Kubernetes does: a command replaces the image's entrypoint."""
    return [*(container_command or image_entrypoint), *container_args]
