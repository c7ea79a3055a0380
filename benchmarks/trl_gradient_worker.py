"""The gradients of TRL's GRPO losses, and of Liger's; run by an interpreter that has both.

    python trl_gradient_worker.py '{"model": "DIR"}'

A line is a JSON object: `framework`, "TRL" or "Liger"; `arguments` of GRPOConfig, or of Liger's loss; and `batch`, a
file that `torch.save` wrote of logprob, old_logprob, action_mask and advantages. The answer is one with the gradient of
that loss with respect to logprob.
"""

import json
import os
import sys
import tempfile

config = json.loads(sys.argv[1])
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what libraries print is not an answer

import torch  # noqa: E402
from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction  # noqa: E402
from trl_given import batch, trainer  # noqa: E402

torch.set_num_threads(1)


def liger(logprob, given, **arguments):
    """Of the loss that Liger fuses with the model's last layer, here on log-probabilities."""
    leaf, mask = logprob.detach().requires_grad_(), given["completion_mask"]
    old_logprob = given["old_per_token_logps"]
    loss, _ = LigerFusedLinearGRPOFunction.ppo_loss_fn(
        leaf, mask, given["advantages"], mask, old_per_token_logps=old_logprob, beta=0.0, **arguments
    )
    loss.backward()
    return leaf.grad


with tempfile.TemporaryDirectory() as folder:
    for line in sys.stdin:
        order = json.loads(line)
        data = torch.load(order["batch"])
        logprob = data.pop("logprob")
        given = batch(**data)
        if order["framework"] == "Liger":
            gradient = liger(logprob, given, **order["arguments"])
        else:
            gradient = trainer(config["model"], folder, **order["arguments"]).gradient(logprob, given)
        print(json.dumps({"gradient": gradient.tolist()}), file=answers)
