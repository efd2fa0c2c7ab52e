"""The attention maps of every layer and head of a checkpoint, for a short text.

    python docs/attention_maps.py out/shakespeare_char --text="ROMEO: where is she?"

Each row of a map is a token, and shows how much it takes from each token before it. The maps are
made beside the model's own attention, which knows nothing of it.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import folio.options
import model
from folio import checkpoint, cli
from folio.cli import UserError
from folio.options import InPath, OutPath, Text, parse
from folio.tokenizer import Tokenizer


@dataclass
class MapsConfig:
    """What to look at."""
    out_dir: InPath = 'out/stdlib'  # a run's folder (best.pt, else ckpt.pt) or a checkpoint file
    text: Text = 'def main(argv):'  # what the model reads
    picture: OutPath | None = None  # where the maps are drawn; None: out/attention_maps.png


def main(argv):
    options, _ = parse(MapsConfig, argv, bare='out_dir')
    state = checkpoint.load(options.out_dir)
    network = model.from_checkpoint(state).float()
    if state['tokenizer'] is None:
        raise UserError(f'{options.out_dir} has no tokenizer')
    if not network.config.n_layer:
        raise UserError(f'{options.out_dir} has no attention')
    tokenizer = Tokenizer(state['tokenizer'])
    ids = tokenizer.encode(options.text)
    if not 0 < len(ids) <= network.config.block_size:
        raise UserError(f'--text has {len(ids)} tokens; the model takes 1 to '
                        f'{network.config.block_size}')
    labels = [tokenizer.decode([i]).replace('\n', '⏎').replace(' ', '␣') for i in ids]
    idx = torch.tensor([list(ids)], dtype=torch.int64)
    default = folio.options.ROOT / 'out' / 'attention_maps.png'
    picture = Path(os.path.expanduser(options.picture or default))
    draw_maps(attention_maps(network, idx), labels, picture)
    print(f'{network.config.n_layer} layers of {network.config.n_head} heads: {cli.short(picture)}')


@torch.no_grad()
def attention_maps(network, idx):
    """The weights (T, T) of each layer and head for idx (1, T): a list of tensors (H, T, T)."""
    maps, attend = [], model.attend

    def watched(q, k, v, dropout=0.0):
        shared = q.size(1) // k.size(1)
        scores = q @ k.repeat_interleave(shared, 1).transpose(2, 3) * q.size(-1) ** -0.5
        future = torch.ones(q.size(2), k.size(2), dtype=torch.bool).triu(1)
        maps.append(scores.masked_fill(future, float('-inf')).softmax(dim=-1)[0])
        return attend(q, k, v, dropout)

    with mock.patch.object(model, 'attend', watched):
        network(idx)
    return maps


def draw_maps(maps, labels, picture):
    """Draw the maps, a row for each layer and a column for each head, into a file."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError('no picture: pip install matplotlib') from None
    rows, columns = len(maps), len(maps[0])
    side = max(2.0, 0.11 * len(labels))  # inches
    turned = 90 if max(map(len, labels)) > 1 else 0  # degrees
    figure = Figure(figsize=(columns * side, rows * side), layout='constrained')
    for row, axes in enumerate(figure.subplots(rows, columns, squeeze=False)):
        for column, axis in enumerate(axes):
            axis.imshow(maps[row][column].float().numpy(), cmap='Blues', vmin=0, vmax=1)
            axis.set_title(f'layer {row + 1}, head {column + 1}', fontsize=8)
            axis.set_xticks(range(len(labels)), labels, fontsize=6, rotation=turned)
            axis.set_yticks(range(len(labels)), labels, fontsize=6)
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f'--picture={picture}: {error}') from None


if __name__ == '__main__':
    cli.run(main)
