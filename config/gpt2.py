# GPT-2 (124M) as in the paper, on OpenWebText: the run of nanoGPT's README, which reports a loss of
# about 2.85 after 600,000 steps of 491,520 tokens (295 billion), four days on 8 A100 of 40 GB; not
# measured here. data/openwebtext.py makes the data.
#   torchrun --standalone --nproc_per_node=8 train.py config/gpt2.py
dataset = 'openwebtext'
n_layer, n_head, n_embd, block_size = 12, 12, 768, 1024
position, norm, norm_weight, mlp = 'learned', 'layernorm', True, 'gelu'
qk_norm, bias, tied, token_shift = False, True, True, False
vocab_size = 50304  # 50,257 and some never used, since multiples of 128 are faster
batch_size, micro_batch_size, optimizer = 480, 10, 'adamw'
learning_rate, min_lr, warmup_steps, max_steps = 6e-4, 6e-5, 2000, 600_000
weight_decay, beta1, beta2, grad_clip = 0.1, 0.9, 0.95, 1.0
eval_interval, eval_tokens, log_interval = 1000, 1_000_000, 10
