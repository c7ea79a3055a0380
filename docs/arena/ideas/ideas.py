"""Off-policy corrections without a clip range: rules to try in the arena, one a YAML beside this file.

    PYTHONPATH=docs/arena/ideas trinity-rec arena --variant docs/arena/ideas/taper.yaml

docs/arena.md tells what came of them. A token is pushed on where A has the sign of log rho: the update moves it further
from the policy that it was sampled by. All else is a pull back, and counts in full.
"""

from trinity_rec.objective.weight import topr


def pushed_on(x):
    """|log rho| where the token is pushed on, 0 elsewhere, [rows, response]."""
    return (x.advantages.sign() * x.log_ratio).clamp(min=0)


def drift(x):
    """sqrt(mean (log rho)^2) over all tokens: how far the batch is from the policy that it was sampled by; a number."""
    return (x.log_ratio.square().sum() / x.count.sum().clamp(min=1)).sqrt()


def taper(x):
    """min(rho, 1/rho) where pushed on, else 1

    TOPR tapers what is made less likely by rho; here what is made more likely is tapered by 1/rho as well.
    """
    return (-pushed_on(x)).exp()


def response_taper(x):
    """min(W, 1/W) where the response is pushed on, else 1, W = prod_t rho

    The same for whole responses, as TOPR has it.
    """
    return (-(x.advantages.sign() * x.sum_log_ratio).clamp(min=0, max=80)).exp()


def relative_taper(x, strength: float = 1.0):
    """exp(-strength |log rho| / sigma) where pushed on, else 1, sigma the drift of the batch

    Who runs ahead of the others waits for them; how far all have moved does not matter. So the same number is strict
    soon after a sync and lax offline.
    """
    return (-strength * pushed_on(x) / drift(x).clamp(min=1e-3)).exp()


def relative_topr_both(x, strength: float = 1.0):
    """relative_taper, times min(1, W) where A < 0, W = prod_t rho

    Offline, where the drift grows and makes the taper lax, what was made unlikely loses its weight all the same.
    """
    return relative_taper(x, strength) * topr(x)[0]


def relative_topr(x):
    """1 if A > 0 else min(1, W) exp(-(-log rho)^+ / sigma), sigma the drift of the batch

    TOPR whose unlikely tokens also wait for the others; what is to be made more likely counts in full.
    """
    return relative_taper(x).where(x.advantages < 0, 1.0) * topr(x)[0]


def relative_range(x, width: float = 1.0):
    """1{|log rho| <= width sigma where pushed on}, sigma the drift of the batch

    A one-side clip range that follows the drift since the last sync.
    """
    return (pushed_on(x) <= width * drift(x)).float()


def budget(x, second_moment: float = 0.04):
    """max(0, 1 - sigma^2 / budget) where pushed on, else 1, sigma the drift of the batch

    A budget on the second moment of log rho, as M2PO has it, but nobody is dropped: the more of it is used up, the less
    whatever moves away counts.
    """
    left = (1 - drift(x).square() / second_moment).clamp(min=0)
    return 1 - (1 - left) * (pushed_on(x) > 0)


def sample_size(x):
    """ESS min(rho, 1), ESS = (sum rho)^2 / (n sum rho^2) over the n tokens of the batch

    The step is bounded by how many tokens the batch is still worth.
    """
    ratio = x.ratio * x.mask
    ess = ratio.sum().square() / (x.count.sum() * ratio.square().sum()).clamp(min=1e-30)
    return ess * x.ratio.clamp(max=1)


def aim(x, reach: float = 1.0):
    """|A| (log rho)^2 / (2 reach)

    With REINFORCE the gradient is |A| (sign A - log rho / reach): a token aims at log rho = reach or -reach, and is
    pulled back where a step has taken it beyond. A clip range only ends the push, and what momentum is left goes on.
    """
    weight = x.advantages.abs() / reach
    return weight * x.log_ratio.square() / 2, weight * x.log_ratio


def response_aim(x, reach: float = 1.0):
    """|A| (log W)^2 / (2 reach), W = prod_t rho

    The same for whole responses, as OPMD's pull; but there A does not scale it, so that the reach is A.
    """
    weight = x.advantages.abs() / reach
    whole = weight * x.sum_log_ratio
    return whole * x.sum_log_ratio / 2 / x.count.clamp(min=1), whole
