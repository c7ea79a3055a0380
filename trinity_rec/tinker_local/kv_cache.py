"""A key/value cache with one row a running sequence, each at its own length, which rows may join and leave.

Row r holds its sequence in columns [0, length of r), so neither joining nor leaving moves anybody else's columns:
who joins is copied into free rows, and when somebody leaves the last rows move into the gaps.
"""

import torch
from torch import Tensor
from transformers import Cache, DynamicCache


class RaggedCache(Cache):
    """Keys and values as one tensor [layers, 2, rows, heads, columns, width], grown by doubling.

    Its type is the one that attention computes in: under autocast that rounds keys and values to bfloat16 wherever they
    come from, so that a cache in float32 would be rounded anew, whole, at every token, to the same numbers.

    `rows` is the number of rows in use. Between `write_at` and the model's forward pass over one token a row, the
    cache takes the new keys and values at each row's own column.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(layers=[])
        self.dtype = dtype
        self.rows = 0
        self._data: Tensor | None = None
        self._row_index: Tensor | None = None
        self._columns: Tensor | None = None
        self._width = 0

    def join(self, prefilled: DynamicCache, sources: Tensor) -> None:
        """Append one row for each of `sources`, rows of a cache filled by a right-padded forward pass."""
        layers = [(layer.keys, layer.values) for layer in prefilled.layers]
        columns = layers[0][0].shape[2]
        self._reserve(layers[0][0], len(layers), self.rows + len(sources), columns)
        new = slice(self.rows, self.rows + len(sources))
        for layer, (keys, values) in enumerate(layers):
            self._data[layer, 0, new, :, :columns] = keys[sources]
            self._data[layer, 1, new, :, :columns] = values[sources]
        self.rows += len(sources)

    def keep(self, rows: list[int]) -> list[int]:
        """Keep only some of the rows, given in ascending order.

        Returns:
            The kept rows in their new order: the last ones have moved into the gaps that the others left.
        """
        gaps = sorted(set(range(len(rows))) - set(rows))
        movers = rows[len(rows) - len(gaps) :]
        order = list(range(len(rows)))
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        if gaps:
            self._data[:, :, gaps] = self._data[:, :, movers]
        self.rows = len(rows)
        return order

    def write_at(self, columns: Tensor, width: int) -> Tensor:
        """Set the column [rows] that each row writes next, all below `width`.

        Returns:
            The attention mask bool [rows, 1, 1, width] of that step.
        """
        self._reserve(self._data[0, 0], len(self._data), self.rows, width)
        self._row_index = torch.arange(self.rows, device=columns.device)
        self._columns, self._width = columns, width
        return (torch.arange(width, device=columns.device) <= columns[:, None])[:, None, None, :]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        layer = self._data[layer_idx]
        layer[0, self._row_index, :, self._columns] = key_states[:, :, 0].to(layer.dtype)
        layer[1, self._row_index, :, self._columns] = value_states[:, :, 0].to(layer.dtype)
        return layer[0, : self.rows, :, : self._width], layer[1, : self.rows, :, : self._width]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._width

    def _reserve(self, like: Tensor, layers: int, rows: int, columns: int) -> None:
        """Make room for so many rows and columns; `like` is [_, heads, _, width]."""
        old, columns = self._data, max(columns, self._width)
        if old is None:
            held_rows, held_columns = 0, 0
        else:
            held_rows, held_columns = old.shape[2], old.shape[4]
        if rows <= held_rows and columns <= held_columns:
            return
        # Twice what is needed where it grows; elsewhere at most twice, so that a long batch does not keep the room of
        # an earlier wide one.
        room_rows = 2 * rows if 0 < held_rows < rows else max(rows, min(held_rows, 2 * rows))
        room_columns = 2 * columns if columns > held_columns else min(held_columns, 2 * columns)
        # Zeros, not garbage: a masked column still takes part, as 0 times its value.
        shape = (layers, 2, room_rows, like.shape[1], room_columns, like.shape[3])
        self._data = torch.zeros(shape, dtype=self.dtype, device=like.device)
        if old is not None:
            used = min(held_columns, room_columns)
            self._data[:, :, : self.rows, :, :used] = old[:, :, : self.rows, :, :used]
