"""What goes wrong in off-policy training, how it shows in the logs, and what to try: one list for the command and for
the table of docs/metrics.md.

A new rule is a function under `RULES`, with a run that has the trouble in tests/unit/test_diagnose.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from trinity_rec.diagnose.case import CLIPPED, ENTROPY, GROUPS, KL, REWARD, VERSION, Case, at_age, mean
from trinity_rec.plot.draw import running_mean
from trinity_rec.plot.events import Series
from trinity_rec.plot.runs import LAST
from trinity_rec.session.logs import last_error

ERROR, DOUBT = "error", "doubt"

# Where a number begins to be a sign of trouble. Log-probabilities that the same weights computed twice differ by
# rounding alone.
RECOMPUTED_KL, RECOMPUTED_KL_IF_CONFIGURED = 1e-6, 1e-4
GAP = 0.01  # nats a token between sampler and trainer; float32 gives 1e-6, bfloat16 rollouts about 1e-3
FIRST_CLIPPED, CLIPPED_SHARE, SAMPLE_SIZE, SAME_REWARD, ENTROPY_LEFT = 0.1, 0.5, 0.3, 0.9, 0.1


@dataclass(frozen=True)
class Evidence:
    """What a rule saw: the numbers, the metrics that show it, and the first and last step of it."""

    numbers: str
    tags: tuple[str, ...] = ()
    steps: tuple[int, int] | None = None


@dataclass(frozen=True)
class Rule:
    """One kind of trouble.

    Attributes:
        name: for scripts.
        level: "error", which makes the command exit with 1, or "doubt".
        sign: what one sees.
        look_at: the metrics and files that tell.
        likely: what it means.
        advice: what to try.
        judge: yields evidence; none where all is well or what it needs was not logged.
    """

    name: str
    level: str
    sign: str
    look_at: str
    likely: str
    advice: str
    judge: Callable[[Case], Iterator[Evidence]]


@dataclass(frozen=True)
class Finding:
    rule: Rule
    evidence: Evidence

    def __str__(self) -> str:
        rule = self.rule
        return f"{rule.sign} ({self.evidence.numbers}): {rule.likely}; try: {rule.advice}".replace("`", "")


def diagnose(case: Case) -> list[Finding]:
    """Everything that the rules see in a run, errors first."""
    found = [Finding(rule, evidence) for rule in RULES for evidence in rule.judge(case)]
    return sorted(found, key=lambda each: each.rule.level != ERROR)


def markdown_table() -> str:
    """The rules as docs/metrics.md shows them."""
    rows = [f"| {each.sign} | {each.look_at} | {each.likely} | {each.advice} |" for each in RULES]
    return "\n".join(["| what you see | look at | likely | try |", "|---|---|---|---|", *rows])


def _not_finite(case: Case) -> Iterator[Evidence]:
    first = [
        (int(series.steps[~np.isfinite(series.values)][0]), tag)
        for tags in case.run.roles.values()
        for tag, series in tags.items()
        if not np.isfinite(series.values).all()
    ]
    if first:
        step, tag = min(first)
        others = f", then {len(first) - 1} more metrics" if first[1:] else ""
        yield Evidence(f"{tag} in step {step}{others}", (tag,), (step, step))


def _ended_early(case: Case) -> Iterator[Evidence]:
    total = case.setting("trainer", "total_steps") or case.setting("buffer", "total_steps")
    error = case.log.rpartition("Error in Trainer:")[2].strip() if "Error in Trainer:" in case.log else ""
    said = last_error(error) or ""
    if isinstance(total, int) and case.steps < total:
        running = "" if "Trainer finished" in case.log or not case.log else "; unless it is still running"
        yield Evidence(f"{case.steps} of {total} steps{f', {said}' if said else running}", REWARD[:1])
    elif error:
        yield Evidence(f"after step {case.steps}: {said or 'see log/trainer.log'}", REWARD[:1])


def _recomputed_ratio(case: Case) -> Iterator[Evidence]:
    found = case.series(*KL)
    if found is None:
        return
    stale = at_age(case, found[1], stale=True)
    trained = case.series("actor/lr")
    if trained is not None and not trained[1].values.any():
        return  # weights that do not move have a ratio of 1
    configured = case.setting("algorithm", "bypass_old_logprobs") is False
    limit = RECOMPUTED_KL_IF_CONFIGURED if configured else RECOMPUTED_KL
    if len(stale.steps) and np.nanmax(np.abs(stale.values)) < limit:
        age = max(case.ages().values())
        numbers = f"{found[0]} at most {np.nanmax(np.abs(stale.values)):.1g}, rollouts up to {age:g} updates old"
        yield Evidence(numbers, (found[0], VERSION), _span(stale))


def _gap(case: Case) -> Iterator[Evidence]:
    found = case.series("actor/kl_k3", *KL)
    if found is None:
        return
    fresh = at_age(case, found[1], stale=False)
    gap = mean(np.abs(fresh.values)) if len(fresh.steps) else 0.0
    if gap > GAP:
        yield Evidence(f"{found[0]} {gap:.3g} on rollouts of the newest weights", (found[0],), _span(fresh))


def _clipped_at_once(case: Case) -> Iterator[Evidence]:
    found = case.series(*CLIPPED)
    fresh = None if found is None else at_age(case, found[1], stale=False)
    if found is not None and fresh is not None and len(fresh.steps) and fresh.values[0] > FIRST_CLIPPED:
        yield Evidence(f"{found[0]} {fresh.values[0]:.2f} in step {fresh.steps[0]}", (found[0],), (fresh.steps[0],) * 2)


def _clipped_share(case: Case) -> Iterator[Evidence]:
    found = case.last(*CLIPPED)
    if found and found[1] > CLIPPED_SHARE:
        yield Evidence(f"{found[0]} {found[1]:.2f}, mean of the last {LAST} steps", (found[0],))


def _few_samples(case: Case) -> Iterator[Evidence]:
    found = case.last("actor/effective_sample_size")
    if found and found[1] < SAMPLE_SIZE:
        yield Evidence(f"{found[0]} {found[1]:.2f} of the tokens, mean of the last {LAST} steps", (found[0],))


def _share_of_groups(case: Case, of: str) -> Series | None:
    part, whole = case.series(f"{GROUPS}/{of}"), case.series(f"{GROUPS}/groups")
    if part is None or whole is None or len(part[1].steps) != len(whole[1].steps):
        return None
    return Series(part[1].steps, part[1].values / np.maximum(whole[1].values, 1))


def _no_spread(case: Case) -> Iterator[Evidence]:
    share = _share_of_groups(case, "groups_without_spread")
    if share is None:  # not our advantage: Trinity's logs the standard deviation
        found = case.series("experience_pipeline/group_advantages/reward_std/mean", "group_advantages/reward_std/mean")
        share = None if found is None else Series(found[1].steps, (found[1].values < 1e-6).astype(float))
    if share is None:
        return
    first, last = mean(share.values[:LAST]), mean(share.values[-LAST:])
    where = "in the first steps" if first > SAME_REWARD else "in the last steps" if last > SAME_REWARD else ""
    if where:
        reward = case.series(*REWARD)
        level = f", reward {mean(reward[1].values[:LAST] if 'first' in where else reward[1].values[-LAST:]):.2f}"
        numbers = f"{max(first, last):.0%} {where}{level if reward else ''}"
        yield Evidence(numbers, (f"{GROUPS}/groups_without_spread", *REWARD[:1]))


def _groups_of_one(case: Case) -> Iterator[Evidence]:
    share = _share_of_groups(case, "groups_of_one")
    if share is not None and mean(share.values) > SAME_REWARD:
        yield Evidence(f"{mean(share.values):.0%} of the groups", (f"{GROUPS}/groups_of_one",))


def _invalid(case: Case) -> Iterator[Evidence]:
    found = case.series(f"{GROUPS}/invalid_responses")
    if found and (count := int(np.nansum(found[1].values))):
        yield Evidence(f"{count} responses", (found[0],))


def _entropy_collapse(case: Case) -> Iterator[Evidence]:
    found = case.series(*ENTROPY)
    if found is None or len(found[1].steps) < 2 * LAST:
        return
    first, last = mean(found[1].values[:LAST]), mean(found[1].values[-LAST:])
    if first > 0 and last < ENTROPY_LEFT * first:
        yield Evidence(f"{found[0]} from {first:.3g} to {last:.3g} nats", (found[0], *REWARD[:1]))


def _reward_fell(case: Case) -> Iterator[Evidence]:
    found = case.series(*REWARD)
    if found is None or len(found[1].steps) < 2 * LAST:
        return
    steps, smooth = found[1].steps[LAST - 1 :], running_mean(found[1].values, LAST)[LAST - 1 :]
    peak = int(np.nanargmax(smooth)) if np.isfinite(smooth).any() else 0
    most, last, start = smooth[peak], smooth[-1], smooth[0]
    # The mean of LAST steps is off by about this much, by what neighbouring steps differ.
    noise = float(np.nanstd(np.diff(found[1].values))) / np.sqrt(2 * LAST)
    if most - last > max((most - start) / 2, 0.2 * abs(most), 3 * noise):
        numbers = f"{found[0]} {most:.2f} around step {steps[peak]}, {last:.2f} at the end, means of {LAST} steps"
        yield Evidence(numbers, (found[0], *KL[:1], "actor/ratio_max"), (int(steps[peak]), int(steps[-1])))


def _span(series: Series) -> tuple[int, int]:
    return int(series.steps[0]), int(series.steps[-1])


RULES: tuple[Rule, ...] = (
    Rule(
        "not_finite",
        ERROR,
        "a metric is NaN or infinite",
        "`grad_norm`, `ratio_max`, `kl_k1` of the steps before it",
        "an overflow: a ratio without bound, float16, a reward that is no number",
        "a clip_mode that bounds the ratio, a smaller learning rate, `optimizer.clip_grad`",
        _not_finite,
    ),
    Rule(
        "ended_early",
        ERROR,
        "the run ends early, with exit code 0",
        "`log/trainer.log`: the lines `Step N:`, and `Error in Trainer`",
        "`Trainer.train` logs a failed step and stops",
        "mend what the log names; the same `trinity run` goes on from the last checkpoint",
        _ended_early,
    ),
    Rule(
        "ratio_of_one",
        ERROR,
        "the ratio is exactly 1 although rollouts are stale",
        "`kl_k1` (`ppo_kl`) 0 while `sample/model_version/mean` lags behind",
        "old log-probabilities are recomputed by the trainer, so nothing corrects for the age of the rollouts",
        "`algorithm.bypass_old_logprobs: true`",
        _recomputed_ratio,
    ),
    Rule(
        "reward_fell",
        ERROR,
        "reward rises, then falls to nothing",
        "`kl_k1` and `ratio_max` rising before it",
        "stale data and nothing that bounds the update",
        "clip (`rec_oneside_nois`), regularise (`rep_opmd`) or sync more often",
        _reward_fell,
    ),
    Rule(
        "groups_of_one",
        ERROR,
        "nothing moves: every group is one response",
        "`groups_of_one` close to `groups`",
        "`repeat_times` is 1, or the other responses were invalid",
        "`algorithm.repeat_times: 8`",
        _groups_of_one,
    ),
    Rule(
        "sampler_gap",
        DOUBT,
        "`kl_k1` is not 0 on fresh rollouts",
        "the first step after a sync, with `sync_offset: 0`",
        "the rollout engine's and the trainer's arithmetic differ (bfloat16 against float32, quantised rollouts), or "
        "their temperature or `top_p`; several mini-batches a step show so too",
        "the same dtype on both sides, temperature 1, `top_p: 1`",
        _gap,
    ),
    Rule(
        "clipped_at_once",
        DOUBT,
        "nothing moves although groups have spread",
        "`pg_clipfrac` high in the very first step",
        "old log-probabilities are not those of the sampler (temperature, recomputed by the trainer)",
        "temperature 1; `algorithm.bypass_old_logprobs: true`",
        _clipped_at_once,
    ),
    Rule(
        "clipped_share",
        DOUBT,
        "most tokens are clipped",
        "`pg_clipfrac` above a half",
        "rollouts are too old for the clip range: most of the batch is thrown away",
        "a smaller `synchronizer.sync_interval`, or a wider range",
        _clipped_share,
    ),
    Rule(
        "few_samples",
        DOUBT,
        "a few tokens carry the importance weights",
        "`effective_sample_size` below 0.3 (`metrics: full`)",
        "importance sampling over too great a distance",
        "a preset without it (`rec_oneside_nois`), or fresher rollouts",
        _few_samples,
    ),
    Rule(
        "no_spread",
        DOUBT,
        "groups have no spread, so reward stays flat",
        "`groups_without_spread` close to `groups`",
        "no group holds a comparison: the task is too hard, solved, or its reward too coarse",
        "problems of another difficulty, a finer reward, more responses a group",
        _no_spread,
    ),
    Rule(
        "entropy_collapse",
        DOUBT,
        "entropy collapses",
        "`rollout_entropy` (`actor/entropy`) below a tenth of its start",
        "the policy draws the same responses again and again, and groups lose their spread",
        "a higher upper clip bound, an entropy term, a smaller learning rate",
        _entropy_collapse,
    ),
    Rule(
        "invalid_rewards",
        DOUBT,
        "responses without a valid reward",
        "`invalid_responses`",
        "the workflow returned none, NaN or infinity for them: a bug there",
        "return a finite number for every response",
        _invalid,
    ),
)
