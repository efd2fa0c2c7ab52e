"""How transformers' architectures describe and name what a GPT holds: the weights of `gpt2`,
`llama` and `qwen3` both ways, of `nanochat` on the way out.

    shape = read_shape(description, 'config.json')  # of a dict such as config.json's
    state = to_ours(tensors, description['model_type'], shape)  # and back: to_theirs
"""

import dataclasses
import re

import torch

import config
from model import GPT, GPTConfig
from script import UserError

ARCHITECTURES = {'gpt2': 'GPT2LMHeadModel', 'llama': 'LlamaForCausalLM',
                 'qwen3': 'Qwen3ForCausalLM', 'nanochat': 'NanoChatForCausalLM'}
READABLE = ('gpt2', 'llama', 'qwen3')
MODERN = {'position': 'rope', 'norm': 'rmsnorm'}
HOLDS = {  # what the options must be; norms without weights are norms whose weights are 1
    'gpt2': {'position': 'learned', 'norm': 'layernorm', 'mlp': 'gelu', 'qk_norm': False},
    'llama': MODERN | {'mlp': 'swiglu', 'qk_norm': False},
    'qwen3': MODERN | {'mlp': 'swiglu', 'qk_norm': True, 'bias': False},
    'nanochat': MODERN | {'mlp': 'relu2', 'qk_norm': True, 'bias': False, 'norm_weight': False}}

COMMON = {'vocab_size': 'vocab_size', 'tied': 'tie_word_embeddings'}
GPT2_KEYS = COMMON | {'block_size': 'n_positions', 'n_layer': 'n_layer', 'n_head': 'n_head',
                      'n_embd': 'n_embd', 'n_inner': 'n_inner', 'norm_eps': 'layer_norm_epsilon'}
LLAMA_KEYS = COMMON | {
    'block_size': 'max_position_embeddings', 'n_layer': 'num_hidden_layers',
    'n_head': 'num_attention_heads', 'n_kv_head': 'num_key_value_heads', 'n_embd': 'hidden_size',
    'n_inner': 'intermediate_size', 'norm_eps': 'rms_norm_eps'}
KEYS = {'gpt2': GPT2_KEYS, 'llama': LLAMA_KEYS, 'qwen3': LLAMA_KEYS, 'nanochat': LLAMA_KEYS}
ABSENT = {'gpt2': {'tied': True, 'n_inner': None, 'norm_eps': 1e-5},  # what a missing key means
          'llama': {'tied': False, 'n_kv_head': None, 'norm_eps': 1e-6},
          'qwen3': {'tied': False, 'norm_eps': 1e-6}}
FIXED = {  # the values that other keys may have, the first of which is written
    'gpt2': {'activation_function': ['gelu_new', 'gelu_pytorch_tanh'], 'scale_attn_weights': [True],
             'scale_attn_by_inverse_layer_idx': [False], 'add_cross_attention': [False]},
    'llama': {'hidden_act': ['silu', 'swish']},
    'qwen3': {'hidden_act': ['silu', 'swish'], 'use_sliding_window': [False],
              'attention_bias': [False]},
    'nanochat': {'hidden_act': ['relu2'], 'final_logit_softcapping': [None],
                 'attention_bias': [False]}}

BLOCK = {'norm1': ['input_layernorm'], 'norm2': ['post_attention_layernorm'],
         'attention.qkv': ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'],
         'attention.proj': ['self_attn.o_proj'], 'attention.q_norm': ['self_attn.q_norm'],
         'attention.k_norm': ['self_attn.k_norm'], 'mlp.up': ['mlp.gate_proj', 'mlp.up_proj'],
         'mlp.proj': ['mlp.down_proj'], 'blocks': 'layers'}
OUTSIDE = {'wte': ['embed_tokens'], 'norm': ['norm']}
NAMES = {
    'gpt2': {'wte': ['wte'], 'wpe': ['wpe'], 'norm': ['ln_f'], 'blocks': 'h', 'norm1': ['ln_1'],
             'norm2': ['ln_2'], 'attention.qkv': ['attn.c_attn'], 'attention.proj': ['attn.c_proj'],
             'mlp.up': ['mlp.c_fc'], 'mlp.proj': ['mlp.c_proj']},
    'llama': OUTSIDE | BLOCK, 'qwen3': OUTSIDE | BLOCK,
    'nanochat': OUTSIDE | BLOCK | {'mlp.up': ['mlp.fc1'], 'mlp.proj': ['mlp.fc2']}}
PREFIX = {'gpt2': 'transformer.'}  # of all but the head; elsewhere 'model.'
BUFFERS = r'\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$'  # constants that old files hold


# --- shapes --------------------------------------------------------------------------------------

def read_shape(description, path):
    """The GPTConfig that a config.json means, a dict from the file path; UserError if none."""
    def refuse(reason):
        raise UserError(f'{path}: {reason}')
    layout = description.get('model_type')
    if layout not in READABLE:
        refuse(f'models of the architecture {layout} are not read; {", ".join(READABLE)} are')
    for key, values in FIXED[layout].items():
        if description.get(key, values[0]) not in values:
            refuse(f'{key}={description[key]} is not read, only {values[0]}')
    found = {}
    for field in dataclasses.fields(GPTConfig):
        if key := KEYS[layout].get(field.name):
            if key not in description and field.name not in ABSENT[layout]:
                refuse(f'it has no {key}')
            value = description.get(key, ABSENT[layout].get(field.name))
            try:
                found[field.name] = config.as_type(value, field.type, False)
            except (ValueError, TypeError):
                refuse(f'{key} is {value!r}')
    bias = layout == 'gpt2' or bool(description.get('attention_bias'))
    if layout == 'llama' and bool(description.get('mlp_bias')) != bias:
        refuse('attention_bias and mlp_bias differ: either all linear layers have biases, or none')
    rope = description.get('rope_parameters') or description.get('rope_scaling') or {}
    if (kind := rope.get('rope_type', rope.get('type', 'default'))) != 'default':
        refuse(f'scaled RoPE (rope_type={kind}) is not read')
    theta = rope.get('rope_theta', description.get('rope_theta', 10000.0))
    head_size = description.get('head_dim') or (128 if layout == 'qwen3' else None)
    if head_size and head_size * found['n_head'] != found['n_embd']:
        refuse(f'a head size of {head_size} is not read, for it is not n_embd / n_head = '
               f'{found["n_embd"]} / {found["n_head"]}')
    try:
        return GPTConfig(**HOLDS[layout] | found | {
            'norm_weight': True, 'bias': bias, 'rope_theta': float(theta)}).resolved()
    except ValueError as error:
        refuse(error)


def choose_layout(shape):
    """The layout that holds a resolved GPTConfig; UserError with the options in its way if none."""
    def obstacles(layout):
        names = [name for name, value in HOLDS[layout].items() if getattr(shape, name) != value]
        grouped = shape.n_kv_head != shape.n_head and 'n_kv_head' not in KEYS[layout]
        empty = ['n_layer'] if shape.n_layer == 0 else []
        exact = ['norm_eps'] if layout == 'nanochat' and not shape.norm_eps else []
        return names + ['n_kv_head'] * grouped + empty + exact
    alike = [layout for layout in HOLDS if HOLDS[layout]['mlp'] == shape.mlp] or HOLDS
    layout = min(alike, key=lambda layout: len(obstacles(layout)))
    if wrong := obstacles(layout):
        raise UserError(f'no layout of transformers holds this model; {layout}\'s is the nearest, '
                        f'but {", ".join(f"{name}={getattr(shape, name)}" for name in wrong)} '
                        'stands in the way')
    return layout


def describe(layout, shape):
    """The dict of config.json for a resolved GPTConfig."""
    known = {key: getattr(shape, name) for name, key in KEYS[layout].items()}
    fixed = {key: values[0] for key, values in FIXED[layout].items()}
    if layout == 'gpt2':
        more = dict.fromkeys(('resid_pdrop', 'embd_pdrop', 'attn_pdrop'), 0.0)
        more['n_ctx'] = shape.block_size  # which llama.cpp's converter asks for
    else:
        more = {'head_dim': shape.n_embd // shape.n_head, 'rope_theta': shape.rope_theta,
                'rope_parameters': {'rope_type': 'default', 'rope_theta': shape.rope_theta}}
    if layout == 'llama':
        more |= {'attention_bias': shape.bias, 'mlp_bias': shape.bias}
    return {'model_type': layout, 'architectures': [ARCHITECTURES[layout]], **known, **fixed,
            **more, 'pad_token_id': None, 'dtype': 'float32'}


# --- weights -------------------------------------------------------------------------------------

def entries(layout, shape):
    """For each parameter that the layout holds: our name, their names, the sizes that they have as
    parts of ours, and whether they are transposed."""
    with torch.device('meta'):
        model = GPT(dataclasses.replace(shape, norm_weight=layout != 'nanochat',
                                        bias=shape.bias or layout == 'gpt2'))
    names, prefix = NAMES[layout], PREFIX.get(layout, 'model.')
    for name, p in model.named_parameters():
        module, _, kind = name.rpartition('.')
        _, number, inner = re.fullmatch(r'(blocks\.(\d+)\.)?(.+)', module).groups()
        before = prefix + (f'{names["blocks"]}.{number}.' if number else '')
        theirs = ['lm_head'] if module == 'lm_head' else [before + part for part in names[inner]]
        heights = [len(p)]
        if len(theirs) > 1:
            heights = model.get_parameter(f'{module}.weight').parts
        yield (name, [f'{part}.{kind}' for part in theirs], [(h, *p.shape[1:]) for h in heights],
               layout == 'gpt2' and number is not None and p.dim() == 2)


def to_ours(tensors, layout, shape):
    """The state_dict of GPT(shape) with their tensors, a dict; UserError for one that is missing,
    extra or of another shape."""
    prefix, ours = PREFIX.get(layout, 'model.'), {}
    tensors = {name if name.startswith((prefix, 'lm_head.')) else prefix + name: tensor
               for name, tensor in tensors.items() if not re.search(BUFFERS, name)}
    head = tensors.pop('lm_head.weight', None) if shape.tied else None
    for name, theirs, sizes, transposed in entries(layout, shape):
        parts = []
        for part, size in zip(theirs, sizes, strict=True):
            if part not in tensors:
                raise UserError(f'there is no tensor {part}, which config.json asks for')
            size, tensor = size[::-1] if transposed else size, tensors.pop(part)
            if tensor.shape != size:
                raise UserError(f'the tensor {part} is {tuple(tensor.shape)}, and by config.json '
                                f'it should be {size}')
            parts.append(tensor.T if transposed else tensor)
        ours[name] = torch.cat(parts).float()
    if tensors:
        raise UserError(f'the tensor {min(tensors)} has no place in a {layout} of this config.json')
    if shape.tied:
        ours['lm_head.weight'] = ours['wte.weight']
        if head is not None and not torch.equal(head.float(), ours['wte.weight']):
            raise UserError('the tensor lm_head.weight is not the embedding, though config.json '
                            'says tie_word_embeddings')
    return ours


def to_theirs(state, layout, shape):
    """(tensors, shape): our state_dict as theirs, and the GPTConfig that it has there."""
    if layout == 'nanochat':
        state, shape = for_nanochat(state, shape)
    tensors = {}
    for name, theirs, sizes, transposed in entries(layout, shape):
        value = state.get(name)
        if value is None:  # a norm's weight or a bias that our model does without
            value = torch.full([sum(size[0] for size in sizes)], float(name.endswith('weight')))
        for part, tensor in zip(theirs, value.split([size[0] for size in sizes]), strict=True):
            tensors[part] = (tensor.T if transposed else tensor).contiguous()
    return tensors, shape


def for_nanochat(state, shape):
    """(state, shape) that make NanoChat's architecture compute what our model does.

    It turns RoPE the other way, so the halves of queries and keys change places. It also
    normalizes the embeddings; those are made so small that norm_eps outweighs them, and
    x / sqrt(mean(x^2) + eps) is x / sqrt(eps), a constant factor. What enters each of the other
    norms is `small` times ours, with small^2 times our eps, which cancel. The error is of the
    order of small^2, below float32's.
    """
    small, result = 2.0 ** -12, dict(state)
    half = shape.n_embd // shape.n_head // 2
    for name, value in state.items():
        if name.endswith('qkv.weight'):
            heads = value.unflatten(0, (-1, 2 * half))  # (H + 2K, D, C)
            turned, v = heads.split([shape.n_head + shape.n_kv_head, shape.n_kv_head])
            heads = torch.cat((turned.roll(half, dims=1) * small, v))
            result[name] = heads.flatten(0, 1)
        elif name.endswith('proj.weight'):
            result[name] = value * small
    result['wte.weight'] = state['wte.weight'] * (small ** 2 * shape.norm_eps ** 0.5)
    eps = small ** 2 * shape.norm_eps
    return result, dataclasses.replace(shape, norm_eps=eps, tied=False)
