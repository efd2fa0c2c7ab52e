# Rung 4 adds depth: four blocks, each attention and an MLP that works on what attention found, with
# norms and residual connections that make depth trainable. GPT-2's shape; expect 1.94.
dataset = 'shakespeare_char'
n_layer, n_head, n_embd = 4, 4, 128
position, mlp, norm, norm_weight, bias, qk_norm = 'learned', 'gelu', 'layernorm', True, True, False
token_shift = False
block_size, batch_size, max_steps, eval_interval = 128, 16, 1000, 100
optimizer, learning_rate, warmup_steps = 'adamw', 2e-3, 50
