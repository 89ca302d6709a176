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

    name: ObjectName


class KeySelector(ApiModel):
    """One key of a Secret or ConfigMap in the same namespace."""

    name: ObjectName
    key: DataKey
    optional: bool | None = None


class FieldSelector(ApiModel):
    """A field of the pod, as the downward API gives it."""

    field_path: Annotated[str, Field(min_length=1, max_length=253)]


class ResourceFieldSelector(ApiModel):
    """A resource request or limit of the container."""

    resource: Annotated[str, Field(min_length=1, max_length=63)]
    divisor: Quantity | None = None


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

    secret_key_ref: KeySelector | None = None
    config_map_key_ref: KeySelector | None = None
    field_ref: FieldSelector | None = None
    resource_field_ref: ResourceFieldSelector | None = None


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

    name: EnvName
    value: Annotated[str, Field(max_length=8192)] | None = None
    value_from: EnvVarSource | None = None


class ResourceRequirements(ApiModel):
    """Requests and limits of the container, GPUs left out (see `gpus`)."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None


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
    ]
    resource_claim_name: ObjectName | None = None
    resource_claim_template_name: ObjectName | None = None
    request: Annotated[str, Field(min_length=1, max_length=63)] | None = None


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

    key: LabelKey | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Annotated[int, Field(ge=0, le=31536000)] | None = None


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

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: SelectorValues | None = None


class LabelSelector(ApiModel):
    """A label selector; an empty one selects everything."""

    model_config = ConfigDict(json_schema_extra=ATOMIC_MAP)

    match_labels: Labels | None = None
    match_expressions: (
        Annotated[list[LabelSelectorRequirement], Field(max_length=16, json_schema_extra=ATOMIC)]
        | None
    ) = None


class NodeSelectorRequirement(ApiModel):
    """A condition on one label or field of a node."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: SelectorValues | None = None


_Requirements = Annotated[
    list[NodeSelectorRequirement], Field(max_length=16, json_schema_extra=ATOMIC)
]


class NodeSelectorTerm(ApiModel):
    """Conditions on a node that must all hold."""

    match_expressions: _Requirements | None = None
    match_fields: _Requirements | None = None


class NodeSelector(ApiModel):
    """Terms of which one must hold."""

    node_selector_terms: Annotated[
        list[NodeSelectorTerm], Field(min_length=1, max_length=16, json_schema_extra=ATOMIC)
    ]


Weight = Annotated[int, Field(ge=1, le=100)]


class PreferredSchedulingTerm(ApiModel):
    """A node preference with its weight."""

    weight: Weight
    preference: NodeSelectorTerm


class NodeAffinity(ApiModel):
    """Which nodes the pods must or should run on."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredSchedulingTerm], Field(max_length=16, json_schema_extra=ATOMIC)]
        | None
    ) = None


class PodAffinityTerm(ApiModel):
    """Pods to be near to or far from, and what near means (a node label)."""

    label_selector: LabelSelector | None = None
    namespaces: (
        Annotated[list[ObjectName], Field(max_length=16, json_schema_extra=ATOMIC)] | None
    ) = None
    namespace_selector: LabelSelector | None = None
    topology_key: LabelKey


class WeightedPodAffinityTerm(ApiModel):
    """A pod preference with its weight."""

    weight: Weight
    pod_affinity_term: PodAffinityTerm


_Terms = Annotated[list[PodAffinityTerm], Field(max_length=16, json_schema_extra=ATOMIC)]
_Weighted = Annotated[list[WeightedPodAffinityTerm], Field(max_length=16, json_schema_extra=ATOMIC)]


class PodAffinity(ApiModel):
    """Which pods the pods must or should be near to (or, as anti-affinity, far from)."""

    required_during_scheduling_ignored_during_execution: _Terms | None = None
    preferred_during_scheduling_ignored_during_execution: _Weighted | None = None


class Affinity(ApiModel):
    """Affinity of the pods to nodes and to other pods."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None


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

    max_skew: Annotated[int, Field(ge=1, le=1000)]
    topology_key: LabelKey
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    label_selector: LabelSelector | None = None
    min_domains: Annotated[int, Field(ge=1, le=1000)] | None = None
    node_affinity_policy: Literal["Honor", "Ignore"] | None = None
    node_taints_policy: Literal["Honor", "Ignore"] | None = None


class Placement(ApiModel):
    """Where pods run: fields that NIMModel and NIMProxy share."""

    node_selector: Labels | None = None
    tolerations: (
        Annotated[list[Toleration], Field(max_length=32, json_schema_extra=ATOMIC)] | None
    ) = None
    affinity: Affinity | None = None
    topology_spread_constraints: (
        Annotated[
            list[TopologySpreadConstraint],
            Field(max_length=8, json_schema_extra=keyed_by("topologyKey", "whenUnsatisfiable")),
        ]
        | None
    ) = None
    priority_class_name: ObjectName | None = None
    image_pull_secrets: (
        Annotated[
            list[LocalObjectReference], Field(max_length=16, json_schema_extra=keyed_by("name"))
        ]
        | None
    ) = None
