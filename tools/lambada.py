"""LAMBADA (Paperno et al. 2016, arXiv:1606.06031): the last word of a passage, as GPT-2 was tested.

    numbers = lambada(model, tokenizer, 'lambada_test.jsonl', None, machine)

A model that has read the passage up to its last word says that word if each of its tokens is the
likeliest. No token stands before the passage.
"""

import json

import numpy as np
import torch

import prepare
from folio.cli import UserError, progress_bar
from tools.measure import perplexity, read_text, score, sequences_at_once


def lambada(model, tokenizer, path, context, machine):
    """How often, and how surely, the model says the last words of a file of passages (None: the
    recipe's), a dict; one longer than `context` tokens (None: the model's) is cut on the left."""
    path = path or machine.on_rank_0(recipe_file) or recipe_file()
    context = context or model.config.block_size
    whole = list(read_passages(path, tokenizer, context))
    passages = [(ids[-context - 1:], count) for ids, count in whole]
    cut = sum(len(a) > len(b) for (a, _), (b, _) in zip(whole, passages, strict=True))
    if cut:
        print(f'{cut:,} passages are longer than {context:,} tokens, and are cut on the left')
    batches = list(by_length([len(ids) - 1 for ids, _ in passages], model.config.vocab_size))
    nats, right = (say_last_words(passages, batches, model, machine) / len(passages)).tolist()
    real = sum(len(ids) - 1 for ids, _ in passages)
    padded = sum(len(batch) * (len(passages[batch[-1]][0]) - 1) for batch in batches)
    return {'accuracy': right, 'perplexity': perplexity(nats),
            'passages': len(passages), 'cut': cut, 'tokens': real, 'padding': 1 - real / padded}


def recipe_file():
    """The raw file of data/lambada.py, fetched first if it is not there."""
    return prepare.recipe_files('lambada')[0]


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
        if not before or len(target) > context:
            raise UserError(f'{where}: ' + ('no word stands before the last' if not before else
                            f'the last word alone fills the context of {context} tokens'))
        yield np.concatenate((first, target)).astype(np.int64), len(target)


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
    if batch:
        yield batch


@torch.no_grad()
def last_words(passages, model, machine):
    """(2,): the nats of the passages' last words, and how many words are all greedy choices."""
    T = max(len(ids) for ids, _ in passages) - 1
    x, y = torch.zeros(2, len(passages), T, dtype=torch.int64)
    y -= 1  # what is not to be predicted
    for row, (ids, count) in enumerate(passages):
        ids = torch.from_numpy(ids)
        x[row, :len(ids) - 1] = ids[:-1]
        y[row, len(ids) - 1 - count:len(ids) - 1] = ids[-count:]
    with machine.autocast():
        logits = model.forward(x.to(machine.device))[(y >= 0).to(machine.device)]
    nats, ranks = score(logits, y[y >= 0].to(machine.device))
    missed = torch.zeros(len(y)).index_add_(0, (y >= 0).nonzero()[:, 0], (ranks > 0).float())
    return torch.stack((nats.sum(), (missed == 0).sum()))
