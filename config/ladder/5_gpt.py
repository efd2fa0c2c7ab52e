# Rung 5 takes what came after GPT-2, folio's defaults: RoPE, RMSNorm, ReLU², QK-norm, token shift
# and Muon. The size is that of rung 4; expect 1.50.
dataset = 'shakespeare_char'
n_layer, n_head, n_embd = 4, 4, 128
block_size, batch_size, max_steps, eval_interval = 128, 16, 1000, 100
