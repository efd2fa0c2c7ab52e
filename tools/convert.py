"""Checkpoints out of other people's weights, and files for other people's tools.

    python tools/convert.py --from=gpt2 --out_dir=out/gpt2
    python tools/convert.py --from=../nanoGPT/out-shakespeare-char/ckpt.pt
    python tools/convert.py --out_dir=out/shakespeare_char --to=hf --dest=shakespeare_hf
    python tools/convert.py --out_dir=out/gpt2 --to=gguf --dest=gpt2.gguf

In come GPT-2's weights, Llama-shaped ones and nanoGPT's, as a checkpoint for sample.py,
tools/evaluate.py and train.py --init_from; out goes a folder that transformers loads, or a file for
llama.cpp.
"""

import contextlib
import dataclasses
import json
import math
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from folio import cli  # first of all, for then an interrupt while torch is loaded is quiet

# isort: split
import folio.options
from folio.checkpoint import damaged, load, move_old_run, save, unpickle
from folio.cli import UserError, first_line, import_library
from folio.options import InPath, OutPath
from folio.tokenizer import Tokenizer, name_of, tiktoken_spec
from model import from_checkpoint
from prepare import read_characters
from tools import gguf_file, hf_tokenizer, layouts

HUB_FILES = ['config.json', 'tokenizer.json', 'vocab.json', 'merges.txt', 'model.safetensors',
             'model-*.safetensors']
LARGEST = 5 * 10 ** 9  # bytes in a file of weights; a larger model is split
UNREADABLE = 'can\'t be read'


@dataclass
class ConvertConfig:
    """What to convert, and where to."""
    from_: str | None = None  # gpt2, another name on the hub, a folder, or nanoGPT's ckpt.pt
    meta: InPath | None = None  # nanoGPT's meta.pkl; None: that of the ckpt.pt's data set
    out_dir: OutPath | None = None  # the checkpoint, which --from makes (out/NAME) and --to reads
    to: Literal['hf', 'gguf'] | None = None  # hf: a folder for transformers, vLLM and others
    dest: OutPath | None = None  # that folder, or the file for llama.cpp, which is made


def main(argv):
    """Convert in the direction that the options name."""
    options, _ = folio.options.parse(ConvertConfig, argv)
    if options.from_ and not options.to:
        import_model(options)
    elif options.to and options.out_dir and options.dest and not options.from_:
        export_model(options.out_dir, options.to, Path(os.path.expanduser(options.dest)))
    else:
        raise UserError('give either --from=gpt2 (or a folder), or --to=hf or --to=gguf with the '
                        'checkpoint --out_dir=DIR and what is to be made --dest=PATH')


# --- in ------------------------------------------------------------------------------------------

def import_model(options):
    """Make a checkpoint in out_dir of nanoGPT's, of a folder, or of a model of the hub."""
    source = folio.options.find(options.from_).resolve()
    if (source / 'ckpt.pt').is_file() and not (source / 'config.json').exists():  # nanoGPT's
        source = source / 'ckpt.pt'
    origin = source.parent if source.is_file() else source
    folder = Path(os.path.expanduser(options.out_dir or folio.options.ROOT / 'out' / origin.name))
    if origin.exists() and folder.resolve() == origin:
        raise UserError(f'{folder} is where the weights come from; name another --out_dir')
    with damaged(options.from_, UNREADABLE):
        shape, weights, spec = read_source(options, source)
    move_old_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.asdict(shape) | {'dataset': None, 'out_dir': str(folder)}
    save({'model': weights, 'config': config, 'tokenizer': spec, 'step': 0, 'sequences': 0,
          'seconds': 0.0, 'best_loss': math.inf}, folder / 'ckpt.pt')
    if spec:  # for prepare.py --tokenizer=, to train the model further
        (folder / 'tokenizer.json').write_text(json.dumps(hf_tokenizer.to_json(spec)))
    layers = f'{shape.n_layer} layers of {shape.n_embd:,} channels, context {shape.block_size:,}'
    print(f'{cli.short(folder / "ckpt.pt")}: {layers}, {name_of(spec)}')


def read_source(options, source):
    """(resolved GPTConfig, state_dict, tokenizer's dict or None) of what --from means; UserError
    for a tokenizer that has more ids than the model."""
    if source.is_file():
        shape, weights, spec = read_nanogpt(source, options.meta)
    elif options.meta:
        raise UserError(f'--meta goes with a checkpoint of nanoGPT, not with {options.from_}')
    else:
        folder = source if source.is_dir() else fetch_model(options.from_)
        shape, weights, spec = read_model(folder, source.name)
    size = Tokenizer(spec).vocab_size if spec else 0
    if size > shape.vocab_size:
        raise UserError(f'its tokenizer has {size:,} ids, its model {shape.vocab_size:,}')
    return shape, weights, spec


def read_nanogpt(path, meta):
    """(resolved GPTConfig, state_dict, tokenizer's dict or None) of nanoGPT's ckpt.pt. The
    characters are those of `meta`, or else of the data set in the same checkout."""
    state = unpickle(path)
    if not {'model', 'model_args'} <= state.keys():
        raise UserError('this is no checkpoint of nanoGPT, which has model and model_args')
    shape = layouts.read_shape(state['model_args'] | {'model_type': 'nanogpt'})
    tensors = {key.removeprefix('_orig_mod.'): tensor  # torch.compile's
               for key, tensor in state['model'].items()}
    weights = layouts.to_ours(tensors, 'nanogpt', shape)
    dataset = str(state.get('config', {}).get('dataset'))
    beside = path.parent.parent / 'data' / dataset / 'meta.pkl'
    if meta or beside.exists():
        return shape, weights, read_characters(folio.options.find(meta or beside))
    try:
        if shape.vocab_size in (50257, 50304):  # GPT-2's, as it is or padded
            return shape, weights, tiktoken_spec('gpt2')
        reason = f'there is no {beside}, and {shape.vocab_size} ids are not those of GPT-2'
    except UserError as error:  # without a network
        reason = error
    print(f'the model comes without a tokenizer (--meta=PATH names a meta.pkl): {reason}')
    return shape, weights, None


def fetch_model(name):
    """The folder with a model of the hub, in the cache of huggingface_hub; UserError where it can't
    be fetched."""
    hub = import_library('huggingface_hub', f'--from={name}: there is no such folder; for the '
                                            'models of the hub')
    name = f'openai-community/{name}' if name.startswith('gpt2') and '/' not in name else name
    try:
        return Path(hub.snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # whatever the hub, the network or the disk bring
        raise UserError(
            f'{name} is no folder, and could not be fetched from {hub.constants.ENDPOINT}: '
            f'{type(error).__name__}: {first_line(error)}; or save its config.json, '
            'model.safetensors and tokenizer.json in a folder, and name that: --from=FOLDER'
        ) from None


def read_model(folder, name):
    """(resolved GPTConfig, state_dict, tokenizer's dict or None) of a folder; the name is for the
    tokenizer."""
    description = read_json(folder / 'config.json')
    shape, kind = layouts.read_shape(description), description['model_type']
    spec = read_tokenizer(folder, name, kind)
    return shape, layouts.to_ours(read_tensors(folder), kind, shape), spec


def read_json(path):
    """The dict in a JSON file."""
    with damaged(path, UNREADABLE):
        return dict(json.loads(path.read_text(encoding='utf-8')))


def read_tokenizer(folder, name, kind):
    """The tokenizer's dict of a folder's tokenizer.json, or of the vocab.json and merges.txt of a
    model of the kind gpt2; None, which is said, without them."""
    if (folder / 'tokenizer.json').exists():
        return hf_tokenizer.from_json(read_json(folder / 'tokenizer.json'), name)
    if kind == 'gpt2' and (folder / 'vocab.json').exists() and (folder / 'merges.txt').exists():
        return hf_tokenizer.from_merges(folder, name)
    print(f'{folder} has no tokenizer that can be read, a tokenizer.json or the vocab.json and '
          'merges.txt of a GPT-2, so the model comes without one')


def read_tensors(folder):
    """The tensors of a folder's .safetensors files, by name; UserError if there are none."""
    library, tensors = import_library('safetensors.torch', 'tools/convert.py'), {}
    for path in sorted(folder.glob('model*.safetensors')):
        with damaged(path, UNREADABLE):
            tensors |= library.load_file(path)
    if not tensors:
        raise UserError(f'{folder} has no model.safetensors; weights in other files, such as '
                        'pytorch_model.bin, are not read, for such a file runs code (pickle)')
    return tensors


# --- out -----------------------------------------------------------------------------------------

def export_model(out_dir, to, dest):
    """Write the checkpoint of out_dir as dest, whole or not at all."""
    state, write = load(out_dir), gguf_file.write_gguf if to == 'gguf' else write_hf
    if dest.exists():
        raise UserError(f'{dest} is there already; remove it, or name a new one')
    with damaged(out_dir):
        shape = from_checkpoint(state).config
    layout = layouts.choose_layout(shape)
    with whole(dest) as path:
        write(path, state, layout, shape)
    print(f'{dest}: {layouts.LAYOUTS[layout].architecture}, {name_of(state["tokenizer"])}')


def write_hf(folder, state, layout, shape):
    """Write a checkpoint's dict, of this layout and resolved GPTConfig, as a folder for
    transformers."""
    library = import_library('safetensors.torch', '--to=hf')
    hub = import_library('huggingface_hub', '--to=hf')
    tensors, written = layouts.to_theirs(state['model'], layout, shape)
    split = hub.split_torch_state_dict_into_shards(tensors, max_shard_size=LARGEST)
    dtype = str(state['model']['wte.weight'].dtype).removeprefix('torch.')
    description = layouts.describe_shape(layout, written) | {'dtype': dtype}
    contents = json_files(description, state['tokenizer'], shape)
    if split.is_sharded:
        contents['model.safetensors.index.json'] = {
            'metadata': split.metadata, 'weight_map': split.tensor_to_filename}
    folder.mkdir()
    for file, content in contents.items():
        (folder / file).write_text(json.dumps(content, indent=2), encoding='utf-8')
    for file, names in split.filename_to_tensors.items():
        library.save_file({name: tensors[name].contiguous() for name in names}, folder / file,
                          metadata={'format': 'pt'})


@contextlib.contextmanager
def whole(dest):
    """A temporary path, to write dest there, which then gets its name; UserError where writing
    fails. Nothing else is left of it."""
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f'{dest.name}.', dir=dest.parent) as folder:
            yield Path(folder, dest.name)
            os.replace(Path(folder, dest.name), dest)
    except UserError:
        raise
    except Exception as error:  # a full disk, of which libraries have their own errors
        raise UserError(f'{dest} could not be written: {type(error).__name__}: '
                        f'{first_line(error)}') from None


def json_files(description, spec, shape):
    """The contents of the folder's JSON files by their names."""
    tokenizer = Tokenizer(spec) if spec else None
    end = tokenizer and tokenizer.special.get('<|endoftext|>')
    ends = {'bos_token_id': end, 'eos_token_id': end}
    never = list(range(tokenizer.vocab_size, shape.vocab_size)) if spec else []  # padding
    contents = {'config.json': description | ends,
                'generation_config.json': ends | {'suppress_tokens': never or None}}
    if not spec:
        return contents
    name = None if end is None else '<|endoftext|>'
    return contents | {
        'tokenizer.json': hf_tokenizer.to_json(spec),
        'tokenizer_config.json': {
            'tokenizer_class': 'PreTrainedTokenizerFast', 'model_max_length': shape.block_size,
            'clean_up_tokenization_spaces': False, 'bos_token': name, 'eos_token': name,
            'split_special_tokens': True}}  # <|endoftext|> in a text is text


if __name__ == '__main__':
    cli.run(main)
