"""LAMBADA (Paperno et al. 2016, arXiv:1606.06031): the last word of a passage, as GPT-2 was tested.

    numbers = lambada(model, tokenizer, 'lambada_test.jsonl', None, machine)

A model that has read the passage up to its last word says that word if each of its tokens is the
likeliest. No token stands before the passage.
"""

import torch
from torch.nn.utils.rnn import pad_sequence

from folio.cli import UserError, progress_bar
from folio.options import find
from folio.texts import read_json_lines
from prepare import recipe_files
from tools.measure import perplexity, score
from train import sequences_at_once


def lambada(model, tokenizer, path, context, machine):
    """How often, and how surely, the model says the last words of a file of passages (None: the
    recipe's), a dict; one longer than `context` tokens (None: the model's) is cut on the left."""
    if not path:  # rank 0 fetches the recipe's, if it is not there
        path = (machine.on_rank_0(recipe_files, 'lambada') or recipe_files('lambada'))[0]
    context = context or model.config.block_size
    whole = machine.together(list, read_passages(path, tokenizer, context))
    if not whole:
        raise UserError(f'{path} has no passages')
    passages = [(ids[-context - 1:], count) for ids, count in whole]
    cut = sum(len(ids) > context + 1 for ids, _ in whole)
    if cut:
        print(f'{cut:,} passages are longer than {context:,} tokens, and are cut on the left')
    nats, right = (say_last_words(passages, model, machine) / len(passages)).tolist()
    return {'accuracy': right, 'perplexity': perplexity(nats), 'passages': len(passages),
            'cut': cut, 'tokens': sum(len(ids) - 1 for ids, _ in passages)}


def read_passages(path, tokenizer, context):
    """(ids, count) for each line of a file of JSON objects with a `text`, whose last word, with the
    space before it, is the last `count` ids."""
    for number, text in enumerate(read_json_lines(find(path), 'text'), 1):
        before = text.rpartition(' ')[0]
        try:
            ids = torch.from_numpy(tokenizer.encode(text).astype('int64'))
            count = len(ids) - len(tokenizer.encode(before))
        except UserError as error:
            raise UserError(f'{path}, passage {number}: {error}') from None
        if not before or not 0 < count <= context:
            raise UserError(f'{path}, passage {number}: its last word has no word before it, or '
                            f'fills the context of {context} tokens')
        yield ids, count


def say_last_words(passages, model, machine):
    """(2,): the nats of all last words, and how many are right, over all processes."""
    sums = torch.zeros(2, dtype=torch.float64)
    batches = list(by_length(passages, model.config.vocab_size))
    with progress_bar(machine.rank == 0, total=len(passages), unit=' passages') as bar:
        for batch in batches[machine.rank::machine.world]:
            sums += last_words(batch, model, machine)
            bar.update(min(len(batch) * machine.world, bar.total - bar.n))
    return machine.sum(sums)


def by_length(passages, vocab_size):
    """Lists of passages for one pass each, the longest first, so that little is padding."""
    passages = sorted(passages, key=lambda passage: len(passage[0]), reverse=True)
    while passages:
        size = sequences_at_once(len(passages[0][0]), vocab_size)
        yield passages[:size]
        passages = passages[size:]


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
