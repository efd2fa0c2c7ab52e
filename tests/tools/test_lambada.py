"""LAMBADA against `transformers`."""

import json
import math

import numpy as np
import pytest
import torch

from folio.machine import Machine
from folio.tokenizer import Tokenizer
from model import GPT, GPTConfig
from tools import lambada, measure

CPU = Machine(torch.device('cpu'))


def test_lambada_agrees_with_transformers_passage_by_passage(tmp_path, monkeypatch):
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(1)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=4, n_positions=48, n_embd=16, n_layer=2, n_head=2)).eval()
    ours = GPT(GPTConfig(48, 4, 2, 2, n_embd=16, position='learned', norm='layernorm',
                         norm_weight=True, mlp='gelu', qk_norm=False, bias=True,
                         token_shift=False)).eval()
    names = {'wte': 'wte', 'wpe': 'wpe', 'norm': 'ln_f'}
    state = {f'{a}.{kind}': theirs.transformer.state_dict()[f'{b}.{kind}'] for a, b in names.items()
             for kind in ('weight', 'bias') if f'{b}.{kind}' in theirs.transformer.state_dict()}
    parts = {'norm1': 'ln_1', 'attention.qkv': 'attn.c_attn', 'attention.proj': 'attn.c_proj',
             'norm2': 'ln_2', 'mlp.up': 'mlp.c_fc', 'mlp.proj': 'mlp.c_proj'}
    for i, layer in enumerate(theirs.transformer.h):
        for a, b in parts.items():
            for kind in ('weight', 'bias'):
                value = layer.get_parameter(f'{b}.{kind}')
                state[f'blocks.{i}.{a}.{kind}'] = value.T if value.dim() == 2 else value
    ours.load_state_dict(state | {'lm_head.weight': state['wte.weight']})

    draw = np.random.default_rng(1)
    texts = [''.join(draw.choice(list('abc '), draw.integers(2, 70))) for _ in range(200)]
    texts = [f'a{text} {"abc"[i % 3]}' for i, text in enumerate(texts)]
    tokenizer = Tokenizer({'kind': 'char', 'chars': ' abc'})
    nats = right = cut = 0
    for text in texts:
        word = text.rsplit(' ', 1)[1]
        ids = [' abc'.index(char) for char in text]
        cut += len(ids) > 49
        ids = torch.tensor([ids[-49:]])
        with torch.no_grad():
            logits = theirs(ids[:, :-1]).logits[0, -1 - len(word):]
        target = ids[0, -1 - len(word):]
        nats -= logits.log_softmax(-1).gather(-1, target[:, None]).sum().item()
        right += bool((logits.argmax(-1) == target).all())
    path = tmp_path / 'some.jsonl'
    path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
    monkeypatch.setattr(measure, 'sequences_at_once', lambda length, vocab_size: 7)
    numbers = lambada.lambada(ours, tokenizer, path, 48, CPU)
    assert 0 < right < len(texts) and 0 < cut < len(texts)
    assert numbers['perplexity'] == pytest.approx(math.exp(nats / len(texts)), rel=1e-4)
    assert numbers['accuracy'] == right / len(texts)
    assert (numbers['passages'], numbers['cut']) == (len(texts), cut)
