"""Rows for a training pass, in which the responses to one prompt share it.

A group of responses repeats its prompt. A shared row holds the prompt once and behind it the responses, each of which
attends to the prompt and to itself and has the positions that it would have alone: what the model computes for a token
is the same, over fewer tokens.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from trinity_rec.tinker_local.logprobs import pad

# Attention within a shared row is computed in full, also between responses, where it is masked. So a row is short,
# and shared only where that leaves out at least a quarter of its tokens.
SHARED_ROW_TOKENS = 512
WORTH_SHARING = 1 / 4


@dataclass(frozen=True)
class Row:
    """Sequences that share their first `shared` tokens; one alone shares none.

    Attributes:
        members: indices of the sequences in their batch.
        length: tokens of the row.
    """

    members: tuple[int, ...]
    shared: int
    length: int


@dataclass(frozen=True)
class Layout:
    """What a pass over some rows takes.

    Attributes:
        ids: int64 [rows, width], padded on the right.
        positions: int64 [rows, width], and
        mask: bool [rows, 1, width, width], True where a token (third index) attends; both None if nothing is shared.
        places: for each member of the rows, in order, where its tokens are in the flattened ids: int64 [length].
    """

    ids: Tensor
    positions: Tensor | None
    mask: Tensor | None
    places: list[Tensor]

    @property
    def inputs(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What `hidden_states` takes after the model."""
        return self.ids, self.positions, self.mask


def rows_of(sequences: list[Tensor], prompts: list[int]) -> list[Row]:
    """Put sequences that begin with the same prompt into shared rows.

    Args:
        sequences: token ids, each [length].
        prompts: how many tokens of each are its prompt; 0 shares nothing.
    """
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for index, (tokens, prompt) in enumerate(zip(sequences, prompts, strict=True)):
        groups[tokens[:prompt].numpy().tobytes() if prompt else index].append(index)
    rows = []
    for group in groups.values():
        prompt = prompts[group[0]]
        for members in _filled(group, [len(tokens) - prompt for tokens in sequences], SHARED_ROW_TOKENS - prompt):
            alone = [len(sequences[member]) for member in members]
            saved = (len(members) - 1) * prompt
            if saved and saved >= WORTH_SHARING * sum(alone):
                rows.append(Row(tuple(members), prompt, sum(alone) - saved))
            else:
                rows += [Row((member,), 0, length) for member, length in zip(members, alone, strict=True)]
    return rows


def passes(rows: list[Row], limit: int) -> list[list[Row]]:
    """Rows of like length together, so that little of a pass is padding, of `limit` padded tokens at most where more
    than one row is in it; shared rows apart, as they need a mask.
    """
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: (row.shared > 0, row.length)):
        last = groups[-1] if groups else []
        if not last or (last[0].shared > 0) != (row.shared > 0) or (len(last) + 1) * row.length > limit:
            groups.append([])
        groups[-1].append(row)
    return groups


def lay_out(sequences: list[Tensor], rows: list[Row]) -> Layout:
    """Token ids, and where something is shared positions and mask, of a pass over `rows`."""
    width = max(row.length for row in rows)
    contents, positions, segments, places = [], [], [], []
    for number, row in enumerate(rows):
        # Segment 0 is the prompt, n the n-th response, -1 the padding.
        content, position = [sequences[row.members[0]][: row.shared]], [torch.arange(row.shared)]
        segment = [torch.zeros(row.shared, dtype=torch.long)]
        start = row.shared
        for response, member in enumerate(row.members, 1):
            own = sequences[member][row.shared :]
            content.append(own)
            position.append(row.shared + torch.arange(len(own)))
            segment.append(torch.full((len(own),), response))
            columns = torch.cat([torch.arange(row.shared), start + torch.arange(len(own))])
            places.append(number * width + columns)
            start += len(own)
        contents.append(torch.cat(content))
        positions.append(torch.cat(position))
        segments.append(torch.cat(segment))
    ids = pad(contents)
    if not any(row.shared for row in rows):
        return Layout(ids, None, None, places)
    segment = pad(segments, -1)
    seen = (segment[:, None, :] == segment[:, :, None]) | (segment[:, None, :] == 0)
    return Layout(ids, pad(positions), seen.tril()[:, None], places)


def _filled(members: list[int], sizes: list[int], room: int) -> Iterable[list[int]]:
    """The members in order, in lists whose sizes add up to `room` at most; one that is too large is alone."""
    filled: list[int] = []
    taken = 0
    for member in members:
        if filled and taken + sizes[member] > room:
            yield filled
            filled, taken = [], 0
        filled.append(member)
        taken += sizes[member]
    yield filled
