"""Which parameter goes to which optimizer; Muon."""

from collections import defaultdict

import torch

from machine import choose_dtype


def make_optimizers(model, options):
    """The optimizers that hold each parameter of the model exactly once.

    AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) decays matrices, not norms and biases. With
    optimizer='muon' the matrices of the blocks are Muon's, and AdamW keeps embeddings, head and
    the rest. Each group has its peak rate as 'peak_lr', so that a schedule can scale all of them.
    """
    muon = options.optimizer == 'muon'
    hidden = [p for p in model.blocks.parameters() if p.dim() == 2 and muon]
    others = [p for p in model.parameters() if not any(p is q for q in hidden)]
    groups = [{'params': [p for p in others if p.dim() >= 2], 'weight_decay': options.weight_decay},
              {'params': [p for p in others if p.dim() < 2], 'weight_decay': 0.0}]
    groups = [group | {'peak_lr': options.learning_rate} for group in groups if group['params']]
    optimizers = [torch.optim.AdamW(groups, lr=options.learning_rate, fused=True,
                                    betas=(options.beta1, options.beta2))]
    if hidden:
        group = {'params': hidden, 'peak_lr': options.muon_lr}
        dtype = choose_dtype('auto', hidden[0].device)  # float16 can't hold what passes by
        fast = dtype is torch.bfloat16 and options.dtype != 'float32'
        optimizers.append(Muon([group], options.muon_lr, weight_decay=options.weight_decay,
                               dtype=torch.bfloat16 if fast else torch.float32))
    held = [p for group in param_groups(optimizers) for p in group['params']]
    assert len(held) == len(set(held)) == len(list(model.parameters())), f'{len(held)} are held'
    return optimizers


def param_groups(optimizers):
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def load_states(optimizers, states):
    """Take the moments of a checkpoint, but the rates and decays of the options in force."""
    settings = [{name: value for name, value in group.items() if name != 'params'}
                for group in param_groups(optimizers)]
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)
    for group, setting in zip(param_groups(optimizers), settings, strict=True):
        group.update(setting)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonal updates (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    For matrices only. One that holds several, such as qkv, has their heights as its attribute
    `parts`. The matrices of one shape are orthogonalized together, in `dtype`.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0, dtype=torch.float32):
        super().__init__(params, {'lr': lr, 'momentum': momentum, 'weight_decay': weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = defaultdict(list)  # shape: (part of a parameter, its update)
            for p in group['params']:
                state, parts = self.state[p], getattr(p, 'parts', [len(p)])
                if 'momentum' not in state:
                    state['momentum'] = torch.zeros_like(p)
                buffer = state['momentum'].lerp_(p.grad, 1 - group['momentum'])
                update = p.grad.lerp(buffer, group['momentum'])  # Nesterov's
                for pair in zip(p.split(parts), update.split(parts), strict=True):
                    by_shape[pair[0].shape].append(pair)
            for (height, width), pairs in by_shape.items():
                updates = orthogonalize(torch.stack([update for _, update in pairs]).to(self.dtype))
                scale = group['lr'] * max(1, height / width) ** 0.5
                for (part, _), update in zip(pairs, updates, strict=True):
                    part.mul_(1 - group['lr'] * group['weight_decay']).add_(update, alpha=-scale)


def orthogonalize(x, steps=5):
    """The matrices x (N, rows, columns) with their singular values near 1, by Newton and Schulz's
    iteration with the coefficients of Jordan et al. 2024."""
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return x.mT if tall else x
