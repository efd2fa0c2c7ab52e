"""Checkpoints out of other people's weights, and folders for other people's tools.

    python tools/convert.py --from=gpt2 --out_dir=out/gpt2
    python tools/convert.py --out_dir=out/shakespeare_char --to=hf --dest=shakespeare_hf

In come GPT-2's weights and Llama-shaped ones, as a checkpoint for sample.py, tools/evaluate.py and
train.py --init_from; out goes a folder that transformers loads.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from folio import cli  # first of all, for then an interrupt while torch is loaded is quiet

# isort: split
import folio.options
from folio.checkpoint import damaged, load, move_old_run, save
from folio.cli import UserError, first_line, import_library
from folio.options import OutPath
from folio.tokenizer import Tokenizer, name_of
from model import SHAPE, GPTConfig, check_weights
from tools import hf_tokenizer, layouts

WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'
HUB_FILES = ['config.json', 'tokenizer.json', 'vocab.json', 'merges.txt', 'tokenizer_config.json',
             INDEX, WEIGHTS, 'model-*.safetensors']
GPT2_CLASSES = (None, 'GPT2Tokenizer', 'GPT2TokenizerFast')  # in a tokenizer_config.json


@dataclass
class ConvertConfig:
    """What to convert, and where to."""
    from_: str | None = None  # gpt2, gpt2-medium, -large, -xl, a name on the hub, or a folder
    out_dir: OutPath | None = None  # the checkpoint, which --from makes (out/NAME) and --to reads
    to: Literal['hf'] | None = None  # hf: a folder that transformers, vLLM and others load
    dest: OutPath | None = None  # that folder, which is made


def main(argv):
    """Convert in the direction that the options name."""
    options, _ = folio.options.parse(ConvertConfig, argv)
    if (options.from_ is None) == (options.to is None):
        raise UserError('give either --from=gpt2 (or a folder) or --to=hf')
    if options.from_ is not None:
        return import_model(options.from_, options.out_dir)
    if options.dest is None or options.out_dir is None:
        raise UserError('--to=hf takes the checkpoint --out_dir=DIR and writes the folder '
                        '--dest=DIR')
    export_model(options.out_dir, Path(os.path.expanduser(options.dest)))


# --- in ------------------------------------------------------------------------------------------

def import_model(source, out_dir):
    """Make a checkpoint in out_dir of a folder, or of the hub's files called `source`."""
    name = Path(source).resolve().name
    folder = Path(os.path.expanduser(out_dir)) if out_dir else folio.options.ROOT / 'out' / name
    shape, weights, spec = read_model(source, name)
    move_old_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.asdict(shape) | {'dataset': None, 'out_dir': str(folder)}
    save({'model': weights, 'config': config, 'tokenizer': spec, 'step': 0, 'sequences': 0,
          'seconds': 0.0, 'best_loss': math.inf}, folder / 'ckpt.pt')
    layers = f'{shape.n_layer} layers of {shape.n_embd:,} channels, context {shape.block_size:,}'
    print(f'{cli.short(folder / "ckpt.pt")}: {layers}, {name_of(spec)}')


def read_model(source, name):
    """(resolved GPTConfig, state_dict, tokenizer's dict or None) of a folder or a model's name."""
    folder = folio.options.find(source)
    folder = folder if folder.is_dir() else fetch_model(source)
    description = read_json(folder / 'config.json')
    shape = layouts.read_shape(description, folder / 'config.json')
    spec = read_tokenizer(folder, name)
    with damaged(folder / 'tokenizer.json'):
        size = Tokenizer(spec).vocab_size if spec else 0
    if size > shape.vocab_size:
        raise UserError(f'{source}: its tokenizer has {size:,} ids, its model {shape.vocab_size:,}')
    tensors = read_tensors(weight_files(folder))
    try:
        with damaged(folder):
            return shape, layouts.to_ours(tensors, description['model_type'], shape), spec
    except UserError as error:
        raise UserError(f'{source}: {error}') from None


def fetch_model(name):
    """The folder with a model of the hub, in the cache of huggingface_hub; UserError where it can't
    be fetched."""
    if not re.fullmatch(r'[\w-][\w.-]*(/[\w-][\w.-]*)?', name):
        raise UserError(f'--from={name}: there is no such folder, and no model has such a name')
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f'--from={name}: there is no such folder; for the models of the hub: '
                        'pip install huggingface_hub') from None
    name = f'openai-community/{name}' if name.startswith('gpt2') and '/' not in name else name
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # whatever the hub, the network or the disk bring
        unknown = isinstance(error, huggingface_hub.errors.RepositoryNotFoundError)
        hint = ' (no such model, or only for accounts)' if unknown else ''
        raise UserError(
            f'{name} could not be fetched from {huggingface_hub.constants.ENDPOINT}: '
            f'{first_line(error)}{hint}; or save its config.json, {WEIGHTS} and tokenizer.json in '
            'a folder, and name that: --from=FOLDER') from None


def weight_files(folder):
    """The files that hold a folder's weights; UserError where what there is can't be read."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        names = read_json(folder / INDEX).get('weight_map')
        if not isinstance(names, dict):
            raise UserError(f'{folder / INDEX} has no weight_map')
        return sorted({folder / Path(str(name)).name for name in names.values()})
    raise UserError(f'{folder} has no {WEIGHTS}; weights in other files, such as '
                    'pytorch_model.bin, are not read, for such a file runs code (pickle)')


def read_json(path):
    """The dict in a JSON file; UserError for a file that is missing or holds no dict."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise UserError(f'{path.parent} has no {path.name}') from None
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is not JSON: {error}') from None
    if not isinstance(content, dict):
        raise UserError(f'{path} holds no JSON object')
    return content


def read_tokenizer(folder, name):
    """The tokenizer's dict of a folder's tokenizer.json, or vocab.json and merges.txt; None, which
    is said, where neither can be read."""
    path, settings = folder / 'tokenizer.json', folder / 'tokenizer_config.json'
    if path.exists():
        with in_format(path):
            return hf_tokenizer.from_json(read_json(path), name)
    if (folder / 'vocab.json').exists() and (folder / 'merges.txt').exists():
        settings = read_json(settings) if settings.exists() else {}
        if settings.get('tokenizer_class') in GPT2_CLASSES:  # others cut a text in other ways
            with in_format(folder / 'vocab.json'):
                return hf_tokenizer.from_merges(folder, name, settings)
    print(f'{folder} has no tokenizer that can be read, a tokenizer.json or the vocab.json and '
          'merges.txt of a GPT-2, so the model comes without one')


@contextlib.contextmanager
def in_format(path):
    """A UserError for what goes wrong with the file of a tokenizer."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # which is what the library raises
        raise UserError(f'{path} is not in the format of tokenizers: '
                        f'{type(error).__name__}: {first_line(error)}') from None


def read_tensors(paths):
    """The tensors of .safetensors files, by name."""
    safetensors, tensors = import_library('safetensors.torch', 'tools/convert.py'), {}
    for path in paths:
        try:
            tensors |= safetensors.load_file(path)
        except Exception as error:  # whatever a broken file makes the library raise
            raise UserError(f'{path} is no whole .safetensors: {first_line(error)}') from None
    return tensors


# --- out -----------------------------------------------------------------------------------------

def export_model(out_dir, dest):
    """Write the checkpoint of out_dir as the folder dest, whole or not at all."""
    state = load(out_dir)
    with damaged(out_dir):
        shape = GPTConfig(**{name: state['config'][name] for name in SHAPE}).resolved()
        check_weights(state['model'], shape)
    layout = layouts.choose_layout(shape)
    if dest.is_file() or dest.is_dir() and any(dest.iterdir()):
        raise UserError(f'{dest} is there already; name a folder that is not, or remove it')
    tensors, written = layouts.to_theirs(state['model'], layout, shape)
    with damaged(out_dir):
        contents = json_files(layouts.describe_shape(layout, written), state['tokenizer'], shape)
    write_folder(dest, contents, tensors)
    print(f'{dest}: {layouts.LAYOUTS[layout].architecture}, {name_of(state["tokenizer"])}')


def write_folder(dest, contents, tensors):
    """Write JSON contents, by file name, and tensors as the folder dest, absent or empty before;
    UserError where that fails, and nothing is left of it."""
    safetensors = import_library('safetensors.torch', 'tools/convert.py')
    folder = Path(f'{dest}.tmp')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            text = json.dumps(content, indent=None if file == 'tokenizer.json' else 2)
            (folder / file).write_text(text, encoding='utf-8')
        safetensors.save_file(tensors, folder / WEIGHTS, metadata={'format': 'pt'})
        if dest.exists():  # and is empty
            dest.rmdir()
        os.replace(folder, dest)
    except Exception as error:  # a full disk, of which the library has its own
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f'{dest} could not be written (is the disk full?): {first_line(error)}'
                        ) from None


def json_files(description, spec, shape):
    """The contents of the folder's JSON files by their names."""
    tokenizer = Tokenizer(spec) if spec else None
    end = tokenizer and tokenizer.special.get('<|endoftext|>')
    ends = {'bos_token_id': end, 'eos_token_id': end}
    never = list(range(tokenizer.vocab_size, shape.vocab_size)) if spec else []  # padding
    contents = {'config.json': description | ends,
                'generation_config.json': ends | {'suppress_tokens': never or None}}
    if spec:
        contents['tokenizer.json'] = hf_tokenizer.to_json(spec)
        contents['tokenizer_config.json'] = {
            'tokenizer_class': 'PreTrainedTokenizerFast', 'model_max_length': shape.block_size,
            'clean_up_tokenization_spaces': False,
            'split_special_tokens': True}  # <|endoftext|> in a text is text
    if end is not None:
        contents['tokenizer_config.json'] |= dict.fromkeys(
            ('bos_token', 'eos_token'), '<|endoftext|>')
    return contents


if __name__ == '__main__':
    cli.run(main)
