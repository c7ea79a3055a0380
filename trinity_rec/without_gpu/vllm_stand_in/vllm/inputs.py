from vllm import needs_vllm

MultiModalDataDict = needs_vllm("MultiModalDataDict")
