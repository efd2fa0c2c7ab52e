"""How transformers' architectures describe and name what a GPT holds: the weights of `gpt2`,
`llama` and `qwen3` both ways, of `nanochat` on the way out, of nanoGPT on the way in.

    shape = read_shape(description)  # of a dict such as config.json's
    state = to_ours(tensors, description['model_type'], shape)  # and back: to_theirs
"""

import dataclasses
import re
from dataclasses import dataclass

import torch

from folio import options
from folio.cli import UserError
from model import GPT, GPTConfig, check_weights

BUFFERS = r'\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$'  # constants that old files hold
NEUTRAL = {'norm_weight': True, 'bias': True, 'tied': False}  # which any model can be written with


@dataclass
class Layout:
    """An architecture of transformers, in one table for both directions."""
    architecture: str  # the class
    options: dict  # the values of our options that all its models have
    keys: dict  # the keys in config.json of our other options
    defaults: dict  # what a missing key means; a key of no option must have that value
    activation_key: str
    activations: dict  # what it may say, the first if it is missing, and our mlp
    names: dict  # of our modules; where one is several of theirs, with spaces between
    blocks: str = 'model.layers'  # what stands, with a number, before the names in a block


NANOGPT = Layout(  # which is described by the model_args of its checkpoints
    architecture='GPT',
    options={'position': 'learned', 'norm': 'layernorm', 'norm_weight': True, 'qk_norm': False,
             'token_shift': False},
    keys={name: name for name in ('vocab_size', 'block_size', 'n_layer', 'n_head', 'n_embd',
                                  'bias')},
    defaults={'bias': True},
    activation_key='activation_function',
    activations={'gelu': 'gelu_erf'},
    names={'wte': 'transformer.wte', 'wpe': 'transformer.wpe', 'norm': 'transformer.ln_f',
           'lm_head': 'lm_head', 'norm1': 'ln_1', 'norm2': 'ln_2', 'attention.qkv': 'attn.c_attn',
           'attention.proj': 'attn.c_proj', 'mlp.up': 'mlp.c_fc', 'mlp.proj': 'mlp.c_proj'},
    blocks='transformer.h')
GPT2 = dataclasses.replace(
    NANOGPT, architecture='GPT2LMHeadModel',
    options=NANOGPT.options | {'bias': True},
    keys={'vocab_size': 'vocab_size', 'tied': 'tie_word_embeddings', 'block_size': 'n_positions',
          'n_layer': 'n_layer', 'n_head': 'n_head', 'n_embd': 'n_embd', 'n_inner': 'n_inner',
          'norm_eps': 'layer_norm_epsilon'},
    defaults={'tie_word_embeddings': True, 'layer_norm_epsilon': 1e-5, 'scale_attn_weights': True,
              'scale_attn_by_inverse_layer_idx': False, 'add_cross_attention': False},
    activations={'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu': 'gelu_erf'})
LLAMA = Layout(
    architecture='LlamaForCausalLM',
    options={'position': 'rope', 'norm': 'rmsnorm', 'norm_weight': True, 'qk_norm': False,
             'token_shift': False},
    keys={'vocab_size': 'vocab_size', 'tied': 'tie_word_embeddings',
          'block_size': 'max_position_embeddings', 'n_layer': 'num_hidden_layers',
          'n_head': 'num_attention_heads', 'n_kv_head': 'num_key_value_heads',
          'n_embd': 'hidden_size', 'head_size': 'head_dim', 'n_inner': 'intermediate_size',
          'norm_eps': 'rms_norm_eps', 'bias': 'attention_bias'},
    defaults={'tie_word_embeddings': False, 'rms_norm_eps': 1e-6, 'attention_bias': False},
    activation_key='hidden_act',
    activations={'silu': 'swiglu'},
    names={'wte': 'model.embed_tokens', 'norm': 'model.norm', 'lm_head': 'lm_head',
           'norm1': 'input_layernorm', 'norm2': 'post_attention_layernorm',
           'attention.qkv': 'self_attn.q_proj self_attn.k_proj self_attn.v_proj',
           'attention.q_norm': 'self_attn.q_norm', 'attention.k_norm': 'self_attn.k_norm',
           'attention.proj': 'self_attn.o_proj',
           'mlp.up': 'mlp.gate_proj mlp.up_proj', 'mlp.proj': 'mlp.down_proj'})
QWEN3 = dataclasses.replace(
    LLAMA, architecture='Qwen3ForCausalLM',
    options=LLAMA.options | {'qk_norm': True, 'bias': False},
    defaults=LLAMA.defaults | {'head_dim': 128, 'use_sliding_window': False})
NANOCHAT = dataclasses.replace(
    LLAMA, architecture='NanoChatForCausalLM',
    options=QWEN3.options | {'norm_weight': False, 'tied': False},  # see for_nanochat
    defaults=LLAMA.defaults | {'final_logit_softcapping': None},
    activations={'relu2': 'relu2'},
    names=LLAMA.names | {'mlp.up': 'mlp.fc1', 'mlp.proj': 'mlp.fc2'})
LAYOUTS = {'gpt2': GPT2, 'llama': LLAMA, 'qwen3': QWEN3, 'nanochat': NANOCHAT, 'nanogpt': NANOGPT}
READABLE = ['gpt2', 'llama', 'qwen3', 'nanogpt']
WRITABLE = ['nanochat', 'qwen3', 'llama', 'gpt2']  # no two hold the same shape


# --- shapes --------------------------------------------------------------------------------------

def read_shape(description):
    """The resolved GPTConfig that a config.json means, a dict; UserError for what folio does
    without, and whatever broken values raise."""
    name = description.get('model_type')
    if name not in READABLE:
        raise UserError(f'models of the architecture {name} are not read; {", ".join(READABLE)} '
                        'are')
    layout = LAYOUTS[name]
    description = layout.defaults | description
    fields = options.fields_of(GPTConfig)
    values = {option: options.checked(key, description.get(key), fields[option], typed=False)
              for option, key in layout.keys.items()}
    for key in layout.defaults.keys() - layout.keys.values():
        check_value(description, key, [layout.defaults[key]])
    check_value(description, 'mlp_bias', [values.get('bias')])  # all linear layers or none
    activation = check_value(description, layout.activation_key, [*layout.activations])
    values |= {'mlp': layout.activations[activation], 'rope_theta': read_theta(description)}
    return GPTConfig(**layout.options | values).resolved()


def check_value(description, key, values):
    """The value of a key, or the first of `values` without it; UserError if it is none of them."""
    value = description.get(key, values[0])
    if value not in values:
        raise UserError(f'{key}={value} is not read, only {", ".join(map(str, values))}')
    return value


def read_theta(description):
    """The option rope_theta, which newer files hold in rope_parameters."""
    rope = description.get('rope_parameters') or description.get('rope_scaling') or {}
    kind = rope.get('rope_type', rope.get('type', 'default'))
    if kind != 'default':
        raise UserError(f'scaled RoPE (rope_type={kind}) is not read')
    return float(rope.get('rope_theta', description.get('rope_theta', 10000.0)))


def choose_layout(shape):
    """The name of the layout that holds a resolved GPTConfig; UserError with the options in its way
    if none does."""
    wrong = {name: obstacles(name, shape) for name in WRITABLE}
    name = min(WRITABLE, key=lambda name: len(wrong[name]))
    if wrong[name]:
        raise UserError(f'no layout of transformers holds this model; {name}\'s is the nearest, '
                        f'but {", ".join(wrong[name])} stands in the way')
    return name


def obstacles(name, shape):
    """The options whose values the layout can't hold, a list of texts such as bias=True."""
    layout, ours = LAYOUTS[name], vars(shape)
    derived = {'n_kv_head': shape.n_head, 'head_size': shape.n_embd / shape.n_head}
    values = derived | {option: ours[option] for option in layout.keys} | layout.options
    wrong = [option for option, value in values.items()
             if value not in (ours[option], NEUTRAL.get(option))]
    if shape.mlp not in layout.activations.values():
        wrong.append('mlp')
    if name == 'nanochat' and not shape.norm_eps:  # for_nanochat divides by it
        wrong.append('norm_eps')
    return [f'{option}={ours[option]}' for option in wrong]


def describe_shape(name, shape):
    """The dict of config.json for a resolved GPTConfig in the layout called `name`."""
    layout = LAYOUTS[name]
    description = {'model_type': name, 'architectures': [layout.architecture],
                   'pad_token_id': None} | layout.defaults
    description |= {key: getattr(shape, option) for option, key in layout.keys.items()}
    description[layout.activation_key] = next(
        theirs for theirs, ours in layout.activations.items() if ours == shape.mlp)
    if name == 'gpt2':
        description |= dict.fromkeys(('resid_pdrop', 'embd_pdrop', 'attn_pdrop'), 0.0)
        return description | {'n_ctx': shape.block_size}  # which llama.cpp's converter asks for
    return description | {
        'mlp_bias': shape.bias, 'rope_theta': shape.rope_theta,
        'rope_parameters': {'rope_type': 'default', 'rope_theta': shape.rope_theta}}


# --- weights -------------------------------------------------------------------------------------

def entries(name, shape):
    """For each parameter in the layout called `name`, in our order: our name, the names of theirs
    that it holds one above the other, their heights, and whether they are transposed."""
    layout = LAYOUTS[name]
    with torch.device('meta'):
        model = GPT(dataclasses.replace(shape, **layout.options))
    heights = model.stacked_matrices()
    for ours, p in model.named_parameters():
        number, module, kind = re.fullmatch(r'(?:blocks\.(\d+)\.)?(.+)\.(\w+)', ours).groups()
        block = f'{layout.blocks}.{number}.' if number else ''
        theirs = [f'{block}{part}.{kind}' for part in layout.names[module].split()]
        rows = heights[ours.replace('bias', 'weight')] if len(theirs) > 1 else [len(p)]
        yield ours, theirs, rows, bool(name == 'gpt2' and number and p.dim() == 2)


def to_ours(tensors, name, shape):
    """The state_dict of GPT(shape) with copies of their tensors, a dict; UserError for one that is
    missing or extra, ValueError or RuntimeError for one of another shape."""
    tensors, rows = by_full_name(tensors, name), list(entries(name, shape))
    head = tensors.pop('lm_head.weight', None) if shape.tied else None
    known = {part for _, theirs, *_ in rows for part in theirs}
    if odd := min(known ^ tensors.keys(), default=None):
        raise UserError(f'the tensor {odd} {"is missing" if odd in known else "has no place"} in a '
                        f'{name} so described')
    ours = {}
    for key, theirs, _, transposed in rows:
        parts = [tensors.pop(part) for part in theirs]
        ours[key] = torch.cat([part.T if transposed else part for part in parts])
    if shape.tied:
        ours['lm_head.weight'] = ours['wte.weight']
    check_weights(ours, shape)
    if head is not None and not torch.equal(head, ours['wte.weight']):
        raise UserError('the tensor lm_head.weight is not the embedding, though the model is '
                        'described as tied')
    return ours


def by_full_name(tensors, name):
    """The tensors without constants, by names that begin as all but some old files have them."""
    prefix = LAYOUTS[name].blocks.partition('.')[0] + '.'
    return {key if key.startswith((prefix, 'lm_head.')) else prefix + key: tensor
            for key, tensor in tensors.items() if not re.search(BUFFERS, key)}


def to_theirs(state, name, shape):
    """(tensors, shape): our state_dict as theirs, most of them views of ours, and the GPTConfig
    that it has there."""
    tensors, dtype = {}, state['wte.weight'].dtype
    for key, theirs, heights, transposed in entries(name, shape):
        neutral = float(key.endswith('weight'))  # of a norm, or a bias
        ours = state[key] if key in state else torch.full([sum(heights)], neutral, dtype=dtype)
        parts = [part.T if transposed else part for part in ours.split(heights)]
        tensors |= zip(theirs, parts, strict=True)
    return tensors, for_nanochat(tensors, shape) if name == 'nanochat' else shape


def for_nanochat(tensors, shape):
    """Have tensors of ours compute the same in NanoChat's architecture; returns the GPTConfig.

    It turns RoPE the other way, so the halves of queries and keys change places. It also
    normalizes the embeddings; those are made so small that norm_eps outweighs them, and
    x / sqrt(mean(x^2) + eps) is x / sqrt(eps), a constant factor. What enters each of the other
    norms is `small` times ours, with small^2 times our eps, which cancel. The error is of the
    order of small^2, below float32's.
    """
    small, half = 2.0 ** -12, shape.head_size // 2
    for name, tensor in tensors.items():
        if name.endswith(('q_proj.weight', 'k_proj.weight')):
            halves = tensor.unflatten(0, (-1, 2, half))  # (H, 2, D/2, C)
            tensors[name] = halves.flip(1).flatten(0, 2) * small
        elif name.endswith(('o_proj.weight', 'fc2.weight')):
            tensors[name] = tensor * small
        elif name.endswith('embed_tokens.weight'):
            tensors[name] = tensor * (small ** 2 * shape.norm_eps ** 0.5)
    return dataclasses.replace(shape, norm_eps=small ** 2 * shape.norm_eps, tied=False)
