"""Rewards for right or wrong numbers, for Trinity's `simple_workflow`."""

from __future__ import annotations

from trinity.common.rewards.reward_fn import RewardFn

from trinity_rec.quickstart.tasks import final_answer, right_last_number


class GSM8KReward(RewardFn):
    """1 where the number behind `####` is the right one, else 0.

    In a YAML `default_reward_fn_type: trinity_rec.quickstart.reward.GSM8KReward`. Trinity's own `math_boxed_reward`
    compares with the whole `answer` string, its `math_reward` adds ±0.1 for a format.
    """

    def __init__(self, **_: object) -> None:
        """Trinity passes the YAML's `reward_fn_args`; there are none."""

    def __call__(self, response: str, truth: str, **_: object) -> dict[str, float]:
        wanted = final_answer(truth)
        if wanted is None:
            raise ValueError(f"answer {truth!r} of the taskset has no `#### N`")
        return {"accuracy": float(final_answer(response) == wanted)}


class LastNumberReward(RewardFn):
    """1 where the last number of the response is the answer, else 0."""

    def __init__(self, **_: object) -> None:
        """Trinity passes the YAML's `reward_fn_args`; there are none."""

    def __call__(self, response: str, truth: str, **_: object) -> dict[str, float]:
        return {"accuracy": float(right_last_number(response, truth))}
