"""Speed of sampling, side by side: folio, transformers, llama.cpp and nanoGPT, on a CPU.

    python docs/sampling_speed.py
    python docs/sampling_speed.py --sizes=gpt2 --batches=1,8 --dtypes=int8 --against=../nanoGPT

Each contender is a process with a memory of its own, if its library is installed, and has random
weights. They take turns, so that a noisy machine is noisy for all; what is printed are medians.
"""

import contextlib
import ctypes
import functools
import importlib.util
import io
import itertools
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from folio import cli  # first of all, for then an interrupt while torch is loaded is quiet

# isort: split
import numpy as np
import torch

import folio.options
from folio.cli import UserError, first_line
from folio.machine import keep_memory
from folio.options import InPath
from folio.packed import pack
from model import GPT, GPTConfig

SHAPES = {
    'gpt2': {'n_layer': 12, 'n_head': 12, 'n_embd': 768, 'block_size': 1024, 'vocab_size': 50257},
    'char': {'n_layer': 6, 'n_head': 6, 'n_embd': 384, 'block_size': 256, 'vocab_size': 65},
}
LIKE_GPT2 = {'position': 'learned', 'norm': 'layernorm', 'norm_weight': True, 'mlp': 'gelu',
             'qk_norm': False, 'bias': True, 'tied': True, 'token_shift': False}
TOP_K, TEMPERATURE = 200, 0.8


@dataclass
class SamplingBenchConfig:
    """What to measure."""
    sizes: list[str] = field(default_factory=lambda: list(SHAPES))  # gpt2: 124M, char: 10.7M
    dtypes: list[str] = field(default_factory=lambda: ['float32', 'bfloat16', 'int8'])
    batches: list[int] = field(default_factory=lambda: [1, 8, 64])  # samples of one prompt
    contexts: list[int] = field(default_factory=lambda: [32, 512, 1000])  # tokens of the prompt
    tokens: Annotated[int, '>= 2'] = 24  # that are drawn in a turn
    rounds: Annotated[int, '>= 1'] = 3  # turns of each contender
    against: InPath | None = None  # a checkout of nanoGPT, whose model.py is measured too


def main(argv):
    """Print a table for each size and number format that the options in argv name."""
    options, _ = folio.options.parse(SamplingBenchConfig, argv)
    for size in options.sizes:
        if size not in SHAPES:
            raise UserError(f'no size {size}; there are {", ".join(SHAPES)}')
    if options.against and not Path(folio.options.find(options.against), 'model.py').is_file():
        raise UserError(f'--against={options.against}: there is no model.py')
    for size, dtype in itertools.product(options.sizes, options.dtypes):
        compare(size, dtype, options)


def compare(size, dtype, options):
    """Print the table of one size and number format."""
    print(f'\n### {size}, {dtype}\n\n| batch | prompt | | ms to the first token | tokens/s |\n'
          '|---|---|---|---|---|', flush=True)
    names = [name for name, (_, module, dtypes) in CONTENDERS.items() if dtype in dtypes and (
        options.against if name == 'nanoGPT' else importlib.util.find_spec(module))]
    with contextlib.ExitStack() as stack:
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, get_context('spawn')))
                 for name in names}
        for batch, context in itertools.product(options.batches, options.contexts):
            if context + options.tokens <= SHAPES[size]['block_size']:
                compare_row(pools, (size, dtype, options.against), batch, context, options)


def compare_row(pools, contest, batch, context, options):
    """Print the lines of one batch and prompt, after turns of all contenders."""
    times = defaultdict(list)
    for name in list(pools) * (options.rounds + 1):
        turn = pools[name].submit(take_sampling_turn, name, *contest, batch, context,
                                  options.tokens)
        try:
            times[name].append(turn.result())
        except Exception as error:  # whatever a contender raises, or how it ends
            raise UserError(f'{name} failed: {first_line(error)}') from None
    for name, turns in times.items():
        first, each = map(statistics.median, zip(*turns[1:], strict=True))  # [0] warms up
        print(f'| {batch} | {context} | {name} | {1000 * first:.0f} | {batch / each:,.1f} |',
              flush=True)


def take_sampling_turn(name, size, dtype, against, batch, context, tokens):
    """(seconds to the first token, seconds for each that follows), in the contender's process."""
    generate, seconds = contender(name, size, dtype, against, batch), []
    prompt = np.random.default_rng(0).integers(0, SHAPES[size]['vocab_size'], context)
    for count in (1, tokens):
        start = time.perf_counter()
        generate(prompt, batch, count)
        seconds.append(time.perf_counter() - start)
    return seconds[0], max(1e-9, seconds[1] - seconds[0]) / (tokens - 1)


@functools.lru_cache(1)  # one a process
def contender(name, size, dtype, against, batch):
    """The function (prompt (T,), batch, count) that draws as many tokens for each of the batch."""
    keep_memory()
    torch.manual_seed(0)
    return CONTENDERS[name][0](SHAPES[size], dtype, against, batch)


# --- the contenders ------------------------------------------------------------------------------

def our_sampler(shape, dtype, against, batch):
    """folio's, with the network of GPT-2's shape."""
    network = GPT(GPTConfig(**LIKE_GPT2 | shape)).eval()
    network = pack(network, getattr(torch, dtype), batch)

    def generate(prompt, batch, count):
        for token in network.generate(torch.from_numpy(prompt)[None], count, TEMPERATURE, batch,
                                      top_k=TOP_K):
            token.tolist()
    return generate


@torch.no_grad()
def transformers_sampler(shape, dtype, against, batch):
    """transformers' own GPT-2."""
    import transformers
    config = transformers.GPT2Config(
        vocab_size=shape['vocab_size'], n_positions=shape['block_size'], n_embd=shape['n_embd'],
        n_layer=shape['n_layer'], n_head=shape['n_head'], bos_token_id=None, eos_token_id=None)
    network = transformers.GPT2LMHeadModel(config).eval().to(getattr(torch, dtype))

    def generate(prompt, batch, count):
        idx = torch.from_numpy(prompt)[None]
        network.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=count,
                         do_sample=True, temperature=TEMPERATURE, top_k=TOP_K,
                         num_return_sequences=batch, pad_token_id=0)
    return generate


def nanogpt_sampler(shape, dtype, against, batch):
    """That of the model.py in the folder `against`, which prints as it makes a network."""
    path = Path(folio.options.find(against), 'model.py')
    spec = importlib.util.spec_from_file_location('nanogpt', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with contextlib.redirect_stdout(io.StringIO()):
        network = module.GPT(module.GPTConfig(**shape, dropout=0.0, bias=True)).eval()

    def generate(prompt, batch, count):
        idx = torch.from_numpy(prompt).repeat(batch, 1)
        network.generate(idx, count, temperature=TEMPERATURE, top_k=TOP_K)
    return generate


def llama_sampler(shape, dtype, against, batch):
    """llama.cpp's, from a GGUF file; the prompt is read once and its memory shared."""
    import llama_cpp
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'random.gguf')
        write_gguf(path, shape, dtype)
        silent = llama_cpp.llama_log_callback(lambda *arguments: None)
        llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
        network = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params())
    return functools.partial(llama_generate, llama_cpp, network, silent)


def llama_generate(library, network, silent, prompt, batch, count):
    """Draw through llama.cpp; silent: its logger, which has to stay alive."""
    settings = library.llama_context_default_params()
    settings.n_ctx, settings.n_seq_max = len(prompt) + batch * count, batch
    settings.kv_unified = True  # one memory for all rows
    settings.n_batch = max(len(prompt), batch)
    settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
    context = library.llama_init_from_model(network, settings)
    drawing = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
    for part in (library.llama_sampler_init_top_k(TOP_K),
                 library.llama_sampler_init_temp(TEMPERATURE), library.llama_sampler_init_dist(0)):
        library.llama_sampler_chain_add(drawing, part)
    llama_decode(library, context, prompt.tolist(), range(len(prompt)), [0] * len(prompt))
    tokens = [library.llama_sampler_sample(drawing, context, -1) for _ in range(batch)]
    for row in range(1, batch):
        library.llama_memory_seq_cp(library.llama_get_memory(context), 0, row, -1, -1)
    for place in range(len(prompt), len(prompt) + count - 1):
        llama_decode(library, context, tokens, [place] * batch, range(batch))
        tokens = [library.llama_sampler_sample(drawing, context, row) for row in range(batch)]
    library.llama_sampler_free(drawing)
    library.llama_free(context)


def llama_decode(library, context, tokens, places, rows):
    """Have llama.cpp read tokens; it gives the logits of the last one of each row."""
    batch = library.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, (token, place, row) in enumerate(zip(tokens, places, rows, strict=True)):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, place, 1, row
        batch.logits[i] = i == len(tokens) - 1 or len(set(rows)) > 1
    failed = library.llama_decode(context, batch)
    library.llama_batch_free(batch)
    assert not failed, f'llama_decode returns {failed}'


def write_gguf(path, shape, dtype):
    """A GGUF file with the network of GPT-2's shape, without a tokenizer."""
    import gguf
    writer, C = gguf.GGUFWriter(path, 'gpt2'), shape['n_embd']
    writer.add_tokenizer_model('no_vocab')
    writer.add_vocab_size(shape['vocab_size'])
    writer.add_context_length(shape['block_size'])
    writer.add_embedding_length(C)
    writer.add_feed_forward_length(4 * C)
    writer.add_block_count(shape['n_layer'])
    writer.add_head_count(shape['n_head'])
    writer.add_layer_norm_eps(1e-5)
    kind = {'float32': 'F32', 'bfloat16': 'BF16', 'int8': 'Q8_0'}[dtype]
    kind, random = gguf.GGMLQuantizationType[kind], np.random.default_rng(0)
    for name, *size in gguf_tensors(shape):
        array = (0.02 * random.standard_normal(size)).astype(np.float32)
        if len(size) == 1 or name == 'position_embd.weight':
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors(shape):
    """[(name, *size)] of GPT-2's tensors in a GGUF file."""
    C = shape['n_embd']
    tensors = [('token_embd.weight', shape['vocab_size'], C), ('output_norm.weight', C),
               ('position_embd.weight', shape['block_size'], C), ('output_norm.bias', C)]
    for layer in range(shape['n_layer']):
        for name, *size in (('attn_norm', C), ('ffn_norm', C), ('attn_qkv', 3 * C, C),
                            ('attn_output', C, C), ('ffn_up', 4 * C, C), ('ffn_down', C, 4 * C)):
            tensors += [(f'blk.{layer}.{name}.weight', *size),
                        (f'blk.{layer}.{name}.bias', size[0])]
    return tensors


CONTENDERS = {  # by name: what makes it, the module it needs, the number formats it has
    'folio': (our_sampler, 'torch', ('float32', 'bfloat16', 'int8')),
    'transformers': (transformers_sampler, 'transformers', ('float32', 'bfloat16')),
    'llama.cpp': (llama_sampler, 'llama_cpp', ('float32', 'bfloat16', 'int8')),
    'nanoGPT': (nanogpt_sampler, 'torch', ('float32',)),
}


if __name__ == '__main__':
    cli.run(main)
