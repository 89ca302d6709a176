"""The data path: a parent that watches Kubernetes, and workers that serve HTTP."""
