# Rung 1, a bigram: a table of which character follows which, as an embedding and a head with no
# more than a norm between them. It sees one character back. Expect a validation loss of 2.48.
dataset = 'shakespeare_char'
n_layer, n_embd, position, tied = 0, 128, 'none', False
block_size, batch_size, max_steps, eval_interval = 128, 16, 1000, 100
optimizer, learning_rate, warmup_steps = 'adamw', 1e-2, 50
