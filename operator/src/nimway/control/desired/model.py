"""All children of a NIMModel: Deployment, Service, disruption budget, and the claim it may ask for.

The Deployment's pods are frozen: they change only when the user's intent for them did. A newer
operator that would render the same intent differently leaves a running model alone.
"""

from nimway.api.nimmodel import Rollout
from nimway.control import fields
from nimway.control.desired import names
from nimway.control.desired.metadata import child, given, metadata
from nimway.control.desired.monitor import build_monitor
from nimway.control.desired.pod import build_template
from nimway.control.desired.quantity import canonical
from nimway.control.kinds import CLAIM, DEPLOYMENT, DISRUPTION_BUDGET, SERVICE, Kind, Manifest
from nimway.control.resolve import ResolvedModel, content_hash
from nimway.routes import HTTP_PORT_NAME

INTENT_ANNOTATION = "nimway.dev/intent"
TEMPLATE_ANNOTATION = "nimway.dev/template"
"""Hash of the pod template that was rendered for the intent."""

ADMITTED_ANNOTATION = "nimway.dev/admitted"
"""Hash of what admission made of that template, where it is not the same."""

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

SCHEDULING_S = 1800
"""What a pod may wait for a node and its image before the startup budget begins."""

METRICS_PATH = "/v1/metrics"
"""Where a NIM has its metrics, on its HTTP port."""

REVISIONS_KEPT = 3
ROLLOUT = Rollout.model_validate({})
"""The rollout where the user says nothing."""


def build_model(
    model: ResolvedModel, live: Manifest | None, live_claim: Manifest | None = None
) -> list[tuple[Kind, Manifest]]:
    """Return all children in the order in which they are applied; `live` is the Deployment.

    The claim is before the Deployment, which shall not mount somebody else's of that name.
    """
    claim = build_claim(model, live_claim)
    return [
        *([(CLAIM, claim)] if claim is not None else []),
        (DEPLOYMENT, build_deployment(model, live)),
        (SERVICE, build_service(model)),
        (DISRUPTION_BUDGET, build_budget(model)),
    ]


def build_deployment(model: ResolvedModel, live: Manifest | None) -> Manifest:
    """Return the Deployment, with the live pod template where it is still what the user wants."""
    owner, spec = model.owner, model.spec
    template = build_template(model)
    digest = content_hash(template)
    held = frozen_template(model.intent, live, digest)
    if held is not None:
        template, digest = held, content_hash(held)
    rollout = spec.rollout or ROLLOUT
    meta = metadata(
        owner,
        names.slug(owner.name),
        user_labels={
            **(spec.labels or {}),
            **({QUEUE_LABEL: spec.queue_name} if spec.queue_name else {}),
        },
        annotations={
            INTENT_ANNOTATION: model.intent,
            TEMPLATE_ANNOTATION: digest,
            **given(**{ADMITTED_ANNOTATION: admitted_digest(template, digest, live)}),
        },
    )
    return child(
        DEPLOYMENT,
        meta,
        spec={
            "replicas": count_replicas(model, live),
            "progressDeadlineSeconds": spec.startup_timeout_seconds + SCHEDULING_S,
            "revisionHistoryLimit": REVISIONS_KEPT,
            "selector": {"matchLabels": _selector(model)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {
                    "maxSurge": rollout.max_surge,
                    "maxUnavailable": rollout.max_unavailable,
                },
            },
            "template": template,
        },
    )


def count_replicas(model: ResolvedModel, live: Manifest | None) -> int:
    """Return the Deployment's count.

    Pods above the bounds of `autoscaling` are never made; those that are there when the bounds are
    lowered stay until the autoscaler has ranked them and lowered the declared count.
    """
    there = live.get("spec", {}).get("replicas", 0) if live else 0
    return max(model.replicas, min(model.spec.replicas, there))


def frozen_template(intent: str, live: Manifest | None, digest: str) -> Manifest | None:
    """Return the template that was once rendered for this same intent, if it is still untouched.

    `digest` is the hash of what this operator renders; where that is what runs, the answer is None.
    """
    if live is None:
        return None
    annotations = live["metadata"].get("annotations", {})
    if annotations.get(TEMPLATE_ANNOTATION) == digest:
        return None
    ours = fields.owned_fields(live)
    if ours is None or annotations.get(INTENT_ANNOTATION) != intent:
        return None
    node = fields.node_at(ours, "spec", "template")
    if node is None:
        return None
    held: Manifest = fields.extract(live["spec"]["template"], node)
    known = {annotations.get(TEMPLATE_ANNOTATION), annotations.get(ADMITTED_ANNOTATION)}
    return held if content_hash(held) in known else None


def admitted_digest(template: Manifest, digest: str, live: Manifest | None) -> str | None:
    """Return the hash of what a webhook made of `template`, None where it left it as it was.

    The API server lets the fields that a webhook changes be ours, so the next operator can tell
    them from those that somebody changed afterwards. It is noted once for each template: a webhook
    that writes something else each time would otherwise never let the Deployment rest.
    """
    if live is None:
        return None
    annotations = live["metadata"].get("annotations", {})
    node = fields.node_at(fields.owned_fields(live) or {}, "spec", "template")
    if annotations.get(TEMPLATE_ANNOTATION) != digest or node is None:
        return None
    known: str | None = annotations.get(ADMITTED_ANNOTATION)
    if known is not None or fields.lost_fields(template, node):
        return known
    admitted = content_hash(fields.extract(live["spec"]["template"], node))
    return admitted if admitted != digest else None


def build_service(model: ResolvedModel) -> Manifest:
    """Return the Service; a NIM Proxy finds it by its label as well."""
    owner, spec = model.owner, model.spec
    extra = spec.service
    meta = metadata(
        owner,
        names.slug(owner.name),
        user_labels={**(spec.labels or {}), **((extra.labels if extra else None) or {})},
        annotations=extra.annotations if extra else None,
    )
    meta["labels"][names.NIM_TYPE_LABEL] = "inference"
    return child(
        SERVICE,
        meta,
        spec={
            "type": "ClusterIP",
            # Pods of an earlier model of this name may still be there.
            "selector": {**_selector(model), names.OWNER_LABEL: owner.uid},
            "ports": [
                {
                    "name": HTTP_PORT_NAME,
                    "port": spec.port,
                    "protocol": "TCP",
                    "targetPort": HTTP_PORT_NAME,
                }
            ],
        },
    )


def build_budget(model: ResolvedModel) -> Manifest:
    """Return the PodDisruptionBudget: one pod at a time, unready ones freely."""
    return child(
        DISRUPTION_BUDGET,
        metadata(model.owner, names.slug(model.owner.name), user_labels=model.spec.labels),
        spec={
            "maxUnavailable": 1,
            "selector": {"matchLabels": _selector(model)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    )


def build_claim(model: ResolvedModel, live: Manifest | None = None) -> Manifest | None:
    """Return the claim to create, None if none is wanted; it outlives the model unless `Delete`.

    One that was made for the model (`live`), and that its user names in `claimName` now, stays as
    it is and outlives the model from then on.
    """
    wanted = model.spec.storage.pvc if model.spec.storage else None
    name = names.claim_name(model.owner.name)
    if wanted is None:
        return None
    if wanted.size is not None:
        spec = {
            "accessModes": [wanted.access_mode or "ReadWriteOnce"],
            "resources": {"requests": {"storage": canonical(wanted.size)}},
            **given(storageClassName=wanted.storage_class_name),
        }
    elif wanted.claim_name == name and live is not None and _goes_with(model, live):
        node = fields.node_at(fields.owned_fields(live) or {}, "spec")
        spec = fields.extract(live["spec"], node) if node else {}
    else:
        return None
    meta = metadata(
        model.owner,
        name,
        component=names.STORE_COMPONENT,
        user_labels=model.spec.labels,
        owned=wanted.reclaim == "Delete",
    )
    return child(CLAIM, meta, **given(spec=spec))


def _goes_with(model: ResolvedModel, claim: Manifest) -> bool:
    """Tell whether the garbage collector would take a claim with the model."""
    references = claim["metadata"].get("ownerReferences", ())
    owned = any(each["uid"] == model.owner.uid for each in references)
    return owned and "deletionTimestamp" not in claim["metadata"]


def build_model_monitor(model: ResolvedModel) -> Manifest | None:
    """Return the ServiceMonitor of the NIM's own metrics, None if none is wanted."""
    return build_monitor(
        model.owner,
        model.spec.metrics,
        name=names.slug(model.owner.name),
        endpoint={"port": HTTP_PORT_NAME, "path": METRICS_PATH},
    )


def _selector(model: ResolvedModel) -> dict[str, str]:
    return names.selector_labels(names.MODEL_COMPONENT, model.owner.name)
