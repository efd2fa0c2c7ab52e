# GPT-2's weights on tiny Shakespeare in GPT-2's tokens. First
#   python tools/convert.py --from=gpt2 --out_dir=out/gpt2
# Larger ones need a GPU of their size: --init_from=out/gpt2-xl --micro_batch_size=2
import torch

dataset, init_from, out_dir = 'shakespeare', 'out/gpt2', 'out/finetune_shakespeare'
optimizer, learning_rate, min_lr, beta2 = 'adamw', 3e-5, 3e-6, 0.95
dropout, weight_decay = 0.1, 0.1
if torch.cuda.is_available():
    batch_size, micro_batch_size = 32, 8
    max_steps, warmup_steps, eval_interval, log_interval = 100, 10, 20, 5
else:
    block_size = 256  # of the 1,024 that GPT-2 has places for
    batch_size, micro_batch_size = 8, 4
    max_steps, warmup_steps, eval_interval, log_interval = 40, 4, 20, 1
    eval_tokens = 8_192
