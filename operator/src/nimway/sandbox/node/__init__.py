"""The process node: runs pods as processes in namespaces, as a kubelet runs them as containers.

Owns what a kubelet owns: pod networks and volumes, container life, probes, status, node leases. It
is a test tool and leaves out: images (every process sees the host's programs), users (processes run
as the sandbox's own, whatever runAsUser says), cgroups (no memory or CPU limit, no OOM kill),
read-only root file systems, host networks and ports, sidecar init containers, postStart hooks,
ephemeral containers, termination messages, eviction, `kubectl exec` and `port-forward`, Service
addresses and DNS.

Rooms: `agent` (nodes, leases, which pods), `pod` (one pod's life), `container` (one container's),
`runtime` (the way to the processes), `storage` (persistent volumes), `kubelet` (logs over HTTPS);
pure ones: `environment`, `fields`, `volumes`, `images`, `probes`, `status`, `timing`.
"""
