"""What a layout writes, it reads; without transformers."""

import dataclasses

import pytest
import torch

from folio.cli import UserError
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
    return GPTConfig(**{'vocab_size': 50, 'n_layer': 2, 'n_head': 4, 'n_embd': 32,
                        'token_shift': False} | options
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
    assert layouts.read_shape(description) == shape == written
    back = layouts.to_ours(tensors, name, shape)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_nanogpt_is_read_and_never_written():
    shape = layouts.read_shape({'model_type': 'nanogpt', 'vocab_size': 50, 'block_size': 8,
                                'n_layer': 1, 'n_head': 2, 'n_embd': 4, 'bias': False})
    assert (shape.mlp, shape.norm_weight, shape.bias, shape.tied) == ('gelu_erf', True, False, True)
    assert (shape.position, shape.qk_norm, shape.token_shift) == ('learned', False, False)
    assert layouts.choose_layout(shape) == 'gpt2'


def test_the_defaults_are_written_as_nanochat_which_unties_the_head():
    shape = resolved()
    assert layouts.choose_layout(shape) == 'nanochat'
    tensors, written = layouts.to_theirs(GPT(shape).state_dict(), 'nanochat', shape)
    assert not written.tied and 'lm_head.weight' in tensors
    assert dataclasses.replace(written, tied=True, norm_eps=shape.norm_eps) == shape


def test_nanochat_s_tensors_are_ours_turned_and_scaled():
    shape = resolved(n_kv_head=2)
    ours = GPT(shape).state_dict()
    theirs, written = layouts.to_theirs(ours, 'nanochat', shape)
    small = (written.norm_eps / shape.norm_eps) ** 0.5
    embedded = theirs['model.embed_tokens.weight'] / written.norm_eps ** 0.5  # by the norm there
    assert torch.allclose(embedded, ours['wte.weight'] * small)
    assert torch.equal(theirs['lm_head.weight'], ours['wte.weight'])
    q, k, v = ours['blocks.1.attention.qkv.weight'].split([32, 16, 16])
    for name, matrix in ('q_proj', q), ('k_proj', k):
        first, second = matrix.view(-1, 8, 32).split(4, dim=1)  # the halves of heads of 8
        turned = torch.cat((second, first), dim=1).view(-1, 32)
        assert torch.equal(theirs[f'model.layers.1.self_attn.{name}.weight'], turned * small)
    assert torch.equal(theirs['model.layers.1.self_attn.v_proj.weight'], v)


def test_what_our_model_does_without_is_written_as_ones_and_zeros():
    shape = resolved(**GPT2 | {'bias': False, 'norm_weight': False})
    assert layouts.choose_layout(shape) == 'gpt2'
    tensors, _ = layouts.to_theirs(GPT(shape).state_dict(), 'gpt2', shape)
    assert (tensors['transformer.h.1.ln_1.weight'] == 1).all()
    assert (tensors['transformer.h.1.attn.c_attn.bias'] == 0).all()


@pytest.mark.parametrize('changes, message', [
    ({'model.layers.2.mlp.x.weight': torch.ones(1)}, r'layers.2.mlp.x.weight has no place'),
    ({'model.norm.weight': None}, 'model.norm.weight is missing'),
    ({'lm_head.weight': torch.ones(50, 32)}, 'lm_head.weight is not the embedding')])
def test_a_tensor_that_is_missing_or_extra_is_named(changes, message):
    shape = resolved(**LLAMA)
    tensors = layouts.to_theirs(GPT(shape).state_dict(), 'llama', shape)[0] | changes
    tensors = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    with pytest.raises(UserError, match=message):
        layouts.to_ours(tensors, 'llama', shape)


def test_the_gate_of_swiglu_comes_before_up():
    shape = resolved(**LLAMA)
    state = GPT(shape).state_dict()
    tensors, _ = layouts.to_theirs(state, 'llama', shape)
    parts = [tensors[f'model.layers.0.mlp.{name}_proj.weight'] for name in ('gate', 'up')]
    assert torch.equal(torch.cat(parts), state['blocks.0.mlp.up.weight'])


def described(name, without, **options):
    """A config.json for a shape, without some of its keys."""
    description = layouts.describe_shape(name, resolved(**options))
    return {key: value for key, value in description.items() if key not in without}


def test_what_a_description_leaves_out_is_the_architecture_s_default():
    gpt2 = ('n_inner', 'layer_norm_epsilon', 'tie_word_embeddings', 'activation_function')
    shape = layouts.read_shape(described('gpt2', gpt2, **GPT2 | {'norm_eps': 0.5}))
    assert shape == resolved(**GPT2)
    llama = ('num_key_value_heads', 'rms_norm_eps', 'tie_word_embeddings', 'attention_bias',
             'mlp_bias', 'rope_theta', 'rope_parameters', 'hidden_act')
    shape = layouts.read_shape(described('llama', llama, **LLAMA))
    assert shape == resolved(**LLAMA | {'norm_eps': 1e-6, 'tied': False})


def test_an_older_description_has_rope_theta_by_itself():
    old = described('llama', ['rope_parameters'], **LLAMA | {'rope_theta': 5e5})
    assert layouts.read_shape(old).rope_theta == 5e5


def test_heads_of_qwen3_have_128_channels_unless_it_says_otherwise():
    qwen3 = LLAMA | {'qk_norm': True}
    assert layouts.read_shape(described('qwen3', [], **qwen3)).head_size == 8
    assert layouts.read_shape(described('qwen3', ['head_dim'], **qwen3)).head_size == 128


def test_gpt2_has_no_room_for_heads_of_another_size():
    with pytest.raises(UserError, match="gpt2's is the nearest, but head_size=16 stands"):
        layouts.choose_layout(resolved(**GPT2 | {'head_size': 16}))


def test_the_nearest_layout_has_the_fewest_options_in_its_way():
    with pytest.raises(UserError, match="gpt2's is the nearest, but mlp=relu2 stands"):
        layouts.choose_layout(resolved(**GPT2 | {'mlp': 'relu2'}))
    with pytest.raises(UserError, match="nanochat's is the nearest, but bias=True stands"):
        layouts.choose_layout(resolved(bias=True))
