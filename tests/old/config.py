# A configuration of folio 0.1.
import torch

dataset, out_dir = 'mini', 'run'
resume, max_steps = True, 8
_threads = torch.get_num_threads()
