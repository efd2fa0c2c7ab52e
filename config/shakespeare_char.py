# Tiny Shakespeare by characters. On a CPU 0.8 million parameters for three minutes: 1.4567 after
# 1,843 steps of 2,048 tokens on two cores of an AMD EPYC (Zen 4). On a GPU nanoGPT's size,
# 6 layers of 384 channels with context 256, 5,000 steps of 16,384 tokens: not measured
# (nanoGPT's: 1.4697).
import torch

dataset = 'shakespeare_char'
eval_interval = 500
if torch.cuda.is_available():
    n_layer, n_head, n_embd, block_size = 6, 6, 384, 256
    batch_size, learning_rate, dropout = 64, 1e-3, 0.2
    max_steps, warmup_steps = 5000, 100
else:
    n_layer, n_head, n_embd, block_size = 4, 2, 128, 128
    batch_size = 16
    max_seconds = 170
