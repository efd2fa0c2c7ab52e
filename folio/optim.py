"""Which parameter goes to which optimizer; Muon.

    optimizers = make_optimizers(model, options, torch.bfloat16)
    for group in param_groups(optimizers):
        group['lr'] = group['peak_lr'] * factor
"""

from collections import defaultdict

import torch

from folio import shard


def make_optimizers(model, options, dtype):
    """The optimizers that hold each parameter of the model exactly once.

    With optimizer='muon' the matrices of the blocks are Muon's, and AdamW keeps embeddings, head
    and the rest. Each group has its peak rate as 'peak_lr', so that a schedule can scale all of
    them. dtype: the format of matrix products, which Muon's follow in bfloat16; float16's range is
    too small for them.
    """
    hidden = hidden_matrices(model) if options.optimizer == 'muon' else {}
    others = [p for name, p in model.named_parameters() if name not in hidden]
    optimizers = [make_adamw(others, options)]
    if hidden:
        stacked = model.stacked_matrices()
        heights = [stacked.get(name, [len(p)]) for name, p in hidden.items()]
        group = {'params': list(hidden.values()), 'heights': heights, 'peak_lr': options.muon_lr}
        optimizers.append(Muon([group], options.muon_lr, weight_decay=options.weight_decay,
                               dtype=dtype if dtype == torch.bfloat16 else torch.float32))
    held = [p for group in param_groups(optimizers) for p in group['params']]
    assert len(held) == len(set(held)) == len(list(model.parameters())), f'{len(held)} are held'
    return optimizers


def hidden_matrices(model):
    """The matrices of the blocks, by their names in the model. The shares of the token shift, a row
    for each sublayer, learn better as one of these than as AdamW's (1.585 against 1.596)."""
    return {f'blocks.{name}': p for name, p in model.blocks.named_parameters() if p.dim() == 2}


def make_adamw(params, options):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with the options' peak rate and betas; it
    decays matrices only."""
    groups = [{'params': [p for p in params if p.dim() >= 2], 'weight_decay': options.weight_decay},
              {'params': [p for p in params if p.dim() < 2], 'weight_decay': 0.0}]
    groups = [group | {'peak_lr': options.learning_rate} for group in groups if group['params']]
    return torch.optim.AdamW(groups, lr=options.learning_rate, fused=True,
                             betas=(options.beta1, options.beta2))


def param_groups(optimizers):
    """All groups of parameters, each a dict."""
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def load_states(optimizers, states):
    """Take the moments of a checkpoint, but the rates and decays of the options in force."""
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(optimizer.state_dict() | {'state': state['state']})
        check_moments(optimizer)


def check_moments(optimizer):
    """ValueError for moments that are not all there, or not of the shape of their parameter."""
    for p, moments in optimizer.state.items():
        expected = {'step': (), 'exp_avg': p.shape, 'exp_avg_sq': p.shape}
        if isinstance(optimizer, Muon):
            expected = {'momentum': p.shape, 'squares': (len(p), 1)}
            moments = {'squares': torch.zeros_like(p[:, :1])} | moments  # which older files lack
        if {name: value.shape for name, value in moments.items()} != expected:
            raise ValueError(f'the moments of a parameter of the shape {tuple(p.shape)} are others')


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonal updates (Jordan et al. 2024, kellerjordan.github.io/posts/muon),
    whose rows are brought to one size (NorMuon: Li et al. 2025, arXiv:2510.05491).

    For matrices only. A group has 'heights', a list for each parameter: the rows of the matrices
    that it holds one above the other. All matrices of one shape are orthogonalized together, in
    `dtype`. Of sharded ones each process gathers one at a time, with its update and squares, takes
    the step as if it were alone, and hands the rows back.
    """

    def __init__(self, params, lr, momentum=0.95, beta2=0.95, weight_decay=0.0,
                 dtype=torch.float32):
        super().__init__(params, {'lr': lr, 'momentum': momentum, 'beta2': beta2,
                                  'weight_decay': weight_decay})
        self.dtype = dtype
        self.found_inf = torch.zeros(())  # not 0: skip the step, as in torch's fused optimizers

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            pairs = list(zip(group['params'], group['heights'], strict=True))
            size = shard.gathered_at_once(group['params'])
            for i in range(0, len(pairs), size):
                self.step_together(pairs[i:i + size], group)

    def step_together(self, pairs, group):
        """Take a step with parameters, (p, heights): their matrices of one shape at once."""
        tensors = [(p, self.momentum_update(p, group['momentum']), self.state[p]['squares'])
                   for p, _ in pairs]
        whole = [shard.gather(each, i) for i, each in enumerate(tensors)]
        by_shape = defaultdict(list)  # shape: (matrix, its update, the squares of its rows)
        for each, (_, heights) in zip(whole, pairs, strict=True):
            for part in zip(*(x.split(heights) for x in each), strict=True):
                by_shape[part[0].shape].append(part)
        for parts in by_shape.values():
            self.update_matrices(*zip(*parts, strict=True), group)
        for i, (p, _, squares) in enumerate(tensors):
            shard.scatter(whole[i][::2], [p, squares], i)

    def momentum_update(self, p, momentum):
        """The gradient's moving average, looked at one step ahead (Nesterov)."""
        state = self.state[p]
        if 'momentum' not in state:
            state['momentum'] = torch.zeros_like(p)
        if 'squares' not in state:  # older checkpoints lack it
            state['squares'] = torch.zeros_like(p[:, :1])
        average = state['momentum'].lerp(p.grad, 1 - momentum)
        state['momentum'] = torch.where(self.found_inf > 0, state['momentum'], average)
        return p.grad.lerp(average, momentum)

    def update_matrices(self, matrices, updates, squares, group):
        """Take a step with matrices of one shape; tall ones take longer ones, so that what they
        put out changes as much."""
        height, width = matrices[0].shape
        length = group['lr'] * max(1, height / width) ** 0.5
        updates = orthogonalize(torch.stack(updates).to(self.dtype)).float()
        updates = self.even_rows(updates, squares, group['beta2'])
        updates = torch.where(self.found_inf > 0, 0, updates)
        decay = torch.where(self.found_inf > 0, 1, 1 - group['lr'] * group['weight_decay'])
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.mul_(decay).add_(update, alpha=-length)

    def even_rows(self, updates, squares, beta2):
        """The updates (N, rows, columns), each row over the root of the moving average of its mean
        square, `squares` (N times (rows, 1)), and each matrix as large as before."""
        average = torch.stack(squares).lerp(updates.square().mean(2, keepdim=True), 1 - beta2)
        for kept, new in zip(squares, average, strict=True):
            kept.copy_(torch.where(self.found_inf > 0, kept, new))
        evened = updates / (average.sqrt() + 1e-8)
        size, evened_size = (x.norm(dim=(1, 2), keepdim=True) for x in (updates, evened))
        return evened * (size / (evened_size + 1e-8))


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
