# Llama's shape in small, on the standard library's source, for three minutes on a CPU.
# tools/convert.py writes it as a LlamaForCausalLM, which every tool knows.
dataset, out_dir = 'stdlib', 'out/llama_tiny'
n_layer, n_head, n_kv_head, n_embd, block_size = 4, 4, 2, 128, 256
position, norm, norm_weight, mlp = 'rope', 'rmsnorm', True, 'swiglu'
qk_norm, bias, tied, token_shift = False, False, True, False
