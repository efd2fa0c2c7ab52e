"""LAMBADA (Paperno et al. 2016, arXiv:1606.06031): the last word of a passage, as GPT-2 was tested.

    numbers = lambada(model, tokenizer, 'lambada_test.jsonl', None, machine)

A model that has read the passage up to its last word says that word if each of its tokens is the
likeliest. No token stands before the passage.
"""

import json

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from folio.cli import UserError, progress_bar
from prepare import recipe_files
from tools.measure import perplexity, read_text, score
from train import sequences_at_once


def lambada(model, tokenizer, path, context, machine):
    """How often, and how surely, the model says the last words of a file of passages (None: the
    recipe's), a dict; one longer than `context` tokens (None: the model's) is cut on the left."""
    if not path:  # rank 0 fetches the recipe's, if it is not there
        path = (machine.on_rank_0(recipe_files, 'lambada') or recipe_files('lambada'))[0]
    context = context or model.config.block_size
    whole = machine.together(list, read_passages(path, tokenizer, context))
    passages = [(ids[-context - 1:], count) for ids, count in whole]
    cut = sum(len(ids) > context + 1 for ids, _ in whole)
    if cut:
        print(f'{cut:,} passages are longer than {context:,} tokens, and are cut on the left')
    lengths = [len(ids) - 1 for ids, _ in passages]
    batches = list(by_length(lengths, model.config.vocab_size))
    nats, right = (say_last_words(passages, batches, model, machine) / len(passages)).tolist()
    padded = sum(len(batch) * lengths[batch[-1]] for batch in batches)
    return {'accuracy': right, 'perplexity': perplexity(nats), 'passages': len(passages),
            'cut': cut, 'tokens': sum(lengths), 'padding': 1 - sum(lengths) / padded}


def say_last_words(passages, batches, model, machine):
    """(2,): the nats of all last words, and how many are right, over all processes. batches: lists
    of indices of passages."""
    sums = torch.zeros(2, dtype=torch.float64)
    with progress_bar(machine.rank == 0, total=len(passages), unit=' passages') as bar:
        for batch in batches[machine.rank::machine.world]:
            sums += last_words([passages[i] for i in batch], model, machine)
            bar.update(min(len(batch) * machine.world, bar.total - bar.n))
    return machine.sum(sums)


def read_passages(path, tokenizer, context):
    """(ids, count) for each line of a file of JSON objects with a `text`, whose last word, with the
    space before it, is the last `count` ids."""
    lines = [(i, line) for i, line in enumerate(read_text(path).split('\n'), 1) if line.strip()]
    if not lines:
        raise UserError(f'{path} has no passages')
    for number, line in lines:
        where = f'{path}, line {number}'
        try:
            before, _, word = json.loads(line)['text'].rpartition(' ')
            first, target = encode_passage(tokenizer, before, word)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f'{where} is no JSON object with a "text"') from None
        except UserError as error:
            raise UserError(f'{where}: {error}') from None
        if not before:
            raise UserError(f'{where}: no word stands before the last')
        if len(target) > context:
            raise UserError(f'{where}: the last word alone fills the context of {context} tokens')
        yield torch.from_numpy(np.concatenate((first, target)).astype(np.int64)), len(target)


def encode_passage(tokenizer, before, word):
    """The ids of the text before the last word, and those of a space and the word."""
    first = tokenizer.encode(before)
    if tokenizer.kind == 'json':  # SentencePiece gives a text of its own one space more
        whole = tokenizer.encode(f'{before} {word}')
        return whole[:len(first)], whole[len(first):]
    return first, tokenizer.encode(f' {word}')


def by_length(lengths, vocab_size):
    """Lists of indices, in order of length, for one pass each; the shortest text of a list has at
    least nine tenths of the longest's tokens, so that less than a tenth is padding."""
    batch = []
    for i in np.argsort(lengths, kind='stable').tolist():
        full = len(batch) >= sequences_at_once(lengths[i], vocab_size)
        if batch and (full or lengths[batch[0]] < 0.9 * lengths[i]):
            yield batch
            batch = []
        batch.append(i)
    yield batch


@torch.no_grad()
def last_words(passages, model, machine):
    """(2,): the nats of the passages' last words, and how many words are all greedy choices."""
    ids = pad_sequence([ids for ids, _ in passages], batch_first=True)  # (B, T + 1)
    asked = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (passage, count) in enumerate(passages):
        asked[row, len(passage) - count:len(passage)] = True
    with machine.autocast():
        logits = model.forward(ids[:, :-1].to(machine.device))[asked[:, 1:].to(machine.device)]
    nats, ranks = score(logits, ids[asked].to(machine.device))
    words = ranks.split([count for _, count in passages])
    return torch.tensor([nats.sum(), sum(not word.any() for word in words)], dtype=torch.float64)
