# GPT-2's size (124M) on FineWeb with what learns fastest: RoPE, RMSNorm, ReLU², QK-norm, heads of
# 128 channels and Muon. 3.1 billion tokens, for 8 GPUs of 80 GB; data/fineweb.py makes the data.
# Projected, not measured: a validation loss of about 3.3, which public speedruns of such choices
# reach after as many tokens (GPT-2's own choices after 10 billion), in half an hour on 8 H100 if
# they do 1.7 million tokens/s.
#   torchrun --standalone --nproc_per_node=8 train.py config/gpt2_fast.py
dataset = 'fineweb'
n_layer, n_head, n_embd, block_size = 12, 6, 768, 1024
vocab_size = 50304  # 50,257 and some never used, since multiples of 128 are faster
batch_size, micro_batch_size = 512, 32
learning_rate, muon_lr, warmup_steps, max_steps = 3e-3, 0.02, 100, 6000
weight_decay, beta1, beta2 = 0.1, 0.9, 0.95
eval_interval, eval_tokens, log_interval = 500, 10_485_760, 10
