"""The shipped model is what its docstring says it is, and its recipe repeats."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trinity_rec.quickstart.subject import ASSETS
from trinity_rec.quickstart.tasks import read_jsonl, split_problems
from trinity_rec.quickstart.tiny_model import accuracy, build_model, build_tokenizer, prompt_ids, train


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ASSETS / "model")


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(ASSETS / "model")


def test_the_model_is_small(model):
    assert model.config.model_type == "qwen2"
    assert 100_000 <= sum(p.numel() for p in model.parameters()) <= 400_000
    assert sum(f.stat().st_size for f in ASSETS.rglob("*") if f.is_file()) < 2 << 20


def test_it_can_add_but_seldom_says_so(model, tokenizer):
    held_out = split_problems().held_out
    torch.manual_seed(0)
    greedy, sampled = accuracy(model, tokenizer, held_out), accuracy(model, tokenizer, held_out, samples=8)
    assert greedy > 0.9
    assert 0.25 < sampled < 0.4
    card = json.loads((ASSETS / "card.json").read_text())
    assert greedy == pytest.approx(card["greedy_accuracy"], abs=0.01)
    assert sampled == pytest.approx(card["sampled_accuracy"], abs=0.04)  # 2,048 draws


def test_the_shipped_problems_are_those_of_the_split():
    split = split_problems()
    assert read_jsonl(ASSETS / "tasks" / "train.jsonl") == [p.to_gsm8k() for p in split.train]
    assert read_jsonl(ASSETS / "tasks" / "test.jsonl") == [p.to_gsm8k() for p in split.held_out]


def test_the_tokenizer_takes_any_text_and_splits_digits(tokenizer):
    for text in ("What is 27 + 48?", "#### 1234", "Köln costs 5 €\n\t", "<|im_end|>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("1234")["input_ids"]) == 4
    assert len({len(prompt_ids(tokenizer, p.question)) for p in split_problems().train}) == 1


def test_the_recipe_repeats():
    tokenizer, problems = build_tokenizer(), split_problems().warm_up
    weights = []
    for _ in range(2):
        model = build_model(tokenizer, seed=3)
        train(model, tokenizer, problems, noise=0.5, steps=4, batch=16, lr=1e-3, seed=3)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)
    assert not torch.equal(
        weights[0], torch.cat([p.detach().flatten() for p in build_model(tokenizer, seed=3).parameters()])
    )
