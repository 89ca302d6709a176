curl -X POST "${NIM_PROXY_BASE_URL}/v1/completions" -H 'accept: application/json' -H 'Content-Type: application/json' \
  -d '{"model": "meta/llama-3.1-8b-instruct", "prompt": "Once upon a time", "max_tokens": 64}' | jq
