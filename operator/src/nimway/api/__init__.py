"""The Kubernetes API of Nimway: NIMModel and NIMProxy, group `nimway.dev`, version `v1alpha1`.

These pydantic types are the source that `crds/` is generated from, so that the API server and the
operator refuse the same values. They hold shapes and limits only: deciding what a valid object
means is the operator's work.
"""

GROUP = "nimway.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
