"""Checkpoints out of other people's weights, and folders for other people's tools.

    python convert.py --from=gpt2 --out_dir=out/gpt2
    python convert.py --out_dir=out/shakespeare_char --to=hf --dest=shakespeare_hf

In come GPT-2's weights and Llama-shaped ones, as a checkpoint for sample.py, evaluate.py and
train.py --init_from; out goes a folder that transformers loads.
"""

import dataclasses
import http.client
import json
import math
import os
import re
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import config
import layouts
import script
import tokenizer_json
from download import download
from machine import first_line
from model import GPTConfig
from run import SHAPE, load, make_room, save
from script import UserError
from tokenizer import Tokenizer, name_of
from train import TrainConfig

WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'


@dataclass
class ConvertConfig:
    """What to convert, and where to."""
    from_: str | None = None  # gpt2, gpt2-medium, -large, -xl, a name on the hub, or a folder
    out_dir: str | None = None  # the checkpoint: --from makes it (None: out/NAME), --to reads it
    to: Literal['hf'] | None = None  # hf: a folder that transformers, vLLM and others load
    dest: str | None = None  # that folder, which is made


def main(argv):
    options, _ = config.parse(ConvertConfig, argv)
    if (options.from_ is None) == (options.to is None):
        raise UserError('give either --from=gpt2 (or a folder) or --to=hf')
    if options.from_ is not None:
        return take_in(options.from_, options.out_dir)
    if options.dest is None or options.out_dir is None:
        raise UserError('--to=hf takes the checkpoint --out_dir=DIR and writes the folder '
                        '--dest=DIR')
    put_out(options.out_dir, Path(options.dest).expanduser())


# --- in ------------------------------------------------------------------------------------------

def take_in(source, out_dir):
    """Make a checkpoint in out_dir of a folder, or of the hub's files called `source`."""
    name = Path(source).resolve().name
    folder = Path(out_dir).expanduser() if out_dir else config.ROOT / 'out' / name
    origin = config.find(source)
    origin = origin if origin.is_dir() else hub_folder(source)
    description = read_json(origin / 'config.json')
    shape = layouts.read_shape(description, origin / 'config.json')
    spec = read_tokenizer(origin, name)
    if spec and (size := Tokenizer(spec).vocab_size) > shape.vocab_size:
        raise UserError(f'{source}: its tokenizer has {size:,} ids, its model {shape.vocab_size:,}')
    tensors = read_tensors(weight_files(origin))
    try:
        weights = layouts.to_ours(tensors, description['model_type'], shape)
    except UserError as error:
        raise UserError(f'{source}: {error}') from None
    make_room(folder)
    folder.mkdir(parents=True, exist_ok=True)
    options = TrainConfig(out_dir=str(folder), dataset=None, **dataclasses.asdict(shape))
    save({'model': weights, 'config': dataclasses.asdict(options), 'tokenizer': spec, 'step': 0,
          'sequences': 0, 'seconds': 0.0, 'best_loss': math.inf}, folder / 'ckpt.pt')
    layers = f'{shape.n_layer} layers of {shape.n_embd:,} channels, context {shape.block_size:,}'
    print(f'{script.short(folder / "ckpt.pt")}: {layers}, {name_of(spec)}')


def weight_files(folder):
    """The files that hold a folder's weights; UserError where what there is cannot be read."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        return [folder / name for name in parts_of(folder / INDEX)]
    refuse_weights(folder, [path.name for path in folder.iterdir()])


def refuse_weights(where, names):
    pickled = [name for name in names if name.endswith('.bin')]
    raise UserError(f'{where} has no {WEIGHTS}' + (
        f'; {pickled[0]} is not read, for files of its kind run code (pickle)' if pickled else ''))


def parts_of(index):
    """The names of the files over which an index says that the weights are spread."""
    names = sorted(set(read_json(index).get('weight_map', {}).values()))
    if any(Path(name).name != name for name in names):
        raise UserError(f'{index} names files of other folders')
    return names


def hub_folder(name):
    """The folder in ~/.cache/folio with the files of a model on the hub, fetched if need be."""
    if not re.fullmatch(r'[\w-][\w.-]*(/[\w-][\w.-]*)?', name):
        raise UserError(f'--from={name}: there is no such folder, and no model has such a name')
    name = f'openai-community/{name}' if name.startswith('gpt2') and '/' not in name else name
    cache = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'folio' / name
    hub = os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')
    try:
        if not (cache / 'config.json').exists():  # which comes last
            fetch_all(name, hub, cache)
    except (OSError, ValueError, http.client.HTTPException) as error:
        hint = ' (no such model, or only for accounts)' * (getattr(error, 'code', 0) in (401, 404))
        raise UserError(f'{name} could not be fetched from {hub}: {first_line(error)}{hint}; or '
                        f'save its config.json, {WEIGHTS} and tokenizer.json in a folder, and name '
                        'that: --from=FOLDER') from None
    return cache


def fetch_all(name, hub, cache):
    with urllib.request.urlopen(f'{hub}/api/models/{name}', timeout=30) as response:
        there = [file['rfilename'] for file in json.load(response)['siblings']]
    tokenizer = [file for file in ('tokenizer.json', 'tokenizer.model') if file in there][:1]
    weights = [file for file in (WEIGHTS, INDEX) if file in there][:1]
    if not weights:
        refuse_weights(name, there)
    for file in [*tokenizer, *weights]:
        fetch(name, file, hub, cache)
    for file in parts_of(cache / INDEX) if weights == [INDEX] else []:
        fetch(name, file, hub, cache)
    fetch(name, 'config.json', hub, cache)


def fetch(name, file, hub, cache):
    url = f'{hub}/{name}/resolve/main/{file}'
    if not (cache / file).exists():
        download(url, cache / file, checksum(url))


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def checksum(url):
    """The sha256 that the hub says a large file has, before it sends one elsewhere; else None."""
    request = urllib.request.Request(url, method='HEAD')
    try:
        headers = urllib.request.build_opener(NoRedirect).open(request, timeout=30).headers
    except urllib.error.HTTPError as error:
        if error.code not in (301, 302, 303, 307, 308):
            raise
        headers = error.headers
    found = re.fullmatch('"?([0-9a-f]{64})"?', headers.get('X-Linked-ETag') or '')
    return found and found[1]


def read_json(path):
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise UserError(f'{path.parent} has no {path.name}') from None
    except ValueError as error:
        raise UserError(f'{path} is not JSON: {error}') from None
    if not isinstance(content, dict):
        raise UserError(f'{path} holds no JSON object')
    return content


def read_tokenizer(folder, name):
    """The tokenizer's dict of a folder's tokenizer.json, or None without one."""
    path = folder / 'tokenizer.json'
    if not path.exists() and (folder / 'tokenizer.model').exists():
        raise UserError(f'{folder}: a SentencePiece tokenizer (tokenizer.model) is not read, only '
                        'byte-level BPE; without this file the model comes without a tokenizer')
    if not path.exists():
        return None
    try:
        return tokenizer_json.from_json(read_json(path), name, path)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f'{path} is not in the format of tokenizers: '
                        f'{type(error).__name__}: {error}') from None


def read_tensors(paths):
    """The tensors of .safetensors files, by name."""
    safetensors, tensors = library(), {}
    for path in paths:
        try:
            tensors |= safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f'{path} is no whole .safetensors: {first_line(error)}') from None
    return tensors


def library():
    try:
        import safetensors.torch
        return safetensors
    except ImportError:
        raise UserError('convert.py needs safetensors: pip install safetensors') from None


# --- out -----------------------------------------------------------------------------------------

def put_out(out_dir, dest):
    """Write the checkpoint of out_dir as the folder dest, whole or not at all."""
    state, safetensors = load(out_dir), library()
    shape = GPTConfig(**{name: state['config'][name] for name in SHAPE}).resolved()
    layout = layouts.choose_layout(shape)
    if dest.is_file() or dest.is_dir() and any(dest.iterdir()):
        raise UserError(f'{dest} is there already; name a folder that is not, or remove it')
    tensors, written = layouts.to_theirs(state['model'], layout, shape)
    contents = texts_of(layouts.describe(layout, written), state['tokenizer'], shape)
    folder = dest.with_name(f'{dest.name}.tmp')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            text = json.dumps(content, indent=None if file == 'tokenizer.json' else 2)
            (folder / file).write_text(text, encoding='utf-8')
        safetensors.torch.save_file(tensors, folder / WEIGHTS, metadata={'format': 'pt'})
        if dest.exists():  # and is empty
            dest.rmdir()
        os.replace(folder, dest)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f'{dest} could not be written (is the disk full?): {first_line(error)}'
                        ) from None
    print(f'{dest}: {layouts.ARCHITECTURES[layout]}, {name_of(state["tokenizer"])}')


def texts_of(description, spec, shape):
    """The contents of the folder's JSON files by their names."""
    end = spec and spec.get('special', {}).get('<|endoftext|>')
    ends = {'bos_token_id': end, 'eos_token_id': end}
    never = list(range(Tokenizer(spec).vocab_size, shape.vocab_size)) if spec else []  # padding
    contents = {'config.json': description | ends,
                'generation_config.json': ends | {'suppress_tokens': never or None}}
    if spec:
        contents['tokenizer.json'] = tokenizer_json.to_json(spec)
        contents['tokenizer_config.json'] = {
            'tokenizer_class': 'PreTrainedTokenizerFast', 'model_max_length': shape.block_size,
            'clean_up_tokenization_spaces': False}
        if end is not None:
            contents['tokenizer_config.json'] |= dict.fromkeys(
                ('bos_token', 'eos_token'), '<|endoftext|>')
    return contents


if __name__ == '__main__':
    script.run(main)
