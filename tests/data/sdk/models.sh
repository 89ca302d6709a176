curl -X GET "${NIM_PROXY_BASE_URL}/v1/models"
