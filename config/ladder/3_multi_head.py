# Rung 3 splits the head into four, as wide together as the one: each looks for something else.
# Expect 2.25.
dataset = 'shakespeare_char'
n_layer, n_head, n_embd = 1, 4, 128
position, mlp, norm, norm_weight, bias, qk_norm = 'learned', 'none', 'layernorm', True, True, False
token_shift = False
block_size, batch_size, max_steps, eval_interval = 128, 16, 1000, 100
optimizer, learning_rate, warmup_steps = 'adamw', 2e-3, 50
