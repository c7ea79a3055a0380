from vllm import needs_vllm

ModelConfig = needs_vllm("ModelConfig")
