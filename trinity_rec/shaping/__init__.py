"""Data shaping: which baseline, scale, drop and reweighting turn the rewards of a batch into advantages.

The maths is in `groups`; here are the choices, without torch, so that the command line can list them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from trinity_rec.declared import Declared, ReadUnder

if TYPE_CHECKING:
    from torch import Tensor

    from trinity_rec.shaping.groups import Reweighting

PairwiseWeights = Literal["uniform", "reward-gap", "product"]
_Positive = Field(ge=1e-9, allow_inf_nan=False)


class Shaping(Declared):
    """How the rewards of a batch become advantages: one choice of baseline, scale, drop and reweighting."""

    epsilon: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False, description="Added to the std by std_normalize."),
        ReadUnder("std_normalize", (True,)),
    ] = 1e-6
    std_normalize: Annotated[
        bool | None, Field(description="Divide by the group's population standard deviation, as GRPO does.")
    ] = False
    drop: Annotated[
        Literal["balance"] | None, Field(description="balance is RED-Drop (section 4); null drops nothing.")
    ] = None
    drop_form: Annotated[
        Literal["zero", "exclude"],
        Field(
            description="What dropping means. zero, upstream's form: the advantage is 0, but the tokens stay in the "
            "token mean and under any regulariser. exclude, the paper's: they are out of both. Upstream's is the "
            "default, so that its YAMLs keep their meaning; the preset red_drop takes the paper's."
        ),
        ReadUnder("drop", ("balance",)),
    ] = "zero"
    pairwise: Annotated[
        PairwiseWeights | None,
        Field(description="The weights of pairwise-weighted REINFORCE (`pairwise_advantage`); null is r - mean."),
    ] = None
    pairwise_temp: Annotated[
        float, _Positive, Field(description="The temperature of pairwise product."), ReadUnder("pairwise", ("product",))
    ] = 1.0
    reweight: Annotated[
        Literal["adaptive"] | None,
        Field(description="adaptive is adaptive RED-Weight (`adaptive_temperature`); null does not reweight."),
    ] = None
    reweight_floor: Annotated[
        float, _Positive, Field(description="The least temperature of reweight."), ReadUnder("reweight", ("adaptive",))
    ] = 0.8
    seed: Annotated[
        int,
        Field(
            description="Of RED-Drop's choice; the same seed, task and run draw the same lot in any process and order."
        ),
        ReadUnder("drop", ("balance",)),
    ] = 0

    @model_validator(mode="after")
    def _goes_together(self) -> Shaping:
        if self.pairwise is not None and (self.std_normalize or self.drop):
            raise ValueError(
                f"pairwise={self.pairwise!r} does not go with std_normalize or drop: it is a baseline itself"
            )
        return self

    def shape(
        self, rewards: Tensor, group: Tensor, *, tokens: Callable[[], Tensor], lottery: Callable[[], Tensor]
    ) -> Shaped:
        """The advantages of a batch.

        Args:
            rewards: [responses]; a response whose reward is not finite is left out of its group and of the loss.
            group: [responses], int64, from 0.
            tokens: gives how many tokens of each response are in the loss, [responses]; asked only to reweight.
            lottery: gives a random number for each response, [responses]; asked only to drop.
        """
        from trinity_rec.shaping import groups

        valid = kept = rewards.isfinite()
        if self.drop == "balance":
            kept = groups.balanced_keep(rewards, group, valid, lottery())
        if self.pairwise is None:
            advantages = groups.group_advantage(
                rewards, group, kept, std_normalize=bool(self.std_normalize), epsilon=self.epsilon
            )
        else:
            advantages = groups.pairwise_advantage(rewards, group, kept, weights=self.pairwise, temp=self.pairwise_temp)
        reweighting = None
        if self.reweight == "adaptive":
            reweighting = groups.adaptive_temperature(advantages[kept], tokens()[kept], floor=self.reweight_floor)
            advantages = advantages * (advantages / reweighting.temperature).exp()
        in_loss = kept if self.drop_form == "exclude" else valid
        return Shaped(advantages, valid, kept, in_loss, reweighting)


@dataclass(frozen=True)
class Shaped:
    """What `Shaping.shape` found, [responses] each.

    Attributes:
        advantages: float64; 0 where a response is not kept.
        valid: bool; its reward is finite.
        kept: bool; valid and not dropped.
        in_loss: bool; whether its tokens count in the loss.
        reweighting: the temperature of `reweight`, None without.
    """

    advantages: Tensor
    valid: Tensor
    kept: Tensor
    in_loss: Tensor
    reweighting: Reweighting | None
