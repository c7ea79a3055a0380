"""The presets' losses in verl, without Trinity: `VERL_USE_EXTERNAL_MODULES=trinity_rec.verl`, which verl imports in
each of its processes, makes them known, and

    actor_rollout_ref.actor.policy_loss.loss_mode=trinity_rec.rec_oneside_nois

chooses one. Advantages stay verl's: `algorithm.adv_estimator=grpo`, whose `norm_adv_by_std_in_grpo` is a preset's
`std_normalize`; so of what shapes rewards (RED-Drop, the pairs) a loss mode has nothing.

A preset with other arguments is one line in a module of one's own, named beside this one:

    trinity_rec.verl.register("ring_wide", "rec_ring_nois", epsilon_high=2.0)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from verl.trainer.ppo.core_algos import register_policy_loss

from trinity_rec.objective import Objective
from trinity_rec.presets import PRESETS


def register(name: str, preset: str, **arguments: Any) -> None:
    """Make a preset's loss, with these arguments of `Objective` on top of its own, known to verl by a name.

    The average is `actor.loss_agg_mode`, with `actor.loss_scale_factor`, unless the preset has one of its own.

    Raises:
        KeyError: there is no such preset.
        ValueError: an argument is not allowed.
    """
    arguments = {**PRESETS[preset].policy_loss, **arguments}
    own_average = Objective(**arguments).loss_agg_mode
    averages_by_itself = "loss_agg_mode" in arguments or own_average != Objective().loss_agg_mode

    @register_policy_loss(name)
    def loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """As verl calls it; all tensors [batch, response]."""
        if rollout_is_weights is not None:
            raise ValueError(
                f"algorithm.rollout_correction.rollout_is: {name} weighs rollouts by itself; set rollout_is: null and "
                "bypass_mode: true"
            )
        batch = dict(config.global_batch_info)
        average = {} if averages_by_itself else {"loss_agg_mode": loss_agg_mode}
        if average.get("loss_agg_mode") == "seq-mean-token-sum-norm":
            average["loss_scale_factor"] = batch.get("loss_scale_factor")
        objective = Objective(**{**arguments, **average})
        pg_loss, metrics = objective(
            log_prob,
            old_log_prob,
            response_mask,
            advantages,
            batch_num_tokens=batch.get("batch_num_tokens"),
            global_batch_size=batch.get("global_batch_size"),
            dp_size=batch.get("dp_size", 1),
        )
        return pg_loss, {f"actor/{metric}": value for metric, value in metrics.items() if metric != "pg_loss"}


for _preset in PRESETS:
    register(f"trinity_rec.{_preset}", _preset)
