# Rung 2 adds attention, one layer of one head, and positions: each character sees all before it,
# but nothing works on what it found there. Expect 2.40.
dataset = 'shakespeare_char'
n_layer, n_head, n_embd = 1, 1, 128
position, mlp, norm, norm_weight, bias, qk_norm = 'learned', 'none', 'layernorm', True, True, False
token_shift = False
block_size, batch_size, max_steps, eval_interval = 128, 16, 1000, 100
optimizer, learning_rate, warmup_steps = 'adamw', 2e-3, 50
