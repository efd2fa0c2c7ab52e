"""A model and its tokenizer as one .gguf file, which llama.cpp and Ollama run.

    write_gguf('model.gguf', state, 'llama', shape)

of a checkpoint's dict, a layout's name and a resolved GPTConfig.

Architectures: GPT-2, Llama and Qwen3. Tokenizers: byte-pair encodings that cut a text as one of
those does, for the file only names the pattern, and llama.cpp has it.
"""

import json

import torch

from folio.cli import UserError, import_library
from folio.tokenizer import Tokenizer, name_of
from tools import layouts
from tools.hf_tokenizer import merges_of, name_of_cut, to_json

ENDS = ('<|endoftext|>', '<|end_of_text|>')  # of a text, by name
BFLOAT16 = 30  # a type of tensors
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens


def write_gguf(path, state, name, shape):
    """Write a model as a file; UserError for what llama.cpp would compute or encode in another
    way."""
    gguf = import_library('gguf', '--to=gguf')
    if name == 'nanochat' or shape.mlp == 'gelu_erf':
        raise UserError(f'llama.cpp has no {layouts.LAYOUTS[name].architecture} with mlp='
                        f'{shape.mlp}; --to=hf writes it for transformers')
    writer = gguf.GGUFWriter(path, name)
    add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32,
           bool: writer.add_bool, list: writer.add_array}
    values = shape_values(name, shape) | token_values(state['tokenizer'], shape.vocab_size)
    for key, value in values.items():
        add[type(value)](key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], shape.n_layer)
    for theirs, tensor in layouts.to_theirs(state['model'], name, shape)[0].items():
        tensor = turned(theirs, tensor, name, shape)
        add_tensor(writer, names.get_name(theirs, ('.weight', '.bias')), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tensor(writer, name, tensor):
    """Add a tensor to the file in its number format, but for those that llama.cpp adds to numbers
    in float32."""
    if tensor.dim() == 1 or name.startswith('position_embd'):
        tensor = tensor.float()
    kind = None
    if tensor.dtype == torch.bfloat16:  # which numpy has not
        tensor, kind = tensor.view(torch.int16), BFLOAT16
    writer.add_tensor(name, tensor.numpy(), raw_dtype=kind)


def turned(theirs, tensor, name, shape):
    """A tensor of a layout as llama.cpp has it: linear layers as (out, in), and for Llama the
    halves of a head's queries and keys, which RoPE turns as pairs, in alternation."""
    if name == 'gpt2' and '.h.' in theirs and tensor.dim() == 2:
        return tensor.T
    if name == 'llama' and ('q_proj' in theirs or 'k_proj' in theirs):
        return tensor.unflatten(0, (-1, 2, shape.head_size // 2)).transpose(1, 2).flatten(0, 2)
    return tensor


def shape_values(name, shape):
    """The values that describe a resolved GPTConfig, by their keys."""
    values = {'context_length': shape.block_size, 'embedding_length': shape.n_embd,
              'block_count': shape.n_layer, 'feed_forward_length': shape.n_inner,
              'attention.head_count': shape.n_head, 'attention.head_count_kv': shape.n_kv_head}
    if name == 'gpt2':
        values['attention.layer_norm_epsilon'] = float(shape.norm_eps)
    else:
        size = shape.head_size
        values |= {'attention.layer_norm_rms_epsilon': float(shape.norm_eps),
                   'rope.freq_base': float(shape.rope_theta), 'rope.dimension_count': size,
                   'attention.key_length': size, 'attention.value_length': size}
    return {f'{name}.{key}': value for key, value in values.items()}


def token_values(spec, size):
    """The values that describe a tokenizer, by their keys, for a vocabulary of `size` ids."""
    if not spec:
        raise UserError('the model has no tokenizer, which llama.cpp needs')
    name, content = name_of(spec), to_json(spec)
    values = encoding_values(content, name)
    tokenizer = Tokenizer({'kind': 'json', 'name': name, 'json': json.dumps(content)})
    ends = [tokenizer.special[end] for end in ENDS if end in tokenizer.special]
    if not ends:
        raise UserError(f'the tokenizer {name} has no end of a text, {" or ".join(ENDS)}')
    values |= token_lists(tokenizer.encoder, size) | {
        'model': 'gpt2', 'bos_token_id': tokenizer.special.get('<|begin_of_text|>', ends[0]),
        'eos_token_id': ends[0], 'add_bos_token': False, 'add_eos_token': False}
    return {f'tokenizer.ggml.{key}': value for key, value in values.items()}


def token_lists(library, size):
    """The text and the type of each of `size` ids, for a Tokenizer of the library `tokenizers`."""
    tokens = {i: token for token, i in library.get_vocab().items()}
    types = dict.fromkeys(tokens, NORMAL) | {
        i: CONTROL if token.special else USER_DEFINED
        for i, token in library.get_added_tokens_decoder().items()}
    return {'tokens': [tokens.get(i, f'[unused {i}]') for i in range(size)],
            'token_type': [types.get(i, UNUSED) for i in range(size)]}


def encoding_values(content, name):
    """llama.cpp's name of the way in which a tokenizer.json cuts a text, and the merges; UserError
    where llama.cpp would give a text other ids."""
    model, merges, cut = content['model'], merges_of(content['model']), name_of_cut(content)
    plain = cut and merges and content.get('normalizer') in (None, {'type': 'NFC'})
    whole = bool(model.get('ignore_merges'))  # a word that is a token is not merged
    if not plain or whole != (cut == 'llama-bpe') and not all_merged(content, merges):
        raise UserError(f'llama.cpp can\'t give the ids of this tokenizer ({name}); --to=hf writes '
                        'any tokenizer')
    return {'pre': cut, 'merges': merges}


def all_merged(content, merges):
    """Whether each token is a byte, or added, or what a merge makes."""
    added = {token['content'] for token in content.get('added_tokens', ())}
    return len(content['model']['vocab'].keys() - added) == 256 + len(merges)
