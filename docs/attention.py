"""Attention, three ways that give the same numbers.

    python docs/attention.py

A small GPT of GPT-2's shape runs with attention written out, with PyTorch's fused function, and as
PyTorch's own encoder with the same weights; what is printed are the largest differences.
"""

import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from folio import cli


def explicit(q, k, v, dropout=0.0):
    """Step by step, for q, k, v (B, H, T, D): how well each query fits each key, as probabilities
    over the keys that are not in its future, and the mean of the values with these as weights."""
    T, D = q.shape[-2:]
    scores = q @ k.transpose(-2, -1) / D ** 0.5  # (B, H, T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    weights = scores.masked_fill(future, float('-inf')).softmax(dim=-1)
    return F.dropout(weights, dropout) @ v


def sdpa(q, k, v, dropout=0.0):
    """The same in one call, which need not hold the (T, T) weights."""
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)


class Encoder(nn.Module):
    """The blocks as torch's nn.TransformerEncoder, with their weights: an encoder becomes a decoder
    by the causal mask alone."""

    def __init__(self, gpt):
        super().__init__()
        config = gpt.config
        layer = nn.TransformerEncoderLayer(
            config.n_embd, config.n_head, config.n_inner, config.dropout, batch_first=True,
            activation=lambda x: F.gelu(x, approximate='tanh'), norm_first=True, bias=config.bias)
        self.encoder = nn.TransformerEncoder(layer, config.n_layer, enable_nested_tensor=False)
        for ours, theirs in zip(gpt.blocks, self.encoder.layers, strict=True):
            theirs.load_state_dict(renamed(ours.state_dict()))
        self.train(gpt.training)

    def forward(self, x, rope, cache):
        mask = nn.Transformer.generate_square_subsequent_mask(x.size(1), x.device, x.dtype)
        return self.encoder(x, mask, is_causal=True)


def renamed(state):
    """A block's weights under the names of nn.TransformerEncoderLayer."""
    names = {'attention.qkv.': 'self_attn.in_proj_', 'attention.proj.': 'self_attn.out_proj.',
             'mlp.up.': 'linear1.', 'mlp.proj.': 'linear2.', 'norm1.': 'norm1.', 'norm2.': 'norm2.'}
    return {names[ours] + name.removeprefix(ours): weight for name, weight in state.items()
            for ours in names if name.startswith(ours)}


def three_ways(gpt, idx):
    """{name: logits (B, T, V)} of a GPT of GPT-2's shape, in eval mode."""
    logits = {}
    for name, attend in (('explicit', explicit), ('sdpa', sdpa)):
        with mock.patch.object(model, 'attend', attend):
            logits[name] = gpt(idx)
    with mock.patch.object(gpt, 'blocks', nn.ModuleList([Encoder(gpt)])):
        logits['nn.TransformerEncoder'] = gpt(idx)
    return logits


def small_gpt():
    torch.manual_seed(1337)
    gpt = model.GPT(model.GPTConfig(
        block_size=64, vocab_size=65, n_layer=4, n_head=4, n_embd=128, position='learned',
        norm='layernorm', norm_weight=True, mlp='gelu', qk_norm=False,
        token_shift=False, bias=True))
    with torch.no_grad():
        for p in gpt.parameters():  # so that no bias is 0 and no weight of a norm 1
            p.add_(0.1 * torch.randn_like(p))
    return gpt.eval()


def main(argv):
    gpt = small_gpt()
    with torch.no_grad():
        logits = three_ways(gpt, torch.randint(65, (8, 64)))
    for name, values in logits.items():
        difference = (values - logits['explicit']).abs().max().item()
        print(f'{name:<24}logits from {values.min():.3f} to {values.max():.3f}, '
              f'from explicit by at most {difference:.1e}')


if __name__ == '__main__':
    cli.run(main)
