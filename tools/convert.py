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
    if options.from_ and not options.to:
        import_model(options.from_, options.out_dir)
    elif options.to and options.out_dir and options.dest and not options.from_:
        export_model(options.out_dir, Path(os.path.expanduser(options.dest)))
    else:
        raise UserError('give either --from=gpt2 (or a folder), or --to=hf with the checkpoint '
                        '--out_dir=DIR and the folder to be made --dest=DIR')


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
    if spec:  # for prepare.py --tokenizer=, to train the model further
        (folder / 'tokenizer.json').write_text(json.dumps(hf_tokenizer.to_json(spec)))
    layers = f'{shape.n_layer} layers of {shape.n_embd:,} channels, context {shape.block_size:,}'
    print(f'{cli.short(folder / "ckpt.pt")}: {layers}, {name_of(spec)}')


def read_model(source, name):
    """(resolved GPTConfig, state_dict, tokenizer's dict or None) of a folder or a model's name."""
    folder = folio.options.find(source)
    folder = folder if folder.is_dir() else fetch_model(source)
    with reading(folder / 'config.json'):
        description = read_json(folder / 'config.json')
        shape = layouts.read_shape(description)
    spec, tensors = read_tokenizer(folder, name), read_tensors(folder)
    with reading(folder):
        size = Tokenizer(spec).vocab_size if spec else 0
        if size > shape.vocab_size:
            raise UserError(f'its tokenizer has {size:,} ids, its model {shape.vocab_size:,}')
        return shape, layouts.to_ours(tensors, description['model_type'], shape), spec


@contextlib.contextmanager
def reading(path):
    """A UserError that names the path for whatever other people's files make a library raise."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    except (MemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        raise UserError(f'{path} can\'t be read: {type(error).__name__}: {first_line(error)}'
                        ) from None


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
            f'{type(error).__name__}: {first_line(error)}; or save its config.json, {WEIGHTS} and '
            'tokenizer.json in a folder, and name that: --from=FOLDER') from None


def read_json(path):
    """The dict in a JSON file."""
    return dict(json.loads(path.read_text(encoding='utf-8')))


def read_tokenizer(folder, name):
    """The tokenizer's dict of a folder's tokenizer.json, or vocab.json and merges.txt; None, which
    is said, where neither can be read."""
    path, settings = folder / 'tokenizer.json', folder / 'tokenizer_config.json'
    if path.exists():
        with reading(path):
            return hf_tokenizer.from_json(read_json(path), name)
    if (folder / 'vocab.json').exists() and (folder / 'merges.txt').exists():
        with reading(folder / 'vocab.json'):
            settings = read_json(settings) if settings.exists() else {}
            if settings.get('tokenizer_class') in GPT2_CLASSES:  # others cut a text in other ways
                return hf_tokenizer.from_merges(folder, name, settings)
    print(f'{folder} has no tokenizer that can be read, a tokenizer.json or the vocab.json and '
          'merges.txt of a GPT-2, so the model comes without one')


def read_tensors(folder):
    """The tensors of a folder's .safetensors files, by name."""
    library, tensors = import_library('safetensors.torch', 'tools/convert.py'), {}
    for path in weight_files(folder):
        with reading(path):
            tensors |= library.load_file(path)
    return tensors


def weight_files(folder):
    """The files that hold a folder's weights; UserError if there are none."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        raise UserError(f'{folder} has no {WEIGHTS}; weights in other files, such as '
                        'pytorch_model.bin, are not read, for such a file runs code (pickle)')
    with reading(folder / INDEX):
        names = set(read_json(folder / INDEX)['weight_map'].values())
        return [folder / Path(name).name for name in sorted(names)]


# --- out -----------------------------------------------------------------------------------------

def export_model(out_dir, dest):
    """Write the checkpoint of out_dir as the folder dest, whole or not at all."""
    state = load(out_dir)
    with damaged(out_dir):
        shape = GPTConfig(**{name: state['config'][name] for name in SHAPE}).resolved()
        check_weights(state['model'], shape)
    layout = layouts.choose_layout(shape)
    if dest.exists():
        raise UserError(f'{dest} is there already; remove it, or name a new folder')
    tensors, written = layouts.to_theirs(state['model'], layout, shape)
    with damaged(out_dir):
        contents = json_files(layouts.describe_shape(layout, written), state['tokenizer'], shape)
    write_folder(dest, contents, tensors)
    print(f'{dest}: {layouts.LAYOUTS[layout].architecture}, {name_of(state["tokenizer"])}')


def write_folder(dest, contents, tensors):
    """Write JSON contents, by file name, and tensors as the folder dest, which is not there;
    UserError where that fails, and nothing is left of it."""
    library = import_library('safetensors.torch', 'tools/convert.py')
    folder = Path(f'{dest}.tmp')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            text = json.dumps(content, indent=None if file == 'tokenizer.json' else 2)
            (folder / file).write_text(text, encoding='utf-8')
        library.save_file(tensors, folder / WEIGHTS, metadata={'format': 'pt'})
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
