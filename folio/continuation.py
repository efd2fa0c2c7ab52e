"""The text of a sample, from one token id after another.

    text = Continuation(tokenizer, prompt_ids, stop='\\n')
    text.add(token)
    print(text.take(), end='')  # what is new
"""

import itertools

COLOURS = ((0.5, 34), (0.1, 142), (0.01, 208), (0.0, 160))  # by the least probability
ENDS = ('<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>')  # special tokens after a text


class Continuation:
    """The text of one sample as its tokens come; it ends before the stop text or an end token.
    With colours it tells how likely its tokens were."""

    def __init__(self, tokenizer, prompt_ids, stop, coloured=False):
        self.decode, self.stop, self.coloured = tokenizer.stream(prompt_ids), stop, coloured
        self.ends = [tokenizer.special[name] for name in ENDS if name in tokenizer.special]
        self.text, self.colours, self.taken, self.ended = '', [], 0, False

    def add(self, token, probs=None):
        """Take the next id; probs: those of all ids, (V,), for colours."""
        if token in self.ends:
            self.ended = True
            return
        new = self.decode(token)
        self.text += new
        if self.coloured:
            self.colours += [colour(probs[token].item())] * len(new)
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
        new = self.text[before:self.taken]
        return paint(new, self.colours[before:self.taken]) if self.coloured else new

    def rest(self):
        """What is left when no more ids come."""
        self.ended = True
        return self.take()


class Table(Continuation):
    """A line for each token of one sample: how likely it was, and the likeliest instead of it."""

    def __init__(self, tokenizer, prompt_ids, stop, top):
        super().__init__(tokenizer, prompt_ids, stop)
        self.tokenizer, self.top, self.lines = tokenizer, top, '\n'

    def add(self, token, probs):
        super().add(token)
        best, ids = probs.topk(min(self.top, len(probs)))
        pairs = zip([probs[token].item(), *best.tolist()], [token, *ids.tolist()], strict=True)
        self.lines += '  '.join(f'{p:6.1%} {self.tokenizer.decode([i])!r:12}'
                                for p, i in pairs).rstrip() + '\n'

    def take(self):
        lines, self.lines = self.lines, ''
        return lines


def colour(prob):
    """The number of a terminal's colour: green for what was likely, red for a surprise."""
    return next(number for least, number in COLOURS if prob >= least)


def paint(text, colours):
    """The text in the colours of its characters."""
    runs = itertools.groupby(zip(text, colours, strict=True), key=lambda pair: pair[1])
    return ''.join(f'\033[38;5;{number}m{"".join(char for char, _ in run)}\033[0m'
                   for number, run in runs)
