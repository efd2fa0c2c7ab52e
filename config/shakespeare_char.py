# Tiny Shakespeare by characters: on a GPU 6 layers of 384 channels with context 256, nanoGPT's
# size; on a CPU a smaller model, for three minutes.
import torch

dataset = 'shakespeare_char'
if torch.cuda.is_available():
    n_layer, n_head, n_embd, block_size = 6, 6, 384, 256
    batch_size, learning_rate, dropout = 64, 1e-3, 0.2
    max_steps, warmup_steps = 5000, 100
else:
    n_layer, n_head, n_embd, block_size = 4, 2, 128, 128
    batch_size = 16
    max_seconds = 150
