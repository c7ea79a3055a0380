"""The lab's model is Qwen2, samples from what it says it samples from, and reads a prompt once for all its samples."""

import pytest
import torch
from transformers import AutoConfig, Qwen2ForCausalLM

from trinity_rec.lab import model as model_module
from trinity_rec.lab.model import Architecture, TinyLM, TinyPolicy, sample, told_apart, with_head_width
from trinity_rec.lab.policy import Responses
from trinity_rec.lab.tasks import TASKS

PAD, END = 0, 1


def small_model(seed: int = 0) -> TinyLM:
    torch.manual_seed(seed)
    model = TinyLM(Architecture(vocab_size=19, hidden_size=32, intermediate_size=48))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # biases and norms too
    return model


def test_transformers_reads_the_saved_model_and_gives_the_same_scores(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path, END, PAD)
    theirs = Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert AutoConfig.from_pretrained(tmp_path).eos_token_id == END
    tokens = torch.randint(19, (5, 12))
    with torch.inference_mode():
        expected = theirs(input_ids=tokens).logits
        hidden, _ = model(tokens)
        torch.testing.assert_close(model.logits(hidden), expected, rtol=1e-4, atol=1e-5)


def test_a_loaded_model_is_the_saved_one(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path, END, PAD)
    loaded = TinyLM.load(tmp_path)
    assert loaded.architecture == model.architecture
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


@pytest.mark.parametrize("factor", [2, 4])
def test_wider_heads_make_the_same_policy_and_what_is_new_stays_0(factor):
    model = small_model()
    wide = with_head_width(model, factor * model.architecture.head_width)
    assert wide.architecture.head_width == factor * model.architecture.head_width
    prompts, responses = torch.randint(19, (3, 6)), torch.randint(19, (12, 4))
    expected = model.response_logits(prompts, responses)
    torch.testing.assert_close(wide.response_logits(prompts, responses), expected, rtol=1e-4, atol=1e-5)

    new = {name: weight == 0 for name, weight in wide.state_dict().items()}
    assert sum(int(zeros.sum()) for zeros in new.values()) > sum(weight.numel() for weight in model.parameters())
    optimizer = torch.optim.AdamW(wide.parameters(), lr=1e-2, weight_decay=0.0)
    wide.response_logits(prompts, responses).log_softmax(-1)[..., 3].mean().backward()
    optimizer.step()
    for name, weight in wide.state_dict().items():
        assert not weight[new[name]].any(), name
        assert weight[~new[name]].any(), name


@pytest.mark.parametrize("in_one_row", [0, 99])
def test_responses_after_a_shared_prompt_score_as_whole_sequences_do(in_one_row, monkeypatch):
    monkeypatch.setattr(model_module, "IN_ONE_ROW", in_one_row)
    model = small_model()
    prompts, responses = torch.randint(19, (3, 6)), torch.randint(19, (12, 4))
    whole = torch.cat([prompts.repeat_interleave(4, 0), responses], 1)
    hidden, _ = model(whole[:, :-1])
    expected, got = model.logits(hidden[:, 5:]), model.response_logits(prompts, responses)
    torch.testing.assert_close(got, expected)
    slopes = [torch.autograd.grad(x.log_softmax(-1)[..., 2].sum(), list(model.parameters())) for x in (expected, got)]
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("words", [1, 2, 19], ids=lambda words: f"{words} words")
def test_responses_told_apart_are_the_same_ones_with_none_twice(words):
    responses = torch.randint(words, (12, 3))
    different, which = told_apart(responses, 3)
    assert torch.equal(different[which], responses)
    most = len(different) // 3
    assert (which // most).tolist() == [0] * 4 + [1] * 4 + [2] * 4  # of its own prompt
    groups = [{tuple(row) for row in group.tolist()} for group in responses.split(4)]
    assert most == max(map(len, groups))
    assert len(set(which.tolist())) == sum(map(len, groups))


def test_alike_responses_count_as_often_as_they_were_drawn():
    """What they score, its gradient and the entropy are those of a row for each."""
    policy = TinyPolicy(small_model(), TASKS["addition"].vocabulary)
    prompts, tokens = torch.randint(19, (3, 6)), torch.randint(19, (6, 4))[[0, 0, 0, 1, 2, 2, 3, 2, 4, 5, 5, 4]]
    mask, weights = torch.arange(4) < torch.randint(1, 5, (12, 1)), torch.randn(12, 4)
    logprobs = policy.model.response_logits(prompts, tokens).log_softmax(-1)
    expected = logprobs.gather(-1, tokens[..., None])[..., 0]
    (slope,) = torch.autograd.grad((expected * weights).sum(), policy.model.layers[0].mlp.down_proj.weight)
    scores = policy.score(list(prompts), Responses(tokens, torch.zeros(12, 4), mask))
    torch.testing.assert_close(scores.logprob, expected)
    (got,) = torch.autograd.grad((scores.logprob * weights).sum(), policy.model.layers[0].mlp.down_proj.weight)
    torch.testing.assert_close(got, slope, rtol=1e-4, atol=1e-5)
    spread = -(logprobs.exp() * logprobs).sum(-1)[mask].mean().item()
    assert scores.entropy == pytest.approx(spread, rel=1e-5)


def test_a_scorer_says_what_score_says_of_the_weights_that_it_has_read():
    policy = TinyPolicy(small_model(), TASKS["addition"].vocabulary)
    prompts = list(torch.randint(19, (5, 6)))
    scorer = policy.scorer(prompts)
    for samples, length in ((1, 4), (3, 4), (1, 1)):  # a collapsed policy may say nothing
        said = policy.sample(prompts, samples, length, torch.Generator().manual_seed(samples))
        torch.testing.assert_close(scorer(said), policy.score(prompts, said).logprob.detach(), rtol=1e-4, atol=1e-5)


def test_what_is_trained_in_one_piece_is_the_model():
    model = small_model()
    policy = TinyPolicy(model, TASKS["addition"].vocabulary)
    before, copy = policy.weights(), policy.frozen()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    model.response_logits(torch.randint(19, (3, 6)), torch.randint(19, (12, 4))).log_softmax(-1)[
        ..., 2
    ].sum().backward()
    expected = {name: weight.detach() - 0.1 * weight.grad for name, weight in model.named_parameters()}
    optimizer.step()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name])
        assert weight.grad.any(), name
        assert not torch.equal(weight, copy.model.get_parameter(name)), name
    policy.take(before)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, copy.model.get_parameter(name)), name


def test_sampled_logprobs_are_those_of_the_policy_and_repeat_with_the_seed():
    model, prompts = small_model(), torch.randint(19, (4, 5))
    said, again = (sample(model, prompts, 8, 7, END, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(said.tokens, again.tokens) and torch.equal(said.logprob, again.logprob)
    logprobs = model.response_logits(prompts, said.tokens).log_softmax(-1)
    expected = logprobs.gather(-1, said.tokens[..., None])[..., 0]
    torch.testing.assert_close(said.logprob[said.mask], expected[said.mask], rtol=1e-4, atol=1e-5)


def test_the_mask_ends_with_the_end_token():
    model, prompts = small_model(), torch.randint(19, (16, 5))
    said = sample(model, prompts, 16, 9, END, torch.Generator().manual_seed(0))
    ended = 0
    for tokens, mask in zip(said.tokens.tolist(), said.mask.tolist(), strict=True):
        length = tokens.index(END) + 1 if END in tokens else len(tokens)
        ended += END in tokens
        assert mask == [True] * length + [False] * (len(tokens) - length)
        assert all(token == END for token in tokens[length:])
    assert ended > 20


def test_samples_follow_the_policy():
    """Frequencies of the first token against its probabilities, to four standard errors."""
    model, prompt = small_model(), torch.randint(19, (1, 5))
    count = 20_000
    said = sample(model, prompt, count, 1, END, torch.Generator().manual_seed(1))
    probability = model.response_logits(prompt, said.tokens[:1]).softmax(-1)[0, 0].detach()
    frequency = torch.bincount(said.tokens[:, 0], minlength=19) / count
    error = (probability * (1 - probability) / count).sqrt()
    assert ((frequency - probability).abs() < 4 * error + 1e-4).all()


def test_without_a_generator_the_likeliest_token_is_taken():
    model, prompts = small_model(), torch.randint(19, (4, 5))
    said = sample(model, prompts, 2, 3, END, None)
    logits = model.response_logits(prompts, said.tokens)
    assert torch.equal(said.tokens[said.mask], logits.argmax(-1)[said.mask])
