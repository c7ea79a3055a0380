"""The gradient of every `off_*` preset in numpy, written from its source and from nothing of ours.

A form takes the responses of a batch and its thresholds, and returns the gradient of the ascended objective with
respect to each log-probability, [batch, response], its average included and 0 on padding. Ratios and masks are
constants of it. It says in loops what trinity_rec.objective says in tensors: rho = pi / mu of a token, W their product
over a response, s their geometric mean, A the advantage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass
class Response:
    """The tokens of one response that count, in their order: [tokens] each, or a number."""

    logprob: Array
    old_logprob: Array
    advantages: Array
    positions: Array

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def log_rho(self) -> Array:
        return self.logprob - self.old_logprob

    @property
    def rho(self) -> Array:
        return np.exp(self.log_rho)

    @property
    def product(self) -> float:
        """W."""
        return float(np.exp(self.log_rho.sum()))

    @property
    def mean_ratio(self) -> float:
        """s."""
        return float(np.exp(self.log_rho.sum() / max(len(self), 1)))

    @property
    def probability_change(self) -> Array:
        """pi - mu."""
        return np.exp(self.logprob) - np.exp(self.old_logprob)


@dataclass
class Batch:
    """Responses, and the shape that their gradient has."""

    responses: list[Response]
    shape: tuple[int, int]

    @classmethod
    def of(cls, logprob: Array, old_logprob: Array, mask: Array, advantages: Array) -> Batch:
        """From [batch, response] each; what the mask leaves out is never read."""
        responses = []
        for row in range(len(mask)):
            (positions,) = np.nonzero(mask[row])
            read = (x[row, positions].astype(np.float64) for x in (logprob, old_logprob, advantages))
            responses.append(Response(*read, positions))
        return cls(responses, mask.shape)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.responses))

    def token_mean(self, terms: list[Array]) -> Array:
        """Every token of the batch weighs the same, those that a mask drops among them."""
        return self._placed([term / max(self.tokens, 1) for term in terms])

    def sequence_mean_of_token_mean(self, terms: list[Array]) -> Array:
        """Every response weighs the same, and within it every token."""
        return self._placed([term / max(len(term), 1) / len(terms) for term in terms])

    def sequence_mean_of_token_sum(self, terms: list[Array]) -> Array:
        """Every token weighs one over the number of responses."""
        return self._placed([term / len(terms) for term in terms])

    def _placed(self, terms: list[Array]) -> Array:
        gradient = np.zeros(self.shape)
        for row, (response, term) in enumerate(zip(self.responses, terms, strict=True)):
            gradient[row, response.positions] = term
        return gradient


def one_side(ratio: Array | float, advantages: Array, low: float, high: float) -> Array:
    """1 where PPO's min(ratio A, clip(ratio, 1 - low, 1 + high) A) has a gradient, else 0."""
    clipped = ((advantages > 0) & (ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - low))
    return np.where(clipped, 0.0, 1.0)


# A token alone.


def off_dapo(batch: Batch, low: float = 0.2, high: float = 0.28) -> Array:
    """DAPO's clip-higher, arXiv 2503.14476."""
    return batch.token_mean([one_side(r.rho, r.advantages, low, high) * r.rho * r.advantages for r in batch.responses])


def off_dual_clip(batch: Batch, low: float = 0.2, high: float = 0.2, c: float = 3.0) -> Array:
    """Dual clip, arXiv 1912.09729: max(min(rho A, clip(rho) A), c A) where A < 0."""

    def term(r: Response) -> Array:
        dropped = (r.advantages < 0) & (r.rho > c)
        return np.where(dropped, 0.0, one_side(r.rho, r.advantages, low, high) * r.rho * r.advantages)

    return batch.token_mean([term(r) for r in batch.responses])


def off_tis(batch: Batch, cap: float = 2.0) -> Array:
    """Truncated importance sampling of tokens; verl's `rollout_is: token`."""
    return batch.token_mean([np.minimum(r.rho, cap) * r.advantages for r in batch.responses])


def off_icepop(batch: Batch, lower: float = 0.5, upper: float = 5.0) -> Array:
    """IcePop, arXiv 2510.18855: a ratio outside of its range counts nothing."""
    return batch.token_mean(
        [np.where((r.rho >= lower) & (r.rho <= upper), r.rho, 0.0) * r.advantages for r in batch.responses]
    )


def off_cispo(batch: Batch, low: float = 1.0, high: float = 0.28) -> Array:
    """CISPO, arXiv 2506.13585: the ratio is clipped as a weight, and no token loses its gradient."""
    return batch.token_mean([np.clip(r.rho, 1 - low, 1 + high) * r.advantages for r in batch.responses])


def off_sapo(batch: Batch, tau_positive: float = 1.0, tau_negative: float = 1.05) -> Array:
    """SAPO, arXiv 2511.20347: the derivative of the gate (4 / tau) sigmoid(tau (rho - 1)) by log pi."""

    def term(r: Response) -> Array:
        tau = np.where(r.advantages > 0, tau_positive, tau_negative)
        x = np.exp(-np.abs(tau * (r.rho - 1)))  # sigmoid (1 - sigmoid) is even
        return 4 * x / (1 + x) ** 2 * r.rho * r.advantages

    return batch.sequence_mean_of_token_mean([term(r) for r in batch.responses])


def off_aspo(batch: Batch, low: float = 0.2, high: float = 0.2, cap: float = 3.0) -> Array:
    """ASPO, arXiv 2510.06062, and its authors' `compute_policy_loss_archer` with one clip range."""

    def term(r: Response) -> Array:
        weight = np.where(r.advantages > 0, np.minimum(1 / r.rho, cap), np.minimum(r.rho, cap))
        return one_side(r.rho, r.advantages, low, high) * weight * r.advantages

    return batch.token_mean([term(r) for r in batch.responses])


def off_dppo_tv(batch: Batch, low: float = 0.15, high: float = 0.15, cap: float = 20.0) -> Array:
    """DPPO with the binary total variation, arXiv 2602.04879 eq. 13: the probability itself may move so far."""

    def term(r: Response) -> Array:
        change = r.probability_change
        kept = np.where(r.advantages > 0, change <= high, change >= -low)
        return kept * np.minimum(r.rho, cap) * r.advantages

    return batch.token_mean([term(r) for r in batch.responses])


def off_ipo(batch: Batch, low: float = 0.2, high: float = 0.2, tau: float = 1e-3) -> Array:
    """INTELLECT Policy Optimization, prime-rl's loss.py: the mask does not look at A, the square is of every token."""

    def term(r: Response) -> Array:
        change = r.probability_change
        kept = (change <= high) & (change >= -low)
        return kept * r.rho * r.advantages - 2 * tau * r.log_rho

    return batch.token_mean([term(r) for r in batch.responses])


# A response as a whole, or its beginning.


def off_gmpo(batch: Batch, low: float = 0.4, high: float = 0.4) -> Array:
    """GMPO, arXiv 2507.20673: the geometric mean of ratios that are clipped, one by one, in their logarithm."""

    def term(r: Response) -> Array:
        clipped = np.array(
            [
                min(x, high) if a > 0 else max(x, -low) if a < 0 else x
                for x, a in zip(r.log_rho, r.advantages, strict=True)
            ]
        )
        kept = clipped == r.log_rho
        return kept * np.exp(clipped.sum() / max(len(r), 1)) * r.advantages

    return batch.sequence_mean_of_token_mean([term(r) for r in batch.responses])


def off_luspo(batch: Batch, low: float = 3e-4, high: float = 4e-4) -> Array:
    """LUSPO, arXiv 2602.05261: GSPO's term of a response times its length."""
    return batch.sequence_mean_of_token_sum(
        [one_side(r.mean_ratio, r.advantages, low, high) * r.mean_ratio * r.advantages for r in batch.responses]
    )


def off_seq_tis(batch: Batch, cap: float = 2.0) -> Array:
    """Truncated importance sampling of responses; verl's `rollout_is: sequence`."""
    return batch.token_mean([min(r.product, cap) * r.advantages for r in batch.responses])


def off_seq_mis(batch: Batch, lower: float = 0.5, upper: float = 2.0) -> Array:
    """Masked importance sampling of responses; verl's `rollout_rs: seq_sum_k1`."""
    return batch.token_mean([float(lower <= r.product <= upper) * r.advantages for r in batch.responses])


def off_geo_rs(batch: Batch, lower: float = 0.999, upper: float = 1.001) -> Array:
    """Rejection by the geometric mean; verl's `rollout_rs: seq_mean_k1`."""
    return batch.token_mean([float(lower <= r.mean_ratio <= upper) * r.advantages for r in batch.responses])


def off_opsm(batch: Batch, delta: float = 0.5, low: float = 0.2, high: float = 0.2) -> Array:
    """Off-policy sequence masking, arXiv 2512.02556 eq. 9, on GRPO's gradient."""

    def term(r: Response) -> Array:
        drifted = -r.log_rho.sum() / max(len(r), 1) > delta
        kept = np.where((r.advantages < 0) & drifted, 0.0, one_side(r.rho, r.advantages, low, high))
        return kept * r.rho * r.advantages

    return batch.token_mean([term(r) for r in batch.responses])


def off_topr(batch: Batch) -> Array:
    """Tapered off-policy REINFORCE, arXiv 2503.14286 eq. 8: only what is pushed down is weighed, by at most 1."""
    return batch.token_mean(
        [np.where(r.advantages < 0, min(r.product, 1.0), 1.0) * r.advantages for r in batch.responses]
    )


def off_vespo(
    batch: Batch, positive: tuple[float, float] = (2.0, 3.0), negative: tuple[float, float] = (3.0, 2.0)
) -> Array:
    """VESPO, arXiv 2602.10693: the kernel e^lambda W^k e^(-lambda W), which is 1 at W = 1; pairs are (k, lambda)."""

    def term(r: Response) -> Array:
        log_product = r.log_rho.sum()
        weights = [
            np.exp(lamb + k * log_product - lamb * np.exp(log_product)) if log_product < 700 else 0.0
            for k, lamb in (positive, negative)
        ]
        return np.where(r.advantages < 0, weights[1], weights[0]) * r.advantages

    return batch.token_mean([term(r) for r in batch.responses])


def off_minpro(batch: Batch) -> Array:
    """MinPRO, arXiv 2601.22718: of a token's prefix only the smallest ratio before it counts."""

    def term(r: Response) -> Array:
        rho = r.rho
        smallest = [min(rho[:t], default=1.0) for t in range(len(rho))]
        return rho * np.array(smallest) * r.advantages

    return batch.token_mean([term(r) for r in batch.responses])


# A statistic of the batch.


def off_m2po(batch: Batch, threshold: float = 0.04) -> Array:
    """M2PO, arXiv 2510.01161 Algorithm 1: the largest squares of the trust region go until their mean is small."""
    trusted = [
        (i, t)
        for i, r in enumerate(batch.responses)
        for t in range(len(r))
        if (r.advantages[t] > 0 and r.log_rho[t] > 0) or (r.advantages[t] < 0 and r.log_rho[t] < 0)
    ]
    squares = {(i, t): batch.responses[i].log_rho[t] ** 2 for i, t in trusted}
    kept = [np.ones(len(r)) for r in batch.responses]
    while squares and np.mean(list(squares.values())) > threshold:
        largest = max(squares, key=squares.__getitem__)
        kept[largest[0]][largest[1]] = 0.0
        del squares[largest]
    return batch.token_mean([m * r.rho * r.advantages for m, r in zip(kept, batch.responses, strict=True)])


def off_bapo(
    batch: Batch,
    share: float = 0.4,
    lower: tuple[float, float, float] = (0.6, 0.9, 0.02),
    upper: tuple[float, float, float] = (1.2, 3.0, 0.05),
) -> Array:
    """BAPO, arXiv 2510.18927 eq. 8 and Algorithm 1: (start, end, step) of the bounds that clip A < 0 and A > 0.

    They rise, the upper before the lower, until what has A > 0 makes up its share of the clipped objective.
    """
    start_low, end_low, step_low = lower
    start_high, end_high, step_high = upper
    steps_low, steps_high = round((end_low - start_low) / step_low), round((end_high - start_high) / step_high)
    ups = lows = 0

    def contribution() -> float | None:
        low, high = start_low + lows * step_low, start_high + ups * step_high
        gain = loss = 0.0
        for r in batch.responses:
            for rho, a in zip(r.rho, r.advantages, strict=True):
                gain += min(rho, high) * a if a > 0 else 0.0
                loss += max(rho, low) * -a if a < 0 else 0.0
        return gain / (gain + loss) if gain + loss > 0 else None

    while (now := contribution()) is not None and now < share and lows < steps_low:
        if ups < steps_high:
            ups += 1
        else:
            lows += 1
    low, high = start_low + lows * step_low, start_high + ups * step_high
    return batch.token_mean(
        [one_side(r.rho, r.advantages, 1 - low, high - 1) * r.rho * r.advantages for r in batch.responses]
    )


def off_p3o(batch: Batch) -> Array:
    """P3O, arXiv 1905.01756: the effective sample size caps the ratio, and what it lacks of 1 weighs KL(mu, pi)."""
    ratios = np.concatenate([r.rho for r in batch.responses])
    if not ratios.size:
        return np.zeros(batch.shape)
    ratios = ratios / ratios.max()
    size = ratios.sum() ** 2 / (len(ratios) * (ratios**2).sum())
    return batch.token_mean([np.minimum(r.rho, size) * r.advantages + (1 - size) for r in batch.responses])


FORMS = {name: form for name, form in globals().items() if name.startswith("off_")}
