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
from model import GPT, GPTConfig

FORMATS = (torch.float32, torch.bfloat16, torch.float16)  # that weights keep
BUFFERS = r'\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$'  # constants that old files hold


@dataclass
class Layout:
    """An architecture of transformers; theirs are the names in config.json and in the weights."""
    architecture: str  # the class
    holds: dict  # the values that our options must have, but for mlp
    keys: dict  # our options' keys in config.json
    absent: dict  # what it means where an option's key is missing; of others: None
    fixed: dict  # values that other keys must have
    always: dict  # the values that our options take there, in whichever model
    activation_key: str  # of which their names and our mlp follow; the first is the default
    activations: dict
    names: dict  # our modules'; where ours holds several, theirs with spaces between
    prefix: str = 'model.'  # before all names but the head's


GPT2 = Layout(
    architecture='GPT2LMHeadModel',
    holds={'position': 'learned', 'norm': 'layernorm', 'qk_norm': False, 'token_shift': False},
    keys={'vocab_size': 'vocab_size', 'tied': 'tie_word_embeddings', 'block_size': 'n_positions',
          'n_layer': 'n_layer', 'n_head': 'n_head', 'n_embd': 'n_embd', 'n_inner': 'n_inner',
          'norm_eps': 'layer_norm_epsilon'},
    absent={'tied': True, 'norm_eps': 1e-5},
    fixed={'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False,
           'add_cross_attention': False},
    always={'norm_weight': True, 'bias': True},
    activation_key='activation_function',
    activations={'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu': 'gelu_erf'},
    names={'wte': 'wte', 'wpe': 'wpe', 'norm': 'ln_f', 'blocks': 'h', 'norm1': 'ln_1',
           'norm2': 'ln_2', 'attention.qkv': 'attn.c_attn', 'attention.proj': 'attn.c_proj',
           'mlp.up': 'mlp.c_fc', 'mlp.proj': 'mlp.c_proj'},
    prefix='transformer.')
LLAMA = Layout(
    architecture='LlamaForCausalLM',
    holds={'position': 'rope', 'norm': 'rmsnorm', 'qk_norm': False, 'token_shift': False},
    keys={'vocab_size': 'vocab_size', 'tied': 'tie_word_embeddings',
          'block_size': 'max_position_embeddings', 'n_layer': 'num_hidden_layers',
          'n_head': 'num_attention_heads', 'n_kv_head': 'num_key_value_heads',
          'n_embd': 'hidden_size', 'head_size': 'head_dim', 'n_inner': 'intermediate_size',
          'norm_eps': 'rms_norm_eps', 'bias': 'attention_bias'},
    absent={'tied': False, 'norm_eps': 1e-6, 'bias': False},
    fixed={},
    always={'norm_weight': True},
    activation_key='hidden_act',
    activations={'silu': 'swiglu', 'swish': 'swiglu'},
    names={'wte': 'embed_tokens', 'norm': 'norm', 'blocks': 'layers',
           'norm1': 'input_layernorm', 'norm2': 'post_attention_layernorm',
           'attention.qkv': 'self_attn.q_proj self_attn.k_proj self_attn.v_proj',
           'attention.q_norm': 'self_attn.q_norm', 'attention.k_norm': 'self_attn.k_norm',
           'attention.proj': 'self_attn.o_proj',
           'mlp.up': 'mlp.gate_proj mlp.up_proj', 'mlp.proj': 'mlp.down_proj'})
QWEN3 = dataclasses.replace(
    LLAMA, architecture='Qwen3ForCausalLM',
    holds=LLAMA.holds | {'qk_norm': True, 'bias': False},
    absent={'tied': False, 'norm_eps': 1e-6, 'bias': False, 'head_size': 128},
    fixed={'use_sliding_window': False, 'attention_bias': False})
NANOCHAT = dataclasses.replace(
    QWEN3, architecture='NanoChatForCausalLM',
    holds=QWEN3.holds | {'norm_weight': False},
    fixed={'final_logit_softcapping': None, 'attention_bias': False},
    always={'tied': False},  # for_nanochat makes the embedding smaller than the head
    activations={'relu2': 'relu2'},
    names=LLAMA.names | {'mlp.up': 'mlp.fc1', 'mlp.proj': 'mlp.fc2'})
NANOGPT = dataclasses.replace(  # which is described by the model_args of its checkpoints
    GPT2, architecture='GPT',
    keys={name: name for name in ('vocab_size', 'block_size', 'n_layer', 'n_head', 'n_embd',
                                  'bias')},
    absent={'bias': True},
    fixed={},
    always={'norm_weight': True},
    activations={'gelu': 'gelu_erf'})
LAYOUTS = {'gpt2': GPT2, 'llama': LLAMA, 'qwen3': QWEN3, 'nanochat': NANOCHAT, 'nanogpt': NANOGPT}
READABLE = ['gpt2', 'llama', 'qwen3', 'nanogpt']
WRITABLE = ['gpt2', 'llama', 'qwen3', 'nanochat']


# --- shapes --------------------------------------------------------------------------------------

def read_shape(description):
    """The resolved GPTConfig that a config.json means, a dict; UserError for what folio does
    without, and whatever broken values raise."""
    name = description.get('model_type')
    if name not in READABLE:
        raise UserError(f'models of the architecture {name} are not read; {", ".join(READABLE)} '
                        'are')
    layout = LAYOUTS[name]
    check_fixed(layout, description)
    values = read_keys(layout, description)
    check_biases(description, values)
    activation = description.get(layout.activation_key, [*layout.activations][0])
    values |= {'mlp': layout.activations[activation], 'rope_theta': read_theta(description)}
    return GPTConfig(**layout.holds | layout.always | values).resolved()


def check_fixed(layout, description):
    """UserError for a value in a config.json that the layout has no room for."""
    readable = {key: [value] for key, value in layout.fixed.items()}
    readable[layout.activation_key] = list(layout.activations)
    for key, values in readable.items():
        if description.get(key, values[0]) not in values:
            raise UserError(f'{key}={description[key]} is not read, only '
                            f'{", ".join(map(str, values))}')


def read_keys(layout, description):
    """The options of layout.keys, a dict."""
    fields, values = options.fields_of(GPTConfig), {}
    for name, key in layout.keys.items():
        value = description.get(key, layout.absent.get(name))
        values[name] = options.checked(key, value, fields[name], typed=False)
    return values


def check_biases(description, values):
    """UserError where only some linear layers have biases."""
    if description['model_type'] == 'llama' and values['bias'] != bool(description.get('mlp_bias')):
        raise UserError('attention_bias and mlp_bias differ: either all linear layers have '
                        'biases, or none')


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
    name = min(WRITABLE, key=lambda name: ('mlp' in wrong[name], len(wrong[name])))
    if wrong[name]:
        values = ', '.join(f'{option}={getattr(shape, option)}' for option in wrong[name])
        raise UserError(f'no layout of transformers holds this model; {name}\'s is the nearest, '
                        f'but {values} stands in the way')
    return name


def obstacles(name, shape):
    """The options whose values the layout can't hold, a list of names."""
    layout = LAYOUTS[name]
    wrong = {option: getattr(shape, option) != value for option, value in layout.holds.items()}
    wrong |= {'mlp': shape.mlp not in layout.activations.values(), 'n_layer': shape.n_layer == 0,
              'n_kv_head': shape.n_kv_head != shape.n_head and 'n_kv_head' not in layout.keys,
              'head_size': (shape.head_size * shape.n_head != shape.n_embd
                            and 'head_size' not in layout.keys),
              'norm_eps': name == 'nanochat' and not shape.norm_eps}  # for_nanochat divides by it
    return [option for option in wrong if wrong[option]]


def describe_shape(name, shape):
    """The dict of config.json for a resolved GPTConfig in the layout called `name`."""
    layout = LAYOUTS[name]
    description = {'model_type': name, 'architectures': [layout.architecture],
                   'pad_token_id': None} | layout.fixed
    description |= {key: getattr(shape, option) for option, key in layout.keys.items()}
    description[layout.activation_key] = next(
        theirs for theirs, ours in layout.activations.items() if ours == shape.mlp)
    if name == 'gpt2':
        description |= dict.fromkeys(('resid_pdrop', 'embd_pdrop', 'attn_pdrop'), 0.0)
        description['n_ctx'] = shape.block_size  # which llama.cpp's converter asks for
    else:
        description |= {
            'mlp_bias': shape.bias, 'rope_theta': shape.rope_theta,
            'rope_parameters': {'rope_type': 'default', 'rope_theta': shape.rope_theta}}
    return description


# --- weights -------------------------------------------------------------------------------------

def entries(name, shape):
    """Each parameter that the layout called `name` holds, in our order: its name, the shapes by
    name of the tensors of theirs that it holds one above the other, and whether those are
    transposed."""
    with torch.device('meta'):
        model = GPT(dataclasses.replace(shape, **LAYOUTS[name].always))
    heights = model.stacked_matrices()
    for ours, p in model.named_parameters():
        module, _, kind = ours.rpartition('.')
        theirs = module_names(LAYOUTS[name], module)
        rows = heights[f'{module}.weight'] if len(theirs) > 1 else [len(p)]
        sizes = {f'{part}.{kind}': (n, *p.shape[1:]) for part, n in zip(theirs, rows, strict=True)}
        yield ours, sizes, name == 'gpt2' and module.startswith('blocks.') and p.dim() == 2


def module_names(layout, module):
    """Their names of one of our modules, such as blocks.3.attention.qkv."""
    if module == 'lm_head':
        return ['lm_head']
    before = layout.prefix
    if module.startswith('blocks.'):
        _, number, module = module.split('.', 2)
        before += f'{layout.names["blocks"]}.{number}.'
    return [before + name for name in layout.names[module].split()]


def to_ours(tensors, name, shape):
    """The state_dict of GPT(shape) with copies of their tensors, a dict; UserError for one that is
    missing, extra or of another shape."""
    prefix, ours = LAYOUTS[name].prefix, {}
    tensors = {key if key.startswith((prefix, 'lm_head.')) else prefix + key: tensor
               for key, tensor in tensors.items() if not re.search(BUFFERS, key)}
    for key, sizes, transposed in entries(name, shape):
        tensor = torch.cat([take_tensor(tensors, *item, transposed) for item in sizes.items()])
        ours[key] = tensor if tensor.dtype in FORMATS else tensor.float()
    if shape.tied:
        ours['lm_head.weight'] = head = ours['wte.weight']
        if not torch.equal(tensors.pop('lm_head.weight', head).to(head.dtype), head):
            raise UserError('the tensor lm_head.weight is not the embedding, though the model is '
                            'described as tied')
    if tensors:
        raise UserError(f'the tensor {min(tensors)} has no place in a {name} so described')
    return ours


def take_tensor(tensors, theirs, size, transposed):
    """The tensor called `theirs`, taken out of the dict, in the orientation of ours."""
    size = size[::-1] if transposed else size
    found = tuple(tensors[theirs].shape) if theirs in tensors else 'missing'
    if found != size:
        raise UserError(f'the tensor {theirs} is {found}, and as described it should be {size}')
    tensor = tensors.pop(theirs)
    return tensor.T if transposed else tensor


def to_theirs(state, name, shape):
    """(tensors, shape): our state_dict as theirs, most of them views of ours, and the GPTConfig
    that it has there."""
    tensors, dtype = {}, state['wte.weight'].dtype
    for key, sizes, transposed in entries(name, shape):
        heights = [size[0] for size in sizes.values()]
        neutral = float(key.endswith('weight'))  # of a norm, or a bias
        ours = state[key] if key in state else torch.full([sum(heights)], neutral, dtype=dtype)
        for theirs, tensor in zip(sizes, ours.split(heights), strict=True):
            tensors[theirs] = tensor.T if transposed else tensor
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
