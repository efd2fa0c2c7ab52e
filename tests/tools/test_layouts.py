"""What a layout writes, it reads; without transformers."""

import dataclasses

import pytest
import torch

from model import GPT, GPTConfig
from tools import layouts

GPT2 = {'position': 'learned', 'norm': 'layernorm', 'norm_weight': True, 'bias': True,
        'mlp': 'gelu', 'qk_norm': False}
LLAMA = {'mlp': 'swiglu', 'qk_norm': False, 'norm_weight': True}
SHAPES = {
    'GPT2LMHeadModel': [GPT2, GPT2 | {'mlp': 'gelu_erf', 'n_inner': 24, 'tied': False}],
    'LlamaForCausalLM': [LLAMA, LLAMA | {'bias': True, 'n_kv_head': 2, 'rope_theta': 5e5}],
    'Qwen3ForCausalLM': [LLAMA | {'qk_norm': True, 'n_kv_head': 1, 'norm_eps': 1e-6}]}


def resolved(**options):
    return GPTConfig(**{'vocab_size': 50, 'n_layer': 2, 'n_head': 4, 'n_embd': 32} | options
                     ).resolved()


@pytest.mark.parametrize('architecture, options', [
    (name, options) for name, several in SHAPES.items() for options in several])
def test_a_layout_reads_the_shape_and_the_weights_that_it_writes(architecture, options):
    shape = resolved(**options)
    state = GPT(shape).state_dict()
    name = layouts.choose_layout(shape)
    tensors, written = layouts.to_theirs(state, name, shape)
    description = layouts.describe_shape(name, written)
    assert description['architectures'] == [architecture]
    assert layouts.read_shape(description, 'config.json') == shape == written
    back = layouts.to_ours(tensors, name, shape)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_the_defaults_are_written_as_nanochat_which_unties_the_head():
    shape = resolved()
    assert layouts.choose_layout(shape) == 'nanochat'
    tensors, written = layouts.to_theirs(GPT(shape).state_dict(), 'nanochat', shape)
    assert not written.tied and 'lm_head.weight' in tensors
    assert dataclasses.replace(written, tied=True, norm_eps=shape.norm_eps) == shape
