"""What a rule may read of some responses, each quantity computed when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from trinity_rec.objective.clip import LARGEST_LOG_RATIO


def total(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The sum over a response's tokens, [rows, 1]."""
    return x.sum(1, True, dtype=dtype)


class Tokens:
    """Some responses of a batch: log-probabilities and advantages, and what follows from them.

    Tensors are [rows, response], one number a token, or [rows, 1], one number a response, in at least float32. On
    padding log rho, A and log pi are 0 (so rho, pi and mu are 1), whatever the batch holds there.

    Attributes:
        rows: which responses of the batch these are.
        mask: 1 on the tokens that count, 0 on padding, [rows, response].
        logprob: log pi_theta of the sampled tokens, [rows, response].
        raw_logprob: the same with what the batch holds on padding, for what is masked later, [rows, response].
        old_logprob: log mu of the same tokens, mu being the policy that sampled them, [rows, response].
        log_ratio: log rho = log pi_theta - log mu, [rows, response].
        count: |y|, the tokens that count in the loss, [rows, 1].
    """

    def __init__(
        self, logprob: Tensor, old_logprob: Tensor, mask: Tensor, advantages: Tensor, *, rows: slice = slice(None)
    ) -> None:
        """Args: as in `Objective.__call__`, [rows, response] each; a boolean mask, finite numbers on padding."""
        self.rows = rows
        exact = Tensor.double if logprob.dtype == torch.float64 else Tensor.float  # half as dear as `to(dtype)`
        # A product with the mask takes a twentieth of a `where` on a CPU; a view of bytes, a fifth of reading bool.
        self.mask = exact(mask.view(torch.int8))
        self.raw_logprob, self._old_logprob = exact(logprob), exact(old_logprob)
        self.log_ratio = (self.raw_logprob - self._old_logprob).mul_(self.mask)
        self._advantages, self._exact = advantages, exact
        self.count = total(self.mask)

    @cached_property
    def sum_log_ratio(self) -> Tensor:
        """log W = sum_t log rho, [rows, 1]."""
        return total(self.log_ratio)

    @cached_property
    def advantages(self) -> Tensor:
        """A, [rows, response]."""
        return self._exact(self._advantages) * self.mask

    @cached_property
    def logprob(self) -> Tensor:
        return self.raw_logprob * self.mask

    @property
    def old_logprob(self) -> Tensor:
        return self._old_logprob * self.mask

    @cached_property
    def ratio(self) -> Tensor:
        """rho = pi_theta / mu, [rows, response]."""
        return self.log_ratio.clamp(max=LARGEST_LOG_RATIO).exp_()

    @property
    def probability(self) -> Tensor:
        """pi_theta, [rows, response]."""
        return (self.raw_logprob * self.mask).exp_()

    @property
    def old_probability(self) -> Tensor:
        """mu, [rows, response]."""
        return self.old_logprob.exp_()

    @cached_property
    def product_ratio(self) -> Tensor:
        """W = prod_t rho, the ratio of the whole response, [rows, 1]."""
        return self.sum_log_ratio.clamp(max=LARGEST_LOG_RATIO).exp_()

    @cached_property
    def mean_log_ratio(self) -> Tensor:
        """log s = mean_t log rho, [rows, 1]."""
        return self.sum_log_ratio / self.count.clamp(min=1)

    @cached_property
    def sequence_ratio(self) -> Tensor:
        """s = exp(mean_t log rho), GSPO's ratio of a response, [rows, 1]."""
        return self.mean_log_ratio.clamp(max=LARGEST_LOG_RATIO).exp_()

    @property
    def smallest_log_ratio_before(self) -> Tensor:
        """The smallest log rho before each token of its response, 0 before the first, [rows, response]."""
        before = torch.full_like(self.log_ratio, torch.inf)  # before the first token that counts there is none
        # Padding inside a response must not count as a ratio of 1.
        before[:, 1:] = self.log_ratio[:, :-1].where(self.mask[:, :-1] > 0, torch.inf)
        return before.cummin(-1).values.nan_to_num_(posinf=0.0)


class Batch:
    """All responses of a call, some at a time: each pass over a batch makes the `Tokens` of its blocks anew, unless
    there is but one.
    """

    def __init__(self, inputs: Sequence[Tensor], rows: int) -> None:
        """Args: those of `Tokens`, [batch, response] each, and how many responses are a block."""
        self._inputs, self._rows = inputs, rows
        self.only_block = Tokens(*inputs) if len(inputs[0]) <= rows else None

    def __iter__(self) -> Iterator[Tokens]:
        if self.only_block is not None:
            yield self.only_block
            return
        for start in range(0, len(self._inputs[0]), self._rows):
            rows = slice(start, start + self._rows)
            yield Tokens(*(x[rows] for x in self._inputs), rows=rows)

    @cached_property
    def effective_sample_size(self) -> float:
        """ESS = (sum rho)^2 / (n sum rho^2) over the n tokens of the batch; 1 where rho is constant."""
        parts = [_sums_of_ratios(x) for x in self if x.mask.numel()]
        largest = max((unit for unit, *_ in parts), default=0.0)
        if not largest > 0:  # without any token
            return 1.0
        first = sum(part * unit / largest for unit, part, _, _ in parts)
        second = sum(part * (unit / largest) ** 2 for unit, _, part, _ in parts)
        return first**2 / (second * sum(count for *_, count in parts))


def _sums_of_ratios(x: Tokens) -> tuple[float, float, float, float]:
    """A unit, sum rho and sum rho^2 in it, and how many they are. Ratios may have any scale, so the unit is 1 or the
    largest.
    """
    ratio = (x.ratio * x.mask).flatten()  # padding is no ratio
    unit, square = 1.0, float(ratio.dot(ratio))
    if not 1e-30 < square < 1e30:
        unit = float(ratio.max())
        if not unit > 0:
            return (0.0,) * 4
        ratio /= unit
        square = float(ratio.dot(ratio))
    return unit, float(ratio.sum()), square, float(x.count.sum())
