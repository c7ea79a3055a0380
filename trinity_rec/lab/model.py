"""A language model of 90,000 parameters, quick enough for dozens of training steps a second on one core.

The architecture is Qwen2's, and weights are named as `transformers` names them, so that what trains here also trains
through Trinity (`save_pretrained`). One forward pass serves reading, sampling and training: it takes the next tokens of
sequences whose past is a list of keys and values. A prompt is read once for all its samples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trinity_rec.lab.policy import Policy, Responses, Scores, entropy
from trinity_rec.lab.tasks.problems import Vocabulary

Past = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [rows, heads, tokens, head width] each."""


@dataclass(frozen=True)
class Architecture:
    vocab_size: int
    hidden_size: int = 64
    intermediate_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_attention_heads


class TinyLM(nn.Module):
    """Qwen2's decoder with tied embeddings and without grouped queries."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.embed_tokens = nn.Embedding(architecture.vocab_size, architecture.hidden_size)
        self.layers = nn.ModuleList(Layer(architecture) for _ in range(architecture.num_hidden_layers))
        self.norm = RMSNorm(architecture)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """Read `tokens` [rows, n] after what is in `past`.

        Returns:
            The hidden states of these tokens, [rows, n, hidden], and the past with them.
        """
        seen = past[0][0].shape[2] if past else 0
        rotation = tuple(part.to(tokens.device) for part in rotary(self.architecture, seen, tokens.shape[1]))
        hidden, present = self.embed_tokens(tokens), []
        for number, layer in enumerate(self.layers):
            hidden, keys_and_values = layer(hidden, rotation, past[number] if past else None)
            present.append(keys_and_values)
        return self.norm(hidden), present

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the token that follows each hidden state, [..., vocabulary]."""
        return F.linear(hidden, self.embed_tokens.weight)

    def response_logits(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Scores of each response token where it was drawn.

        Args:
            prompts: [problems, prompt].
            responses: [problems * samples, response]; the samples of a prompt lie side by side.

        Returns:
            [problems * samples, response, vocabulary]; differentiable.
        """
        samples = len(responses) // len(prompts)
        read, past = self(prompts)
        hidden = read[:, -1:].repeat_interleave(samples, 0)
        if responses.shape[1] > 1:
            said, _ = self(responses[:, :-1], for_each_sample(past, samples))
            hidden = torch.cat([hidden, said], 1)
        return self.logits(hidden)

    @classmethod
    def load(cls, directory: Path) -> TinyLM:
        """From `config.json` and `model.safetensors` as `save_pretrained` writes them."""
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        wanted = {name: config[name] for name in Architecture.__dataclass_fields__ if name in config}
        model = cls(Architecture(**wanted))
        weights = load_file(directory / "model.safetensors")
        model.load_state_dict({name.removeprefix("model."): value.float() for name, value in weights.items()})
        return model

    def save_pretrained(self, directory: Path, end_token: int, pad_token: int) -> None:
        """Write what `transformers` loads as a Qwen2ForCausalLM: configuration and weights."""
        directory.mkdir(parents=True, exist_ok=True)
        shape = asdict(self.architecture)
        theta = shape.pop("rope_theta")
        config = {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            **shape,
            "num_key_value_heads": self.architecture.num_attention_heads,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
            "tie_word_embeddings": True,
            "hidden_act": "silu",
            "bos_token_id": None,
            "eos_token_id": end_token,
            "pad_token_id": pad_token,
            "dtype": "float32",
        }
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        weights = {f"model.{name}": value.detach().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def with_head_width(model: TinyLM, width: int) -> TinyLM:
    """The same policy with wider heads, for engines that ask for them: vLLM's attention on a CPU takes 32 and more.

    What is new is 0, and stays so in training: it neither adds to a score nor gets a gradient. The rest makes up for
    what the sizes change: RMSNorm's mean is over more features, a score is divided by the root of the head width, and
    the angles of the narrow heads are every second one, third one, … of the wide ones'. Training is the same but for
    norms and queries, which are scaled: Adam's step is another share of them.

    Args:
        width: a multiple of the model's own.
    """
    old = model.architecture
    factor, heads, narrow = width // old.head_width, old.num_attention_heads, old.head_width
    wide = TinyLM(replace(old, hidden_size=factor * old.hidden_size, rms_norm_eps=old.rms_norm_eps / factor))
    feature = torch.arange(narrow)
    half = narrow // 2
    turned = feature // half * factor * half + feature % half * factor  # where a feature of queries and keys goes
    places = {name: torch.arange(heads)[:, None] * width + place for name, place in (("qk", turned), ("v", feature))}
    place = {name: each.flatten() for name, each in places.items()}
    hidden = torch.arange(old.hidden_size)
    with torch.no_grad():
        for name, parameter in wide.named_parameters():
            weight = model.get_parameter(name)
            parameter.zero_()
            if "norm" in name:
                parameter[hidden] = weight / factor**0.5
            elif "q_proj" in name or "k_proj" in name or "v_proj" in name:
                rows = place["v" if "v_proj" in name else "qk"]
                scaled = weight * factor**0.5 if "q_proj" in name else weight
                if parameter.dim() == 1:
                    parameter[rows] = scaled
                else:
                    parameter[rows[:, None], hidden] = scaled
            elif "o_proj" in name:
                parameter[hidden[:, None], place["v"]] = weight
            else:
                parameter[: weight.shape[0], : weight.shape[1]] = weight
    return wide


class Layer(nn.Module):
    """Attention and a gated feed-forward network, each after a norm and added to what came in."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(architecture)
        self.self_attn = Attention(architecture)
        self.post_attention_layernorm = RMSNorm(architecture)
        self.mlp = FeedForward(architecture)

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None):
        attended, present = self.self_attn(self.input_layernorm(hidden), rotation, past)
        hidden = hidden + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), present


class Attention(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.hidden_size
        self.heads = architecture.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.o_proj = nn.Linear(width, width, bias=False)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.zeros_(projection.bias)

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None):
        rows, new, width = hidden.shape
        # One product and one rotation instead of three and two: at this size a call costs more than its arithmetic.
        projections = (self.q_proj, self.k_proj, self.v_proj)
        weight, bias = (torch.cat([getattr(each, name) for each in projections]) for name in ("weight", "bias"))
        projected = F.linear(hidden, weight, bias).view(rows, new, 3 * self.heads, -1).transpose(1, 2)
        queries, keys = rotate(projected[:, : 2 * self.heads], rotation).chunk(2, 1)
        values = projected[:, 2 * self.heads :]
        if past is not None:
            keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
        seen = keys.shape[2] - new
        visible = torch.ones(new, seen + new, dtype=torch.bool, device=hidden.device).tril(seen) if new > 1 else None
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
        return self.o_proj(attended.transpose(1, 2).reshape(rows, new, width)), (keys, values)


class FeedForward(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        narrow, wide = architecture.hidden_size, architecture.intermediate_size
        self.gate_proj = nn.Linear(narrow, wide, bias=False)
        self.up_proj = nn.Linear(narrow, wide, bias=False)
        self.down_proj = nn.Linear(wide, narrow, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class RMSNorm(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(architecture.hidden_size))
        self.eps = architecture.rms_norm_eps

    def forward(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


def rotary(architecture: Architecture, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles of positions first, first + 1, …; [count, head width] each."""
    width = architecture.head_width
    frequencies = architecture.rope_theta ** (-torch.arange(0, width, 2) / width)
    angles = torch.outer(torch.arange(first, first + count).float(), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of features (i, i + half) of [..., tokens, head width] by its position's angle."""
    cosine, sine = rotation
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


def for_each_sample(past: Past, samples: int) -> Past:
    """The past of each prompt, once for each of its samples."""
    return [(keys.repeat_interleave(samples, 0), values.repeat_interleave(samples, 0)) for keys, values in past]


@torch.no_grad()
def sample(
    model: TinyLM, prompts: Tensor, samples: int, length: int, end: int, generator: torch.Generator | None
) -> Responses:
    """Draw `samples` responses to each of `prompts` [problems, prompt], of at most `length` tokens, at temperature 1.

    Without a generator the most likely token is taken instead of a random one. The generator is the CPU's.
    """
    read, past = model(prompts)
    hidden = read[:, -1].repeat_interleave(samples, 0)
    past = for_each_sample(past, samples)
    tokens, logprobs, running = [], [], [torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)]
    for position in range(length):
        logprob = model.logits(hidden).log_softmax(-1)
        if generator is None:
            token = logprob.argmax(-1)
        else:
            # Gumbel's trick: the largest of logprob + noise is a draw from the distribution.
            noise = torch.empty(logprob.shape).exponential_(generator=generator).log_()
            token = (logprob - noise.to(logprob.device)).argmax(-1)
        token = token.where(running[-1], end)
        tokens.append(token)
        logprobs.append(logprob.gather(-1, token[:, None])[:, 0])
        running.append(running[-1] & (token != end))
        if not running[-1].any() or position == length - 1:
            break
        new, past = model(token[:, None], past)
        hidden = new[:, -1]
    return Responses(*(torch.stack(columns, 1).cpu() for columns in (tokens, logprobs, running[:-1])))


class TinyPolicy(Policy):
    """A `TinyLM` with the vocabulary of its task."""

    def __init__(self, model: TinyLM, vocabulary: Vocabulary, device: str = "cpu") -> None:
        self.model, self.vocabulary, self.device = model.to(device), vocabulary, torch.device(device)

    def frozen(self) -> TinyPolicy:
        return TinyPolicy(deepcopy(self.model), self.vocabulary, str(self.device))

    def weights(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.model.state_dict().items()}

    def take(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(weights)

    def prompts(self, questions: Sequence[str]) -> list[Tensor]:
        return list(self.vocabulary.prompts(list(questions)))

    def length(self, text: str) -> int:
        return len(self.vocabulary.encode(text))

    def texts(self, responses: Responses) -> list[str]:
        return [self.vocabulary.decode(row) for row in responses.tokens.tolist()]

    def sample(
        self, prompts: Sequence[Tensor], samples: int, length: int, generator: torch.Generator | None
    ) -> Responses:
        asked = torch.stack(list(prompts)).to(self.device)
        return sample(self.model, asked, samples, length, self.vocabulary.end, generator)

    def score(self, prompts: Sequence[Tensor], responses: Responses) -> Scores:
        asked, said = torch.stack(list(prompts)).to(self.device), responses.tokens.to(self.device)
        logprobs = self.model.response_logits(asked, said).log_softmax(-1)
        logprob = logprobs.gather(-1, said[..., None])[..., 0]
        return Scores(logprob.cpu(), entropy(logprobs.detach(), responses.mask.to(self.device)))
