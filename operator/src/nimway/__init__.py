"""Nimway: a Kubernetes operator and an HTTP proxy for NVIDIA NIM microservices."""

__version__ = "0.1.0"
