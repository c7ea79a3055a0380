"""`policy_loss_fn: trinity_rec.RECPolicyLoss`: the objective, in the form in which Trinity's trainers call a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trinity.algorithm.policy_loss_fn.policy_loss_fn import PolicyLossFn

from trinity_rec.objective import Objective

# verl's engine ships these with every micro-batch, Trinity's Tinker trainer ships what `RECSampleStrategy` adds.
_NORMALISERS = ("batch_num_tokens", "global_batch_size", "dp_size")


class RECPolicyLoss(PolicyLossFn):
    """The loss of every preset; takes what upstream's `rec` loss takes, with the same meaning.

    Unlike upstream's, it is normalised over the whole mini-batch, so its gradient does not depend on how the trainer
    cuts it into micro-batches, ranks (verl) or single responses (Tinker).

    Args:
        backend: "verl" or "tinker"; set by Trinity.
        sample_weight: the batch has a column `sample_weight`, a factor on each response's part of the loss. Set by the
            configuration check for a sample strategy that supplies it.
        objective: the arguments of `trinity_rec.objective.Objective`.

    Raises:
        ValueError: an argument is not allowed.
        TypeError: an argument is unknown.
    """

    def __init__(self, backend: str = "verl", sample_weight: bool = False, **objective: Any) -> None:
        super().__init__(backend=backend)
        if not isinstance(sample_weight, bool):
            raise ValueError(f"sample_weight={sample_weight!r} is not true or false")
        self.objective = Objective(**objective)
        columns = ["old_logprob", "action_mask", "advantages", *(["sample_weight"] if sample_weight else [])]
        # A column that the batch lacks is a KeyError on verl; its legacy trainer (verl < 0.8) ships no normalisers.
        self._select_keys = [*columns, *(_NORMALISERS if _ships_normalisers(backend) else ())]

    def __call__(
        self,
        logprob: Tensor,
        old_logprob: Tensor,
        action_mask: Tensor,
        advantages: Tensor,
        sample_weight: Tensor | None = None,
        batch_num_tokens: int | Tensor | None = None,
        global_batch_size: int | Tensor | None = None,
        dp_size: int | Tensor = 1,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, float]]:
        """See `Objective.__call__`; [batch, response] on verl, [response] on Tinker."""
        return self.objective(
            logprob,
            old_logprob,
            action_mask,
            advantages,
            sample_weight=None if sample_weight is None else torch.as_tensor(sample_weight),
            batch_num_tokens=batch_num_tokens,
            global_batch_size=global_batch_size,
            dp_size=dp_size,
        )

    @classmethod
    def default_args(cls) -> dict[str, Any]:
        """The neutral arguments. `loss_agg_mode` is not among them: Trinity would overwrite it with its own default."""
        return {name: value for name, value in Objective.default_args().items() if name != "loss_agg_mode"}


def _ships_normalisers(backend: str) -> bool:
    if backend != "verl":
        return True
    from trinity.trainer.trainer import is_verl_legacy

    return not is_verl_legacy()
