"""What holds for every `off_*` preset on any batch, by random search."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance.test_corrections import OFF, batch, of_preset
from trinity_rec.objective import Objective, rules
from trinity_rec.objective.clip import CLIP_MODES
from trinity_rec.objective.tokens import Batch
from trinity_rec.presets import PRESETS

OF_THE_BATCH = {"off_m2po", "off_bapo", "off_p3o"}
OF_ALL_TOKENS = {"off_ipo", "off_p3o"}  # their regulariser does not look at A

batches = st.builds(batch, st.integers(0, 2**32 - 1), st.floats(1e-4, 5))
searched = settings(max_examples=6, deadline=None)


def close(value, expected):
    np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OFF)
@searched
@given(data=batches)
def test_a_mask_is_0_or_1_and_a_weight_never_negative(name, data):
    settings_of = PRESETS[name].policy_loss
    rule = CLIP_MODES[settings_of.get("clip_mode", "none")]
    if rule is not None:
        clean = {x: torch.where(data["mask"], data[x], 0.0) for x in ("logprob", "old_logprob", "advantages")}
        tokens = Batch([clean["logprob"], clean["old_logprob"], data["mask"], clean["advantages"]], len(data["mask"]))
        arguments = {x: getattr(Objective(**settings_of), x) for x in rules.arguments_of(rule)}
        for x in tokens:
            mask = rule(tokens, **arguments)(x) if rule in rules.OF_THE_BATCH else rule(x, **arguments)
            assert set(mask.unique().tolist()) <= {0.0, 1.0}
    if name not in OF_ALL_TOKENS:
        assert (of_preset(name, data) * np.nan_to_num(data["advantages"].numpy()) >= 0).all()


@pytest.mark.parametrize("name", OFF)
@searched
@given(data=batches, scale=st.floats(0.01, 100))
def test_the_policy_term_is_as_large_as_the_advantages(name, data, scale):
    """No method looks at the size of A, only at its sign."""

    def of(factor):
        return of_preset(name, {**data, "advantages": factor * data["advantages"]})

    np.testing.assert_allclose(of(scale) - of(0.0), scale * (of(1.0) - of(0.0)), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", OFF)
@searched
@given(data=batches, columns=st.integers(1, 5), order=st.permutations(range(7)))
def test_padding_and_the_order_of_responses_do_not_matter(name, data, columns, order):
    padded = {
        x: torch.cat([t[list(order)], torch.full((len(t), columns), float("nan")).to(t) * (x != "mask")], 1)
        for x, t in data.items()
    }
    padded["mask"][:, -columns:] = False
    close(of_preset(name, padded)[:, :-columns], of_preset(name, data)[list(order)])


@pytest.mark.parametrize("name", OFF)
@searched
@given(data=batches)
def test_micro_batches_add_up_except_where_a_statistic_is_of_the_batch(name, data):
    """As verl cuts a mini-batch, and as Tinker hands over single responses."""
    whole = {"batch_num_tokens": int(data["mask"].sum()), "global_batch_size": len(data["mask"])}
    objective = Objective(**PRESETS[name].policy_loss)
    gradients = []
    for row in range(len(data["mask"])):
        alone = {x: t[row : row + 1] for x, t in data.items()}
        logprob = alone["logprob"].clone().requires_grad_()
        objective(**{**alone, "logprob": logprob}, **whole)[0].backward()
        gradients.append(-logprob.grad.numpy())
    if name not in OF_THE_BATCH:
        close(np.concatenate(gradients), of_preset(name, data))


def test_the_statistics_are_of_the_call():
    """The three that look at the batch give other gradients response by response."""
    data = batch(3, 0.3)
    for name in OF_THE_BATCH:
        rows = [
            of_preset(name, {x: t[i : i + 1] for x, t in data.items()}) * int(data["mask"][i].sum()) for i in range(7)
        ]
        assert not np.allclose(np.concatenate(rows), of_preset(name, data) * int(data["mask"].sum()))
