"""The operator: it watches NIMModels and NIMProxies and keeps their children as they should be.

It reads and writes Kubernetes objects and listens to the proxies' state reports; it never touches
a client's request. The deciding modules (`resolve`, `conditions`, `routing`, `fields`, `plan`,
`facts`, `desired`) do no IO and take time as an argument.
"""
