"""The tool-call task through the real `trinity run` on the local backend: rewards flow and steps train.

The model is made for it: it has heard right and wrong calls for four questions, so that a sampled response is often
well formed and about one in five is right.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from trinity.common.workflows.customized_toolcall_workflows import construct_prompt

from trinity_rec.quickstart.tiny_model import CHAT_TEMPLATE, END, PAD, build_model
from trinity_rec.session import Session, trained_steps
from trinity_rec.tool_call.reward import ToolCallReward
from trinity_rec.tool_call.toolace import MARKER, problems, write

CITIES = ("Rome", "Oslo", "Lima", "Cairo")
TOOLS = [{"name": "weather", "parameters": {"city": "string"}}]
EXPERIMENT = "toolace/sync_interval_20/rec_oneside_nois"
STEPS = 2


def rows() -> list[dict]:
    """A problem a city, by the conversion from dialogues as ToolACE has them."""
    dialogues = [
        {
            "system": f"Functions {MARKER}{json.dumps(TOOLS)}",
            "conversations": [
                {"from": "user", "value": f"Weather in {city}?"},
                {"from": "assistant", "value": f"[weather(city='{city}')]"},
            ],
        }
        for city in CITIES
    ]
    return [row for dialogue in dialogues for row in problems(dialogue)]


def call(city: str) -> str:
    return f'<think>it rains</think> <tool_call>[{{"name": "weather", "arguments": {{"city": "{city}"}}}}]</tool_call>'


def make_model(folder: Path, steps: int = 200, seed: int = 0) -> Path:
    """Answers each question with the right city or one of all four, half of the time each."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    texts = [message["content"] for row in rows() for message in construct_prompt(row)] + [
        call(city) for city in CITIES
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=[PAD, "<|im_start|>", END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, chat_template=CHAT_TEMPLATE, model_max_length=512
    )

    def ids(text: str) -> list[int]:
        return fast(text, add_special_tokens=False)["input_ids"]

    prompts = [
        ids(fast.apply_chat_template(construct_prompt(row), add_generation_prompt=True, tokenize=False))
        for row in rows()
    ]
    answers = [ids(call(city) + END) for city in CITIES]
    assert {len(each) for each in prompts} == {len(prompts[0])} and {len(each) for each in answers} == {len(answers[0])}
    questions, calls = torch.tensor(prompts), torch.tensor(answers)
    model = build_model(fast, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        right, any_city = torch.arange(len(CITIES)), torch.randint(len(CITIES), (len(CITIES),))
        said = calls[torch.where(torch.rand(len(CITIES)) < 0.5, right, any_city)]
        hidden = model.model(input_ids=torch.cat([questions, said], 1)[:, :-1]).last_hidden_state
        loss = F.cross_entropy(model.lm_head(hidden[:, -said.shape[1] :]).flatten(0, 1), said.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.generation_config.update(do_sample=True, temperature=1.0, top_p=1.0, top_k=0)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_rewards_flow_and_steps_train(tmp_path):
    model = make_model(tmp_path / "model")
    tasks = tmp_path / "tasks"
    for split in ("train", "test"):
        write(rows(), tasks / f"{split}.jsonl")
    settings = {
        "model.tinker.enable": "true",
        "model.max_prompt_tokens": 400,
        "model.max_response_tokens": 60,
        "model.max_model_len": 460,
        "trainer.trainer_type": "tinker",
        "algorithm.optimizer.lr": "1.0e-3",
        "buffer.batch_size": 4,
        "buffer.total_steps": STEPS,
        "explorer.rollout_model.engine_num": 1,
        "explorer.runner_per_model": 1,
        "synchronizer.sync_method": "memory",
        "synchronizer.sync_interval": 1,
    }
    with Session(tmp_path / "logs") as session:
        session.start_ray()
        session.start_server(model, root=tmp_path / "weights")
        session.env |= {"TRINITY_MODEL_PATH": str(model), "TRINITY_TASKSET_PATH": str(tasks)}
        settings["model.tinker.base_url"] = session.base_url
        command = [sys.executable, "-m", "trinity_rec.cli", "paper", "run", EXPERIMENT, "--out", str(tmp_path / "out")]
        command += [f"--set={key}={value}" for key, value in settings.items()]
        done = subprocess.run(command, env=session.env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr

    job = tmp_path / "out" / f"{EXPERIMENT}-seed42"
    experiences = [json.loads(line) for line in (job / "buffer" / "experiences.jsonl").read_text().splitlines()]
    assert len(experiences) == STEPS * 4 * 8
    for each in experiences:
        (city,) = re.findall(r"Weather in (\w+)\?", each["prompt_text"])
        answer = json.dumps([{"name": "weather", "arguments": {"city": city}}])
        assert each["reward"] == ToolCallReward()(each["response_text"], answer)["accuracy"]
    assert {each["reward"] for each in experiences} == {0.0, 1.0}

    steps = trained_steps(job)
    assert [step.number for step in steps] == [1, 2]
    assert all(0 < step.reward < 1 and step.metrics["actor/grad_norm"] > 0 for step in steps)
    (row,) = csv.DictReader((tmp_path / "out" / "results.csv").open())
    assert row["steps"] == "2" and row["measured_by"] == "eval" and 0 <= float(row["accuracy_first"]) <= 1
