"""Text out of a checkpoint, token by token.

    python sample.py out/shakespeare_char --start="ROMEO:"
    python sample.py out/stdlib --start=FILE:prompt.txt --num_samples=3 --temperature=0.5
    python sample.py out/stdlib --interactive --show=probs
"""

from folio import cli  # first of all, for then an interrupt while torch is loaded is quiet

# isort: split
import contextlib
import itertools
import os
import re
import sys
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch

from folio import checkpoint, texts
from folio.cli import UserError
from folio.continuation import Continuation, Table
from folio.machine import choose_device, choose_dtype, out_of_memory
from folio.options import InPath, OutPath, Text, find, parse
from folio.packed import pack
from folio.speed import fastest_format
from folio.tokenizer import Tokenizer
from model import from_checkpoint

LONGEST = 1 << 24  # bytes of a prompt


@dataclass
class SampleConfig:
    """What to sample from, and how."""
    out_dir: InPath = 'out/stdlib'  # a run's folder (best.pt, else ckpt.pt) or a checkpoint file
    start: Text | None = None  # the prompt; FILE:prompt.txt reads a file, - the standard input
    interactive: bool = False  # ask for one prompt after another
    escape: bool = False  # read \n, \t and \\ in start, as in stop
    num_samples: Annotated[int, '>= 1', '<= 65536'] = 1  # one streams, several come whole
    max_new_tokens: Annotated[int, '>= 0'] = 500  # the most in each
    temperature: Annotated[float, '>= 0'] = 0.8  # below 1 likely gets likelier; 0: likeliest
    top_k: Annotated[int | None, '>= 1'] = None  # draw from the k likeliest tokens only
    top_p: Annotated[float | None, '> 0', '<= 1'] = None  # from the fewest with this probability
    min_p: Annotated[float | None, '> 0', '<= 1'] = None  # from those p times as likely as the top
    repetition_penalty: Annotated[float, '>= 0.01', '<= 100'] = 1.0  # above 1: fewer repetitions
    stop: Text | None = None  # end before this text, in which \n is a newline, \t a tab
    out: OutPath | None = None  # a file that the text goes to, in place of the terminal
    show: Literal['text', 'probs'] = 'text'  # probs: colours, or a list, of how likely tokens were
    top: Annotated[int, '>= 0'] = 0  # show=probs as a list, each token beside this many likeliest
    seed: Annotated[int, '>= 0', '<= 9e18'] = 1337  # the same seed, the same text
    device: str = 'auto'  # cpu, cuda, cuda:1, mps; auto: the fastest there is
    dtype: Literal['auto', 'float32', 'bfloat16', 'float16', 'int8'] = 'auto'  # int8: on a CPU


def main(argv):
    """Print the samples that the options in argv ask for."""
    options, _ = parse(SampleConfig, argv, bare='out_dir')
    options.show = 'probs' if options.top else options.show
    state = checkpoint.load(options.out_dir)
    if state['tokenizer'] is None:
        raise UserError(f'{options.out_dir} has no tokenizer, so its tokens have no text')
    device = choose_device(options.device)
    prompt = read_prompt(options)
    with checkpoint.damaged(options.out_dir), out_of_memory(options):
        model, tokenizer = from_checkpoint(state), Tokenizer(state['tokenizer'])
    with out_of_memory(options):
        place(model, options, device)
    with open_out(options.out) as out:
        if prompt or not options.interactive:
            write(model, tokenizer, prompt, options, out)
        if options.interactive:
            converse(model, tokenizer, options, out)


def open_out(path):
    """A context with the file that the text goes to, or the standard output without one."""
    if path is None:
        return contextlib.nullcontext(sys.stdout)
    return open(os.path.expanduser(path), 'w', encoding='utf-8')


def place(model, options, device):
    """Bring the model to its device, into the number format of the options; on a CPU 'auto' is the
    one that it reads faster."""
    if device.type != 'cpu':
        if options.dtype == 'int8':
            raise UserError(f'dtype=int8 works on a CPU only, not on {device}')
        model.to(device, choose_dtype(options.dtype, device, None))
        return
    fastest = None
    if options.dtype == 'auto':
        fastest = fastest_format(options.num_samples, model.config.n_embd, model.config.n_layer)
    pack(model, choose_dtype(options.dtype, device, fastest), options.num_samples)


def converse(model, tokenizer, options, out):
    """Continue one prompt after another; an interrupt ends a text, the end of the input all."""
    print('Ctrl-C ends a text, Ctrl-D the program', file=sys.stderr)
    for count in itertools.count():
        try:
            watched = sys.stdin.isatty() and sys.stdout.isatty()
            prompt = typed(input('> ' if watched else ''), options.escape)
            write(model, tokenizer, prompt, replace(options, seed=options.seed + count), out)
        except EOFError:
            return
        except KeyboardInterrupt:
            print(file=out)
        except (UserError, UnicodeError) as error:
            print(f'error: {error}', file=sys.stderr)


def write(model, tokenizer, prompt, options, out):
    """Write the prompt and its samples into a file."""
    with checkpoint.damaged(options.out_dir):
        ids = tokenizer.encode(prompt)
    ids = ids if len(ids) else [tokenizer.start]
    if len(ids) > model.config.block_size:
        print(f'the prompt has {len(ids):,} tokens; the model sees the last '
              f'{model.config.block_size:,}', file=sys.stderr)
    samples = [make_text(tokenizer, ids, options, out) for _ in range(options.num_samples)]
    running = [True] * len(samples)
    steps = drawn(model, ids, options, tokenizer, running)
    if len(samples) == 1:
        stream(steps, prompt, samples[0], out)
    else:
        print_all(steps, prompt, samples, running, out)


def make_text(tokenizer, ids, options, out):
    """What takes the tokens of a sample, as the options want them to be shown."""
    stop, probs = unescape(options.stop or ''), options.show == 'probs'
    coloured = probs and out.isatty() and not os.environ.get('NO_COLOR')
    if probs and (options.top or not coloured):
        return Table(tokenizer, ids, stop, options.top)
    return Continuation(tokenizer, ids, stop, coloured)


def unescape(text):
    r"""The text with a newline for \n, a tab for \t and a backslash for \\."""
    meant = {'n': '\n', 't': '\t', '\\': '\\'}
    return re.sub(r'\\([nt\\])', lambda found: meant[found[1]], text)


def read_prompt(options):
    """The text of the option `start`; '' without one. UserError if it can't be read."""
    start = options.start or ''
    try:
        if start == '-':
            return text_of(sys.stdin.buffer)
        if start.startswith('FILE:'):
            with open(find(start[5:]), 'rb') as file:
                return text_of(file)
        return typed(start, options.escape)
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or no name of a file
        reason = getattr(error, 'strerror', None) or error  # without the path
        raise UserError(f'--start={start!r:.80}: {reason}') from None


def typed(text, escape):
    """A prompt as it was typed; UnicodeError if it is no UTF-8."""
    text = unescape(text) if escape else text
    return text.encode(errors='surrogateescape').decode()


def text_of(file):
    """The text of an open file, which may have no end."""
    data = file.read(LONGEST + 1)
    if len(data) > LONGEST:
        raise ValueError(f'a prompt has {LONGEST:,} bytes at most')
    return texts.plain(data, 'the prompt')


def drawn(model, ids, options, tokenizer, running):
    """[(id, probabilities of all ids, or None if they aren't shown), ...] for each step, of the
    samples that run, as in GPT.generate. UserError for logits that are no numbers."""
    idx = torch.tensor(ids, dtype=torch.int64, device=model.wte.weight.device)[None]
    vocab_size = min(tokenizer.vocab_size, model.config.vocab_size)
    trace = [] if options.show == 'probs' else None
    with checkpoint.damaged(options.out_dir), out_of_memory(options):
        for tokens in model.generate(
                idx, options.max_new_tokens, options.temperature, options.num_samples,
                options.seed, vocab_size, running, trace, top_k=options.top_k,
                top_p=options.top_p, min_p=options.min_p,
                repetition_penalty=options.repetition_penalty):
            new = [i for i in tokens.tolist() if i >= 0]
            if max(new) >= vocab_size:
                raise ValueError('its logits are no numbers')
            probs = trace.pop().softmax(dim=-1) if trace else [None] * len(new)
            yield list(zip(new, probs, strict=True))


def stream(steps, prompt, text, out):
    """Write the prompt and one sample, each token as it comes."""
    print(prompt, end='', file=out, flush=True)
    for [(token, probs)] in steps:
        text.add(token, probs)
        print(text.take(), end='', file=out, flush=True)
        if text.ended:
            break
    print(text.rest(), file=out)


def print_all(steps, prompt, texts, running, out):
    """Write the samples of a batch, each as it ends; running: a list that is told so."""
    for step in steps:
        alive = [text for text in texts if not text.ended]
        for text, (token, probs) in zip(alive, step, strict=True):
            text.add(token, probs)
            if text.ended:
                print(prompt + text.rest(), end='\n---\n', file=out, flush=True)
        running[:] = [not text.ended for text in texts]
    for text in texts:
        if not text.ended:
            print(prompt + text.rest(), end='\n---\n', file=out)


if __name__ == '__main__':
    cli.run(main)
