"""A real Kubernetes control plane on one machine, without containers, for the demo and the tests.

Owns: etcd, kube-apiserver, the controller manager and the scheduler in namespaces of their own, an
agent that runs pods as processes, and the way in from the host. It must not be part of anything
that runs in production; `control` and `proxy` never import it.

Rooms, from the outside in: `command` (the command line), `launcher` (starts, finds and stops
sandboxes from the host), `keeper` (the one process a sandbox hangs on), `init` (PID 1 inside),
`supervisor` (control plane, network, forwarding), `node` (the pods), `nim` (the simulated NIM).
"""
