"""LAMBADA (Paperno et al. 2016, arXiv:1606.06031): the last word of a passage, as GPT-2 was tested.

    numbers = lambada(model, tokenizer, 'lambada_test.jsonl', 1024, machine)

A model that has read the passage up to its last word says that word if each of its tokens is the
likeliest. No token stands before the passage.
"""

import numpy as np
import torch

from folio.cli import UserError
from folio.options import find
from folio.texts import read_json_lines
from prepare import recipe_files
from tools.measure import TextTokens, measure


def lambada(model, tokenizer, path, context, machine):
    """How often, and how surely, the model says the last words of a file of passages (None: the
    recipe's), a dict; one longer than `context` tokens is cut on the left."""
    if not path:  # rank 0 fetches the recipe's, if it is not there
        path = (machine.on_rank_0(recipe_files, 'lambada') or recipe_files('lambada'))[0]
    whole = machine.together(list, read_passages(path, tokenizer, context))
    if not whole:
        raise UserError(f'{path} has no passages')
    cut = sum(len(ids) > context + 1 for ids, _ in whole)
    if cut:
        print(f'{cut:,} passages are longer than {context:,} tokens, and are cut on the left')
    passages = [(ids[-context - 1:], count) for ids, count in whole]
    nats, right = say_last_words(passages, model, machine)
    return {'accuracy': right.mean().item(), 'perplexity': nats.mean().exp().item(),
            'passages': len(passages), 'cut': cut,
            'tokens': sum(len(ids) - 1 for ids, _ in passages)}


def say_last_words(passages, model, machine):
    """(nats, whether it is right) of each last word of passages, (ids, count); two (N,)."""
    passages.sort(key=lambda passage: (len(passage[0]), passage[1]))  # those alike go together
    lengths = np.array([len(ids) for ids, _ in passages])
    counts = np.array([count for _, count in passages])
    tokens = TextTokens(np.concatenate([ids for ids, _ in passages]))
    groups = torch.from_numpy(np.arange(len(passages)).repeat(lengths))
    windows = lengths.cumsum() - lengths, lengths - 1, counts  # each passage is one
    nats, words, _, right, _ = measure(model, tokens, machine, windows, groups=groups).T
    return nats, (right == words).double()


def read_passages(path, tokenizer, context):
    """(ids, count) for each line of a file of JSON objects with a `text`, whose last word, with the
    space before it, is the last `count` ids."""
    for number, text in enumerate(read_json_lines(find(path), 'text'), 1):
        before = text.rpartition(' ')[0]
        try:
            ids = tokenizer.encode(text)
            count = len(ids) - len(tokenizer.encode(before))
        except UserError as error:
            raise UserError(f'{path}, passage {number}: {error}') from None
        if not before or not 0 < count <= context:
            raise UserError(f'{path}, passage {number}: its last word has no word before it, or '
                            f'fills the context of {context} tokens')
        yield ids, count
