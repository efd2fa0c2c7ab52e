"""Text out of a checkpoint, token by token.

    python sample.py out/shakespeare_char --start="ROMEO:"
    python sample.py out/stdlib --start=FILE:prompt.txt --num_samples=3 --temperature=0.5
"""

from folio import cli  # first of all, for then an interrupt while torch is loaded is quiet

# isort: split
import re
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from folio import checkpoint, texts
from folio.cli import UserError
from folio.machine import choose_device, choose_dtype, out_of_memory
from folio.options import InPath, Text, find, parse
from folio.speed import fastest_format
from folio.tokenizer import Tokenizer
from model import from_checkpoint

LONGEST = 1 << 24  # bytes of a prompt
ENDS = ('<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>')  # special tokens after a text


@dataclass
class SampleConfig:
    """What to sample from, and how."""
    out_dir: InPath = 'out/stdlib'  # a run's folder (best.pt, else ckpt.pt) or a checkpoint file
    start: Text | None = None  # the prompt; FILE:prompt.txt reads a file, - the standard input
    escape: bool = False  # read \n, \t and \\ in start, as in stop
    num_samples: Annotated[int, '>= 1', '<= 65536'] = 1  # one streams, several come whole
    max_new_tokens: Annotated[int, '>= 0'] = 500  # the length of each
    temperature: Annotated[float, '>= 0'] = 0.8  # below 1 likely gets likelier; 0: likeliest
    top_k: Annotated[int | None, '>= 1'] = None  # draw from the k likeliest tokens only
    top_p: Annotated[float | None, '> 0', '<= 1'] = None  # from the fewest with this probability
    min_p: Annotated[float | None, '> 0', '<= 1'] = None  # from those p times as likely as the top
    repetition_penalty: Annotated[float, '> 0'] = 1.0  # above 1, tokens seen before get rarer
    stop: Text | None = None  # end before this text, in which \n is a newline, \t a tab
    seed: Annotated[int, '>= 0', '<= 9e18'] = 1337  # the same seed, the same text
    device: str = 'auto'  # cpu, cuda, cuda:1, mps; auto: the fastest there is
    dtype: Literal['auto', 'float32', 'bfloat16', 'float16'] = 'auto'  # of weights and activations


class Continuation:
    """The text of one sample as its tokens come; it ends before the stop text or an end token."""

    def __init__(self, tokenizer, prompt_ids, stop):
        self.decode, self.stop = tokenizer.stream(prompt_ids), stop
        self.ends = [tokenizer.special[name] for name in ENDS if name in tokenizer.special]
        self.text, self.taken, self.ended = '', 0, False

    def add(self, token):
        """Take the next id."""
        if token in self.ends:
            self.ended = True
            return
        self.text += self.decode(token)
        end = self.text.find(self.stop, self.taken) if self.stop else -1
        if end >= 0:
            self.text, self.ended = self.text[:end], True

    def take(self):
        """What is new and certain: not an end that may yet become the stop text."""
        held = 0
        if self.stop and not self.ended:
            new = self.text[self.taken:]
            held = next(n for n in range(min(len(new), len(self.stop) - 1), -1, -1)
                        if new.endswith(self.stop[:n]))
        before, self.taken = self.taken, len(self.text) - held
        return self.text[before:self.taken]

    def rest(self):
        """What is left when no more ids come."""
        self.ended = True
        return self.take()


def main(argv):
    """Print the samples that the options in argv ask for."""
    options, _ = parse(SampleConfig, argv, bare='out_dir')
    state = checkpoint.load(options.out_dir)
    if state['tokenizer'] is None:
        raise UserError(f'{options.out_dir} has no tokenizer, so its tokens have no text')
    device = choose_device(options.device)
    prompt = read_prompt(options)
    with checkpoint.damaged(options.out_dir), out_of_memory(options):
        model, tokenizer = from_checkpoint(state), Tokenizer(state['tokenizer'])
        model = model.to(device, sampling_dtype(options, model.config, device))
        ids = tokenizer.encode(prompt)
    ids = ids if len(ids) else [tokenizer.start]
    if len(ids) > model.config.block_size:
        print(f'the prompt has {len(ids):,} tokens; the model sees the last '
              f'{model.config.block_size:,}', file=sys.stderr)
    idx = torch.tensor(ids, dtype=torch.int64, device=device)[None]
    stop = unescape(options.stop or '')
    texts = [Continuation(tokenizer, ids, stop) for _ in range(options.num_samples)]
    running = [True] * len(texts)
    tokens = drawn(model, idx, options, tokenizer, running)
    if len(texts) == 1:
        stream(tokens, prompt, texts[0])
    else:
        print_all(tokens, prompt, texts, running)


def unescape(text):
    r"""The text with a newline for \n, a tab for \t and a backslash for \\."""
    meant = {'n': '\n', 't': '\t', '\\': '\\'}
    return re.sub(r'\\([nt\\])', lambda found: meant[found[1]], text)


def sampling_dtype(options, config, device):
    """The torch.dtype of the weights; a CPU is asked which it reads the faster."""
    fastest = None
    if device.type == 'cpu' and options.dtype == 'auto':
        fastest = fastest_format(options.num_samples, config.n_embd, config.n_layer)
    return choose_dtype(options.dtype, device, fastest)


def read_prompt(options):
    """The text of the option `start`; '' without one. UserError if it can't be read."""
    start = options.start or ''
    try:
        if start == '-':
            return text_of(sys.stdin.buffer)
        if start.startswith('FILE:'):
            with open(find(start[5:]), 'rb') as file:
                return text_of(file)
        start = unescape(start) if options.escape else start
        return start.encode(errors='surrogateescape').decode()
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or no name of a file
        reason = getattr(error, 'strerror', None) or error  # without the path
        raise UserError(f'--start={start!r:.80}: {reason}') from None


def text_of(file):
    """The text of an open file, which may have no end."""
    data = file.read(LONGEST + 1)
    if len(data) > LONGEST:
        raise ValueError(f'a prompt has {LONGEST:,} bytes at most')
    text, replaced = texts.plain(data)
    if replaced:
        print(f'the prompt: {replaced:,} \\r\\n became \\n', file=sys.stderr)
    return text


def drawn(model, idx, options, tokenizer, running):
    """The ids that the model generates, a list a step; UserError where its logits are no numbers.
    running: as in GPT.generate."""
    vocab_size = min(tokenizer.vocab_size, model.config.vocab_size)
    with checkpoint.damaged(options.out_dir), out_of_memory(options):
        for tokens in model.generate(
                idx, options.max_new_tokens, options.temperature, options.num_samples,
                options.seed, vocab_size, running, top_k=options.top_k, top_p=options.top_p,
                min_p=options.min_p, repetition_penalty=options.repetition_penalty):
            ids = tokens.tolist()
            if max(ids) >= vocab_size:
                raise ValueError('its logits are no numbers')
            yield ids


def stream(tokens, prompt, text):
    """Print the prompt and one sample, each token as it comes."""
    print(prompt, end='', flush=True)
    for ids in tokens:
        text.add(ids[0])
        print(text.take(), end='', flush=True)
        if text.ended:
            break
    print(text.rest())


def print_all(tokens, prompt, texts, running):
    """Print the samples of a batch, each as it ends; running: a list that is told so."""
    for ids in tokens:
        for i, text in enumerate(texts):
            if running[i]:
                text.add(ids[i])
                running[i] = not text.ended
                if text.ended:
                    print(prompt + text.rest(), end='\n---\n', flush=True)
    for text in texts:
        if not text.ended:
            print(prompt + text.rest(), end='\n---\n')


if __name__ == '__main__':
    cli.run(main)
