# Qwen3-0.6B's weights on tiny Shakespeare in Qwen3's tokens. First
#   python tools/convert.py --from=Qwen/Qwen3-0.6B-Base --out_dir=out/qwen3
# Weights, gradients and moments of 0.6 billion parameters take 9.5 GB in float32; with what a pass
# keeps, a GPU of 16 GB is enough.
dataset, init_from, out_dir = 'shakespeare_qwen3', 'out/qwen3', 'out/finetune_qwen3'
optimizer, learning_rate, min_lr, beta2 = 'adamw', 1e-5, 1e-6, 0.95
block_size, recompute = 1024, True  # of the 32,768 that Qwen3 has places for
batch_size, micro_batch_size = 16, 1
max_steps, warmup_steps, eval_interval, log_interval = 60, 6, 20, 5
