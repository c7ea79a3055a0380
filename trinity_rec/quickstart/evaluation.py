"""Held-out accuracy, sampled through the backend that is training: what the model says, not what it could say."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import tinker
from transformers import AutoTokenizer

from trinity_rec.quickstart.tasks import final_answer

MAX_TOKENS = 8


class Evaluator:
    """Samples the held-out problems, `samples` responses each at temperature 1.

    Args:
        base_url, api_key: of the Tinker server.
        model: its model, a directory with tokenizer and chat template.
        problems: GSM8K rows, `question` and `answer`.
    """

    def __init__(
        self, base_url: str, api_key: str, model: Path, problems: list[dict[str, str]], samples: int, seed: int
    ) -> None:
        self.service = tinker.ServiceClient(base_url=base_url, api_key=api_key)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model, self.problems, self.samples, self.seed = model, problems, samples, seed

    def untrained(self) -> float:
        return self._accuracy(self.service.create_sampling_client(base_model=str(self.model)))

    def trained(self, checkpoint: str) -> float:
        """The accuracy of `checkpoint`, the `tinker://…` path that Trinity saved its last step under."""
        trainer = self.service.create_training_client_from_state(checkpoint)
        return self._accuracy(trainer.save_weights_and_get_sampling_client("held-out"))

    def _accuracy(self, client: tinker.SamplingClient) -> float:
        answers = [self._ask(client, index, row["question"]) for index, row in enumerate(self.problems)]
        right = 0
        for row, answer in zip(self.problems, answers, strict=True):
            said = [final_answer(self.tokenizer.decode(sequence.tokens)) for sequence in answer.result().sequences]
            right += sum(number == final_answer(row["answer"]) for number in said)
        return right / (len(self.problems) * self.samples)

    def _ask(self, client: tinker.SamplingClient, index: int, question: str) -> Future[tinker.SampleResponse]:
        prompt = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        return client.sample(
            tinker.ModelInput.from_ints(self.tokenizer(prompt, add_special_tokens=False)["input_ids"]),
            num_samples=self.samples,
            sampling_params=tinker.SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0, seed=self.seed + index),
        )
