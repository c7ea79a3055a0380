"""Log-probabilities of given tokens, with logits computed only where they are wanted, a slice at a time.

The full logits of a batch ([tokens, vocabulary]) are by far its largest tensor. Nobody needs them: the trainer and
the sampler want one number a token. `token_logprobs` therefore never holds more than a slice of logits, neither in
the forward pass nor for the backward pass, which computes them again.
"""

import torch
from torch import Tensor, nn

LOGITS_SLICE = 16 * 2**20  # logits held at a time: 64 MB in float32


def hidden_states(model: nn.Module, ids: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Last hidden states [batch, time, width] of right-padded token ids [batch, time].

    Under causal attention a token never sees what is to its right, so padding on the right needs no mask, and the
    attention kernel may take its fast causal path. What comes out at padded positions is meaningless. Rows of another
    kind (`packing`) bring their positions [batch, time] and attention mask bool [batch, 1, time, time].
    """
    output = model.base_model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
    return output.last_hidden_state


def pad(rows: list[Tensor], value: int = 0) -> Tensor:
    """Rows of different lengths as one right-padded tensor [rows, longest]."""
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def logits_of(model: nn.Module, hidden: Tensor) -> Tensor:
    """Float32 logits [..., vocabulary] of hidden states [..., width]."""
    return model.get_output_embeddings()(hidden).float()


def token_logprobs(model: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target under the model's next-token distribution, at temperature 1.

    Args:
        hidden: [tokens, width], the hidden states that predict the targets.
        targets: [tokens], token ids.

    Returns:
        float32 [tokens], differentiable in `hidden` and the output embedding.
    """
    return _of_tokens(model, hidden, targets, False)[0]


def token_logprobs_and_entropies(model: nn.Module, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, and the entropy [tokens] of each of these distributions, in nats; it has no gradient."""
    return _of_tokens(model, hidden, targets, True)


def _of_tokens(model: nn.Module, hidden: Tensor, targets: Tensor, entropies: bool) -> tuple[Tensor, Tensor]:
    head = model.get_output_embeddings()
    return _TokenLogprobs.apply(hidden, head.weight, head.bias, targets, entropies)


class _TokenLogprobs(torch.autograd.Function):
    """log softmax(hidden @ weight.T + bias)[target] and, where it is asked for, the entropy; sliced over tokens.

    Backward: d logprob / d logits = onehot(target) - softmax(logits), from logits computed again.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, entropies):
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        normaliser = torch.empty_like(logprobs)
        entropy = torch.empty_like(logprobs) if entropies else logprobs.new_empty(0)
        for part in _slices(len(targets), len(weight)):
            logits = nn.functional.linear(hidden[part], weight, bias).float()
            normaliser[part] = logits.logsumexp(-1)
            logprobs[part] = logits.gather(1, targets[part, None])[:, 0] - normaliser[part]
            if entropies:
                every = logits.sub_(normaliser[part, None])
                entropy[part] = every.exp().mul_(every).sum(-1).neg_()
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad, _):
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        for part in _slices(len(targets), len(weight)):
            logits = nn.functional.linear(hidden[part], weight, bias).float()
            d_logits = logits.sub_(normaliser[part, None]).exp_().neg_()
            d_logits.scatter_add_(1, targets[part, None], torch.ones_like(d_logits[:, :1]))
            d_logits = d_logits.mul_(grad[part, None]).to(weight.dtype)
            torch.mm(d_logits, weight, out=grad_hidden[part])
            grad_weight.addmm_(d_logits.T, hidden[part])
            if grad_bias is not None:
                grad_bias += d_logits.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None


def _slices(tokens: int, vocabulary: int) -> list[slice]:
    step = max(1, LOGITS_SLICE // vocabulary)
    return [slice(start, start + step) for start in range(0, tokens, step)]
