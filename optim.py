"""Which parameter goes to which optimizer."""

import torch


def make_optimizers(model, options):
    """The optimizers that hold each parameter of the model exactly once.

    AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) decays matrices, not norms and biases. Each
    group has its peak rate as 'peak_lr', so that a schedule can scale all of them by one factor.
    """
    parameters = list(model.parameters())
    groups = [
        {'params': [p for p in parameters if p.dim() >= 2], 'weight_decay': options.weight_decay},
        {'params': [p for p in parameters if p.dim() < 2], 'weight_decay': 0.0},
    ]
    groups = [group | {'peak_lr': options.learning_rate} for group in groups if group['params']]
    optimizers = [torch.optim.AdamW(groups, lr=options.learning_rate, fused=True,
                                    betas=(options.beta1, options.beta2))]
    held = [p for group in param_groups(optimizers) for p in group['params']]
    assert len(held) == len(set(held)) == len(parameters), (len(held), len(parameters))
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
