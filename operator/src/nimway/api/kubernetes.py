"""The parts of Kubernetes' own types that users give us: same names, same meaning, with limits.

A subset on purpose: what a pod of ours must not have (host paths, privileges, raw pod specs) has no
type here. Meaning and defaults are those of the Kubernetes API reference (core/v1, meta/v1).
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from nimway.api.base import (
    ATOMIC,
    ATOMIC_MAP,
    ApiModel,
    LabelKey,
    Labels,
    LabelValue,
    ObjectName,
    Quantity,
    keyed_by,
    rules,
)

EnvName = Annotated[
    str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")
]
DataKey = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
ResourceName = Annotated[str, Field(min_length=1, max_length=253)]
SelectorValues = Annotated[list[LabelValue], Field(max_length=64, json_schema_extra=ATOMIC)]


class LocalObjectReference(ApiModel):
    """The name of an object in the same namespace."""

    name: ObjectName = Field(description="Name of the object.")


class KeySelector(ApiModel):
    """One key of a Secret or ConfigMap in the same namespace."""

    name: ObjectName = Field(description="Name of the Secret or ConfigMap.")
    key: DataKey = Field(description="Key in its data.")
    optional: bool | None = Field(None, description="Start even if it is missing.")


class FieldSelector(ApiModel):
    """A field of the pod, as the downward API gives it."""

    field_path: Annotated[str, Field(min_length=1, max_length=253)] = Field(
        description="Path such as metadata.name or status.podIP."
    )


class ResourceFieldSelector(ApiModel):
    """A resource request or limit of the container."""

    resource: Annotated[str, Field(min_length=1, max_length=63)] = Field(
        description="Resource such as limits.memory."
    )
    divisor: Quantity | None = Field(None, description="Unit of the value, 1 if absent.")


class EnvVarSource(ApiModel):
    """Where a variable's value comes from; exactly one source."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef), "
                "has(self.resourceFieldRef)].filter(given, given).size() == 1",
                "valueFrom: exactly one of secretKeyRef, configMapKeyRef, fieldRef and "
                "resourceFieldRef must be set",
            )
        )
    )

    secret_key_ref: KeySelector | None = Field(None, description="A key of a Secret.")
    config_map_key_ref: KeySelector | None = Field(None, description="A key of a ConfigMap.")
    field_ref: FieldSelector | None = Field(None, description="A field of the pod.")
    resource_field_ref: ResourceFieldSelector | None = Field(
        None, description="A request or limit of the container."
    )


class EnvVar(ApiModel):
    """An environment variable of the model's container."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!(has(self.value) && has(self.valueFrom))",
                "env: value and valueFrom exclude each other",
            )
        )
    )

    name: EnvName = Field(description="Name of the variable.")
    value: Annotated[str, Field(max_length=8192)] | None = Field(
        None, description="Its value; $(NAME) is expanded by the kubelet."
    )
    value_from: EnvVarSource | None = Field(None, description="Where its value comes from.")


class ResourceRequirements(ApiModel):
    """Requests and limits of the container, GPUs left out (see `gpus`)."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] | None = Field(
        None, description="What the scheduler reserves, such as cpu and memory."
    )
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] | None = Field(
        None, description="What the container may use at most."
    )


class ResourceClaim(ApiModel):
    """A DRA claim (`resource.k8s.io/v1`) of the pod; exactly one of the two sources."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.resourceClaimName) != has(self.resourceClaimTemplateName)",
                "resourceClaims: exactly one of resourceClaimName and resourceClaimTemplateName "
                "must be set",
            )
        )
    )

    name: Annotated[
        str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    ] = Field(description="Name of the claim in the pod.")
    resource_claim_name: ObjectName | None = Field(None, description="An existing ResourceClaim.")
    resource_claim_template_name: ObjectName | None = Field(
        None, description="A template: each pod gets a claim of its own."
    )
    request: Annotated[str, Field(min_length=1, max_length=63)] | None = Field(
        None, description="The one request of the claim to use, all if absent."
    )


class Toleration(ApiModel):
    """A taint that the pods tolerate."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!(has(self.operator) && self.operator == 'Exists' && has(self.value) "
                "&& self.value != '')",
                "tolerations: value must be empty when operator is Exists",
            ),
            (
                "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
                "tolerations: operator must be Exists when key is empty",
            ),
            (
                "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "tolerations: effect must be NoExecute when tolerationSeconds is set",
            ),
        )
    )

    key: LabelKey | None = Field(None, description="The taint's key, any if absent.")
    operator: Literal["Exists", "Equal"] | None = Field(None, description="Equal if absent.")
    value: LabelValue | None = Field(None, description="The taint's value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Effect to tolerate, all if absent."
    )
    toleration_seconds: Annotated[int, Field(ge=0, le=31536000)] | None = Field(
        None, description="How long a NoExecute taint is tolerated, for ever if absent."
    )


_VALUES_RULE = rules(
    (
        "self.operator in ['Exists', 'DoesNotExist'] ? (!has(self.values) || "
        "self.values.size() == 0) : (has(self.values) && self.values.size() > 0)",
        "values must be empty for Exists and DoesNotExist, and not empty for other operators",
    )
)


class LabelSelectorRequirement(ApiModel):
    """A condition on one label."""

    model_config = ConfigDict(json_schema_extra=_VALUES_RULE)

    key: LabelKey = Field(description="Label to look at.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(
        description="How to compare."
    )
    values: SelectorValues | None = Field(None, description="Values for In and NotIn.")


class LabelSelector(ApiModel):
    """A label selector; an empty one selects everything."""

    model_config = ConfigDict(json_schema_extra=ATOMIC_MAP)

    match_labels: Labels | None = Field(None, description="Labels that must have these values.")
    match_expressions: (
        Annotated[list[LabelSelectorRequirement], Field(max_length=16, json_schema_extra=ATOMIC)]
        | None
    ) = Field(None, description="Further conditions; all must hold.")


class NodeSelectorRequirement(ApiModel):
    """A condition on one label or field of a node."""

    key: LabelKey = Field(description="Label or field of the node.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = Field(
        description="How to compare."
    )
    values: SelectorValues | None = Field(
        None, description="Values for In and NotIn, one number for Gt and Lt."
    )


_Requirements = Annotated[
    list[NodeSelectorRequirement], Field(max_length=16, json_schema_extra=ATOMIC)
]


class NodeSelectorTerm(ApiModel):
    """Conditions on a node that must all hold."""

    match_expressions: _Requirements | None = Field(
        None, description="Conditions on the node's labels."
    )
    match_fields: _Requirements | None = Field(None, description="Conditions on the node's fields.")


class NodeSelector(ApiModel):
    """Terms of which one must hold."""

    node_selector_terms: Annotated[
        list[NodeSelectorTerm], Field(min_length=1, max_length=16, json_schema_extra=ATOMIC)
    ] = Field(description="Terms; one must hold.")


Weight = Annotated[int, Field(ge=1, le=100)]


class PreferredSchedulingTerm(ApiModel):
    """A node preference with its weight."""

    weight: Weight = Field(description="Weight among the preferences.")
    preference: NodeSelectorTerm = Field(description="The preference.")


class NodeAffinity(ApiModel):
    """Which nodes the pods must or should run on."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = Field(
        None, description="What a node must have."
    )
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredSchedulingTerm], Field(max_length=16, json_schema_extra=ATOMIC)]
        | None
    ) = Field(None, description="What a node should have.")


class PodAffinityTerm(ApiModel):
    """Pods to be near to or far from, and what near means (a node label)."""

    label_selector: LabelSelector | None = Field(None, description="Labels of the other pods.")
    namespaces: (
        Annotated[list[ObjectName], Field(max_length=16, json_schema_extra=ATOMIC)] | None
    ) = Field(None, description="Their namespaces, this object's own if absent.")
    namespace_selector: LabelSelector | None = Field(
        None, description="Labels of their namespaces."
    )
    topology_key: LabelKey = Field(description="Node label within which pods are near.")


class WeightedPodAffinityTerm(ApiModel):
    """A pod preference with its weight."""

    weight: Weight = Field(description="Weight among the preferences.")
    pod_affinity_term: PodAffinityTerm = Field(description="The preference.")


_Terms = Annotated[list[PodAffinityTerm], Field(max_length=16, json_schema_extra=ATOMIC)]
_Weighted = Annotated[list[WeightedPodAffinityTerm], Field(max_length=16, json_schema_extra=ATOMIC)]


class PodAffinity(ApiModel):
    """Which pods the pods must or should be near to (or, as anti-affinity, far from)."""

    required_during_scheduling_ignored_during_execution: _Terms | None = Field(
        None, description="What must hold."
    )
    preferred_during_scheduling_ignored_during_execution: _Weighted | None = Field(
        None, description="What should hold."
    )


class Affinity(ApiModel):
    """Affinity of the pods to nodes and to other pods."""

    node_affinity: NodeAffinity | None = Field(None, description="Nodes to run on.")
    pod_affinity: PodAffinity | None = Field(None, description="Pods to be near to.")
    pod_anti_affinity: PodAffinity | None = Field(None, description="Pods to be far from.")


class TopologySpreadConstraint(ApiModel):
    """How the pods spread over nodes or zones; without labelSelector over this object's pods."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'",
                "topologySpreadConstraints: minDomains needs whenUnsatisfiable DoNotSchedule",
            )
        )
    )

    max_skew: Annotated[int, Field(ge=1, le=1000)] = Field(
        description="Largest difference in pods between two topologies."
    )
    topology_key: LabelKey = Field(description="Node label that names the topology.")
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = Field(
        description="Wait, or schedule anyway."
    )
    label_selector: LabelSelector | None = Field(
        None, description="Pods to count, this object's own if absent."
    )
    min_domains: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="Least number of topologies."
    )
    node_affinity_policy: Literal["Honor", "Ignore"] | None = Field(
        None, description="Whether node affinity limits the nodes that count."
    )
    node_taints_policy: Literal["Honor", "Ignore"] | None = Field(
        None, description="Whether taints limit the nodes that count."
    )


class Placement(ApiModel):
    """Where pods run: fields that NIMModel and NIMProxy share."""

    node_selector: Labels | None = Field(None, description="Labels a node must have.")
    tolerations: (
        Annotated[list[Toleration], Field(max_length=32, json_schema_extra=ATOMIC)] | None
    ) = Field(
        None,
        description="Taints that the pods tolerate; a GPU model tolerates its GPU's taint anyway.",
    )
    affinity: Affinity | None = Field(None, description="Nodes and pods to be near to or far from.")
    topology_spread_constraints: (
        Annotated[
            list[TopologySpreadConstraint],
            Field(max_length=8, json_schema_extra=keyed_by("topologyKey", "whenUnsatisfiable")),
        ]
        | None
    ) = Field(None, description="How the pods spread over nodes or zones.")
    priority_class_name: ObjectName | None = Field(None, description="PriorityClass of the pods.")
    image_pull_secrets: (
        Annotated[
            list[LocalObjectReference], Field(max_length=16, json_schema_extra=keyed_by("name"))
        ]
        | None
    ) = Field(None, description="Secrets to pull the image with; nvcr.io wants one.")
