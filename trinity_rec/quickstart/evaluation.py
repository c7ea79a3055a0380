"""What a model says to the held-out problems: sampled, as it says it, and likeliest, as it could say it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trinity_rec.quickstart.tasks import Right


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on the held-out problems, of responses at temperature 1 and of the likeliest ones, and these."""

    sampled: float
    greedy: float
    answers: list[str]


class Evaluator:
    """Asks through the Tinker server that is training.

    Args:
        base_url, api_key: of the server.
        model: its model, a directory with tokenizer and chat template.
        problems: rows of `question` and `answer`.
        max_tokens: of a response.
        samples: at temperature 1, a problem.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        model: Path,
        problems: Sequence[dict[str, str]],
        right: Right,
        max_tokens: int,
        samples: int,
        seed: int,
    ) -> None:
        import tinker  # the main road's environment has none

        self.tinker, self.service = tinker, tinker.ServiceClient(base_url=base_url, api_key=api_key)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model, self.problems, self.right = model, problems, right
        self.max_tokens, self.samples, self.seed = max_tokens, samples, seed

    def untrained(self) -> Evaluation:
        return self._evaluate(self.service.create_sampling_client(base_model=str(self.model)))

    def trained(self, checkpoint: str) -> Evaluation:
        """Of `checkpoint`, the `tinker://…` path that Trinity saved its last step under."""
        trainer = self.service.create_training_client_from_state(checkpoint)
        return self._evaluate(trainer.save_weights_and_get_sampling_client("held-out"))

    def _evaluate(self, client) -> Evaluation:
        drawn = [self._ask(client, number, self.samples, 1.0) for number in range(len(self.problems))]
        likeliest = [self._ask(client, number, 1, 0.0) for number in range(len(self.problems))]
        answers = [texts[0] for texts in map(self._texts, likeliest)]
        right = [
            self.right(text, row["answer"])
            for row, asked in zip(self.problems, drawn, strict=True)
            for text in self._texts(asked)
        ]
        return Evaluation(mean(right), share_right(answers, self.problems, self.right), answers)

    def _ask(self, client, number: int, samples: int, temperature: float) -> Future:
        prompt = chat(self.tokenizer, self.problems[number]["question"])
        return client.sample(
            self.tinker.ModelInput.from_ints(self.tokenizer(prompt, add_special_tokens=False)["input_ids"]),
            num_samples=samples,
            sampling_params=self.tinker.SamplingParams(
                max_tokens=self.max_tokens, temperature=temperature, seed=self.seed + number
            ),
        )

    def _texts(self, asked: Future) -> list[str]:
        return [self.tokenizer.decode(each.tokens, skip_special_tokens=True) for each in asked.result().sequences]


def share_right(answers: Sequence[str], problems: Sequence[dict[str, str]], right: Right) -> float:
    return mean(right(answer, row["answer"]) for answer, row in zip(answers, problems, strict=True))


@torch.inference_mode()
def likeliest_answers(model: Path, tokens: Path, problems: Sequence[dict[str, str]], max_tokens: int) -> list[str]:
    """Of the model in a directory, with the tokenizer of another, here and now."""
    tokenizer = AutoTokenizer.from_pretrained(tokens, padding_side="left")
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    asked = tokenizer(
        [chat(tokenizer, row["question"]) for row in problems],
        add_special_tokens=False,
        padding=True,
        return_tensors="pt",
    )
    said = network.generate(
        **{name: asked[name] for name in ("input_ids", "attention_mask")},
        max_new_tokens=max_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.batch_decode(said[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)


def chat(tokenizer, question: str) -> str:
    turn = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
