"""What the proxy answers from memory: its models, and how it is; nothing is passed on."""

from nimway.proxy import answers
from nimway.proxy.answers import Answer
from nimway.proxy.host import Host
from nimway.proxy.paths import read_model_id


def answer_locally(kind: str, path: bytes, host: Host) -> Answer:
    """Return the answer to a request for `path`; `kind` is that of its `paths.Operation`."""
    if kind == "models":
        return Answer(200, host.catalog.listing)
    if kind == "model-card":
        name = read_model_id(path)
        card = None if name is None else host.catalog.encode_card(name)
        return answers.model_not_found(name or "") if card is None else Answer(200, card)
    if kind == "ready":
        return answers.OK_READY if host.ready else answers.NOT_READY
    return answers.OK_LIVE
