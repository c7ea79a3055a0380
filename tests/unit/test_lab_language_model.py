"""A real model in the lab: it samples what it says it samples, and scores as a pass over whole sequences does."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.tiny_model import VOCABULARY, make_tiny_model
from trinity_rec.lab import language_model
from trinity_rec.lab.language_model import LanguageModel
from trinity_rec.lab.training import COLUMNS, Experiment, rollouts_of_initial, train
from trinity_rec.tinker_local.errors import ServeError
from trinity_rec.tinker_local.model import ServedModel
from trinity_rec.variants import SETTINGS, VARIANTS

QUESTIONS = ["what is one and two?", "the answer", "what is three and the answer and two and one?"]
RUN = Experiment(
    "products", SETTINGS["sync_interval_20"], VARIANTS["rec_grpo"], 0, 1e-3, steps=2, problems=2, samples=3
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def directory(request, tmp_path_factory) -> Path:
    path = make_tiny_model(tmp_path_factory.mktemp(request.param))
    if request.param == "llama":
        torch.manual_seed(1)
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "initializer_range": 0.2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": False}
        LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape, **heads, eos_token_id=2)).save_pretrained(path)
    # a model of random weights seldom says the one token
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(2, 80))}))
    return path


@pytest.fixture(scope="module")
def policy(directory) -> LanguageModel:
    return LanguageModel.load(directory)


def whole_sequences(model, prompts, said, samples):
    """The logprobs of all tokens at each response token, of each row alone, in a pass without anything shared."""
    for row, (tokens, mask) in enumerate(zip(said.tokens, said.mask, strict=True)):
        prompt = prompts[row // samples]
        logits = model(input_ids=torch.cat([prompt, tokens[mask]])[None]).logits[0]
        yield row, logits[len(prompt) - 1 : -1].log_softmax(-1)


def test_what_is_sampled_and_scored_is_what_transformers_computes(policy, directory):
    prompts = policy.prompts(QUESTIONS)
    assert len({len(prompt) for prompt in prompts}) == 3
    said = policy.sample(prompts, 4, 9, torch.Generator().manual_seed(0))
    lengths = said.mask.sum(1)
    assert lengths.min() < lengths.max() == said.tokens.shape[1], "some responses end before others"
    scores = policy.score(prompts, said)

    theirs, entropies = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32), []
    for row, logprobs in whole_sequences(theirs, prompts, said, 4):
        drawn = said.tokens[row, : lengths[row], None]
        expected = logprobs.gather(1, drawn)[:, 0]
        torch.testing.assert_close(said.logprob[row, : lengths[row]], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(scores.logprob[row, : lengths[row]], expected, rtol=1e-4, atol=1e-4)
        entropies.append(-(logprobs.exp() * logprobs).sum(-1))
    assert scores.entropy == pytest.approx(torch.cat(entropies).mean().item(), rel=1e-4)


@pytest.mark.parametrize("held", [1, 10_000])
def test_the_gradient_is_that_of_whole_sequences_however_much_is_held(policy, directory, held, monkeypatch):
    monkeypatch.setattr(language_model, "PASS_TOKENS", {"cpu": held})
    prompts = policy.prompts(QUESTIONS)
    said = policy.sample(prompts, 3, 6, torch.Generator().manual_seed(1))
    weights = torch.randn(said.mask.shape, generator=torch.Generator().manual_seed(2)) * said.mask
    policy.model.zero_grad()
    (policy.score(prompts, said).logprob * weights).sum().backward()

    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    loss = torch.zeros(())
    for row, logprobs in whole_sequences(theirs, prompts, said, 3):
        length = int(said.mask[row].sum())
        loss = loss + logprobs.gather(1, said.tokens[row, :length, None])[:, 0] @ weights[row, :length]
    loss.backward()
    for (name, ours), (_, expected) in zip(policy.model.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_the_same_seed_draws_the_same_and_without_one_the_likeliest_is_taken(policy):
    prompts = policy.prompts(QUESTIONS)
    first, again, other = (policy.sample(prompts, 2, 8, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.logprob, again.logprob)
    assert not torch.equal(first.tokens, other.tokens)
    likeliest = policy.sample(prompts, 1, 5, None)
    for row, logprobs in whole_sequences(policy.model, prompts, likeliest, 1):
        assert torch.equal(logprobs.argmax(-1), likeliest.tokens[row][likeliest.mask[row]])


def test_samples_follow_the_policy(policy):
    """Frequencies of the first token against its probabilities, to four standard errors."""
    prompts, count = policy.prompts(QUESTIONS[:1]), 4000
    said = policy.sample(prompts, count, 1, torch.Generator().manual_seed(1))
    with torch.no_grad():
        probability = policy.model(input_ids=prompts[0][None]).logits[0, -1].softmax(-1)
    frequency = torch.bincount(said.tokens[:, 0], minlength=len(probability)) / count
    error = (probability * (1 - probability) / count).sqrt()
    assert ((frequency - probability).abs() < 4 * error + 1e-3).all()


def test_a_frozen_copy_keeps_its_weights_until_it_takes_others(directory):
    policy = LanguageModel.load(directory)
    frozen, prompts = policy.frozen(), policy.prompts(QUESTIONS)
    said = policy.sample(prompts, 1, 6, None)
    with torch.no_grad():
        before = frozen.score(prompts, said).logprob
        for parameter in policy.model.parameters():
            parameter.mul_(0.9)
        assert torch.equal(frozen.score(prompts, said).logprob, before)
        frozen.take(policy.weights())
        assert torch.equal(frozen.score(prompts, said).logprob, policy.score(prompts, said).logprob)
        assert not torch.allclose(frozen.score(prompts, said).logprob, before)


def test_bfloat16_is_near(directory):
    exact, rounded = LanguageModel.load(directory), LanguageModel.load(directory, bf16=True)
    prompts = exact.prompts(QUESTIONS)
    said = exact.sample(prompts, 2, 6, None)
    with torch.no_grad():
        expected, near, frozen = (p.score(prompts, said).logprob for p in (exact, rounded, rounded.frozen()))
    assert 0 < (near - expected)[said.mask].abs().max() < 0.5
    assert 0 < (frozen - expected)[said.mask].abs().max() < 0.5


def test_a_cache_in_bfloat16_draws_what_one_in_float32_does_to_the_bit(directory, monkeypatch):
    rounded = LanguageModel.load(directory, bf16=True).frozen()
    prompts = rounded.prompts(QUESTIONS)
    said = rounded.sample(prompts, 4, 9, torch.Generator().manual_seed(0))
    monkeypatch.setattr(ServedModel, "attention_dtype", torch.float32)
    exact = rounded.sample(prompts, 4, 9, torch.Generator().manual_seed(0))
    assert torch.equal(said.tokens, exact.tokens) and torch.equal(said.logprob, exact.logprob)


def test_texts_leave_special_tokens_out(policy):
    said = policy.sample(policy.prompts(QUESTIONS), 8, 9, torch.Generator().manual_seed(0))
    texts = policy.texts(said)
    assert len(texts) == 24 and not any("<|" in text for text in texts)


@pytest.mark.parametrize("setting", ["sync_interval_20", "sync_offset_10", "offline"])
def test_it_trains_by_the_same_train_and_repeats_to_the_bit(directory, setting):
    run = replace(RUN, model=directory, setting=SETTINGS[setting], evaluate_every=1)
    steps, runs = [], []
    for _ in range(2):
        rollouts_of_initial.cache_clear()  # the second samples anew
        runs.append(np.array([[row[name] for name in COLUMNS] for row in train(run, steps.append)]))
    first, again = runs
    np.testing.assert_array_equal(first, again)
    assert steps == [1, 2, 1, 2] and first.shape[0] == 3 and np.isfinite(first[1:]).all()


def test_where_little_memory_is_left_what_is_kept_is_given_back(policy, monkeypatch):
    asked = []
    monkeypatch.setattr(language_model, "give_back", lambda: asked.append(1))
    prompts = policy.prompts(QUESTIONS)
    said = policy.sample(prompts, 2, 4, torch.Generator().manual_seed(0))
    policy.score(prompts, said)
    assert not asked
    monkeypatch.setattr(language_model, "LITTLE_MEMORY", 1 << 62)
    policy.score(prompts, said)
    assert asked


def test_a_model_that_cannot_be_asked_is_refused_in_one_line(tmp_path):
    make_tiny_model(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ServeError, match="its tokenizer has no chat template"):
        LanguageModel.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ServeError, match="cannot load a causal language model from"):
        LanguageModel.load(tmp_path)
    with pytest.raises(ServeError, match="no such model directory"):
        LanguageModel.load(tmp_path / "nowhere")
