"""A Qwen2 small enough for a laptop, whose ability is latent: it knows the answer but seldom says it.

A model half-trained on clean answers is a poor subject for reinforcement learning, since it does not know what to
reinforce. This one first learns to add and then hears people who mistype: each of the last two digits of an answer is
with probability `NOISE` a random one. So greedily it adds almost without fault, sampled it is right about one time in
three, as a pretrained language model that has read right and wrong. It is shipped in `assets/` with its problems;
made again by

    python -m trinity_rec.quickstart.tiny_model OUT_DIR
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from trinity_rec.quickstart.tasks import Addition, final_line, split_problems, write_jsonl

NOISE = 0.35
END, PAD = "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in Qwen2's manner, one token a digit; it encodes any text, but knows few words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    words = [f"system\nuser\nassistant\n{Addition(a, a).question} {final_line(a)}" for a in range(10, 100)]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[PAD, "<|im_start|>", END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,  # a head size of 32, the least that vLLM's attention on a CPU takes
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config).float()


def prompt_ids(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_answers(tokenizer: PreTrainedTokenizerFast, problems: list[Addition]) -> tuple[torch.Tensor, torch.Tensor]:
    """`#### N<|im_end|>` for each problem, padded on the right: token ids and their mask, [problems, width] each."""
    rows = [tokenizer(final_line(p.total) + END, add_special_tokens=False)["input_ids"] for p in problems]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return ids, mask


def train(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Addition],
    *,
    noise: float,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
) -> None:
    """Supervised training, with fresh errors each step; the loss is on the answer's tokens alone.

    The noise grows from 0 to `noise` over the first half of the steps: all at once, it undoes what was learnt.
    """
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.tensor([prompt_ids(tokenizer, p.question) for p in problems])  # equally long: [problems, prompt]
    answers, answer_mask = encode_answers(tokenizer, problems)
    digits = torch.tensor(tokenizer.convert_tokens_to_ids(list("0123456789")))
    column, length = torch.arange(answers.shape[1]), answer_mask.sum(1, keepdim=True)
    mistypable = (column >= length - 3) & (column < length - 1)  # the last two digits, before END
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, 0.5 * (1 + math.cos(math.pi * s / steps)))
    )
    model.train()
    for step in range(steps):
        rows = torch.randint(len(problems), (batch,), generator=generator)
        said, mask = answers[rows], answer_mask[rows]
        mistyped = torch.rand(said.shape, generator=generator) < noise * min(1.0, 2 * step / steps)
        typed = digits[torch.randint(10, said.shape, generator=generator)]
        said = torch.where(mistyped & mistypable[rows], typed, said)
        hidden = model.model(input_ids=torch.cat([prompts[rows], said], dim=1)[:, :-1]).last_hidden_state
        logits = model.lm_head(hidden[:, -said.shape[1] :][mask])  # the positions that predict the answer
        loss = F.cross_entropy(logits, said[mask])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


@torch.inference_mode()
def accuracy(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: list[Addition], samples: int = 0
) -> float:
    """The share of right answers: greedy, or over `samples` draws a problem at temperature 1."""
    prompts = torch.tensor([prompt_ids(tokenizer, p.question) for p in problems])
    drawing = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if samples else {"do_sample": False}
    prompts = prompts.repeat_interleave(max(samples, 1), 0)
    out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=8,
        pad_token_id=tokenizer.pad_token_id,
        **drawing,
    )
    said = tokenizer.batch_decode(out[:, prompts.shape[1] :], skip_special_tokens=True)
    wanted = [final_line(p.total) for p in problems for _ in range(max(samples, 1))]
    return sum(s == w for s, w in zip(said, wanted, strict=True)) / len(wanted)


def build_assets(out: Path, steps: int = 1500, noisy_steps: int = 700, seed: int = 0) -> dict[str, float]:
    """Make `out/model` and `out/tasks/{train,test}.jsonl`; returns and stores what the model can do."""
    split, tokenizer = split_problems(), build_tokenizer()
    model = build_model(tokenizer, seed)
    train(model, tokenizer, split.warm_up, noise=0.0, steps=steps, batch=128, lr=3e-3, seed=seed)
    train(model, tokenizer, split.warm_up, noise=NOISE, steps=noisy_steps, batch=128, lr=1e-3, seed=seed + 1)
    card = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "greedy_accuracy": accuracy(model, tokenizer, split.held_out),
        "sampled_accuracy": accuracy(model, tokenizer, split.held_out, samples=16),
        "warm_up_steps": steps + noisy_steps,
    }
    (out / "tasks").mkdir(parents=True, exist_ok=True)
    model.generation_config.update(do_sample=True, temperature=1.0, top_p=1.0, top_k=0)
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    write_jsonl(split.train, out / "tasks" / "train.jsonl")
    write_jsonl(split.held_out, out / "tasks" / "test.jsonl")
    (out / "model" / "model.safetensors").chmod(0o644)
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    torch.set_num_threads(1)  # sums in another order would give other weights
    print(json.dumps(build_assets(parser.parse_args().out), indent=2))


if __name__ == "__main__":
    main()
