"""The models that the client libraries' tests ask for."""

LLAMA = "meta/llama-3.1-8b-instruct"
EMBEDDER = "nvidia/nv-embedqa-e5-v5"
