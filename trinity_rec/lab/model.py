"""A language model of 90,000 parameters, quick enough for dozens of training steps a second on one core.

The architecture is Qwen2's, and weights are named as `transformers` names them, so that what trains here also trains
through Trinity (`save_pretrained`). One forward pass serves reading, sampling and training: it takes the next tokens of
sequences whose past is a list of keys and values. A prompt is read once for all its samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trinity_rec.lab.policy import Policy, Responses, Scores
from trinity_rec.lab.tasks.problems import Vocabulary

Past = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [rows, heads, tokens, head width] each."""

# Tokens of a prompt's responses up to which they are scored in one row behind it. Each is then compared with all of
# them, and what it may not see thrown away: up to here that costs less than a row for each.
IN_ONE_ROW = 128


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

    def forward(
        self,
        tokens: Tensor,
        past: Past | None = None,
        wanted: int | None = None,
        layers: list[ReadyLayer] | None = None,
    ) -> tuple[Tensor, Past]:
        """Read `tokens` [rows, n] after what is in `past`; `layers` is `ready()`, if it is there already.

        Returns:
            The hidden states of these tokens, [rows, n, hidden], and the past with them.
        """
        seen = past[0][0].shape[2] if past else 0
        rotation = rotary(self.architecture, seen, tokens.shape[1]).to(tokens.device)
        visible = None
        if tokens.shape[1] > 1:
            visible = tokens.new_ones(tokens.shape[1], seen + tokens.shape[1], dtype=torch.bool).tril(seen)
        return self.read(layers or self.ready(), tokens, past, rotation, visible, wanted)

    def ready(self) -> list[ReadyLayer]:
        """The layers' weights as `read` takes them; good until the next step of training."""
        return [layer.ready() for layer in self.layers]

    def read(
        self,
        layers: list[ReadyLayer],
        tokens: Tensor,
        past: Past | list[Growing] | None,
        rotation: Tensor,
        visible: Tensor | None,
        wanted: int | None = None,
    ) -> tuple[Tensor, Past]:
        """`forward` where a token's place and what it sees are given.

        Args:
            rotation: of each token's position, see `rotary`, [n or 1, head width / 2].
            visible: bool, what of the past and of these tokens each one sees, [n, past + n]; None for all.
            wanted: hidden states of so many tokens at the end are returned; all by default.
        """
        hidden, present = F.embedding(tokens, self.embed_tokens.weight), []
        for number, layer in enumerate(layers):
            asking = wanted if wanted and number == len(layers) - 1 else tokens.shape[1]
            attended, keys_and_values = attend(
                layer, normed(hidden, layer.eps), past[number] if past else None, rotation, visible, asking
            )
            present.append(keys_and_values)
            hidden = hidden[:, -asking:] + attended
            gate, up = F.linear(normed(hidden, layer.eps), layer.gate_up).chunk(2, -1)
            hidden = hidden + F.linear(F.silu(gate) * up, layer.down)
        return normed(hidden, layers[-1].eps) * self.norm.weight, present

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
        samples, layers = len(responses) // len(prompts), self.ready()
        problems, read = prompts.shape
        said = responses[:, :-1]
        if samples * said.shape[1] <= IN_ONE_ROW:
            tokens = torch.cat([prompts, said.reshape(problems, -1)], 1)
            visible, position = behind_each_other(read, samples, said.shape[1])
            rotation = rotary(self.architecture, 0, read + said.shape[1])[position].to(tokens.device)
            hidden, _ = self.read(
                layers, tokens, None, rotation, visible.to(tokens.device), 1 + samples * said.shape[1]
            )
            first = hidden[:, :1, None].expand(-1, samples, -1, -1)
            after = hidden[:, 1:].unflatten(1, (samples, said.shape[1]))
            return self.logits(torch.cat([first, after], 2).flatten(0, 1))
        return self.logits_after(self(prompts, wanted=1, layers=layers), responses, layers)

    def logits_after(self, prompts: tuple[Tensor, Past], responses: Tensor, layers: list[ReadyLayer]) -> Tensor:
        """`response_logits` behind prompts that have been read already: the last hidden state and the past of each."""
        hidden, past = prompts
        samples = len(responses) // len(hidden)
        hidden = hidden.repeat_interleave(samples, 0)
        if responses.shape[1] > 1:
            after, _ = self(responses[:, :-1], for_each_sample(past, samples), layers=layers)
            hidden = torch.cat([hidden, after], 1)
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


@dataclass(frozen=True)
class ReadyLayer:
    """A layer's weights, put together for few and large products: at this size a call costs more than its arithmetic.

    The weight of a norm is a factor on the columns of what follows it. Queries and keys have the two features that a
    rotation turns side by side, as real and imaginary part.

    Attributes:
        qkv, qkv_bias: [3 * width, width] and [3 * width].
        out: [width, width].
        gate_up: [2 * intermediate, width].
        down: [width, intermediate].
    """

    heads: int
    eps: float
    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor


class Layer(nn.Module):
    """Attention and a gated feed-forward network, each after a norm and added to what came in."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.input_layernorm = RMSNorm(architecture)
        self.self_attn = Attention(architecture)
        self.post_attention_layernorm = RMSNorm(architecture)
        self.mlp = FeedForward(architecture)

    def ready(self) -> ReadyLayer:
        attention, mlp, heads = self.self_attn, self.mlp, self.architecture.num_attention_heads

        def side_by_side(query: Tensor, key: Tensor) -> Tensor:
            both = torch.cat([query, key])
            return both.view(2 * heads, 2, -1, *both.shape[1:]).transpose(1, 2).reshape(both.shape)

        q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
        return ReadyLayer(
            heads=heads,
            eps=self.architecture.rms_norm_eps,
            qkv=torch.cat([side_by_side(q.weight, k.weight), v.weight]) * self.input_layernorm.weight,
            qkv_bias=torch.cat([side_by_side(q.bias, k.bias), v.bias]),
            out=attention.o_proj.weight,
            gate_up=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * self.post_attention_layernorm.weight,
            down=mlp.down_proj.weight,
        )


class Attention(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.hidden_size
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.o_proj = nn.Linear(width, width, bias=False)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.zeros_(projection.bias)


class FeedForward(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        narrow, wide = architecture.hidden_size, architecture.intermediate_size
        self.gate_proj = nn.Linear(narrow, wide, bias=False)
        self.up_proj = nn.Linear(narrow, wide, bias=False)
        self.down_proj = nn.Linear(wide, narrow, bias=False)


class RMSNorm(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(architecture.hidden_size))


def attend(
    layer: ReadyLayer,
    x: Tensor,
    past: tuple[Tensor, Tensor] | Growing | None,
    rotation: Tensor,
    visible: Tensor | None,
    asking: int,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Attention of the last `asking` of `x` [rows, n, width] to the past and to `x`, and the past with `x`."""
    rows, new, width = x.shape
    projected = F.linear(x, layer.qkv, layer.qkv_bias).view(rows, new, 3 * layer.heads, -1)
    pairs = torch.view_as_complex(projected[:, :, : 2 * layer.heads].unflatten(-1, (-1, 2)))
    turned = torch.view_as_real(pairs * rotation[:, None]).flatten(-2).transpose(1, 2)
    queries, keys = turned.chunk(2, 1)
    values = projected[:, :, 2 * layer.heads :].transpose(1, 2)
    if isinstance(past, Growing):
        keys, values = past.append(keys, values)
    elif past is not None:
        keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
    if asking < new:
        queries, visible = queries[:, :, -asking:], None if visible is None else visible[-asking:]
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
    return F.linear(attended.transpose(1, 2).reshape(rows, asking, width), layer.out), (keys, values)


class Growing:
    """Keys and values of a layer where nothing is differentiated: what comes is written into room for `more` tokens."""

    def __init__(self, keys: Tensor, values: Tensor, more: int) -> None:
        self._parts = [F.pad(part, (0, 0, 0, more)) for part in (keys, values)]
        self._seen = keys.shape[2]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, these included."""
        before, self._seen = self._seen, self._seen + keys.shape[2]
        for whole, part in zip(self._parts, (keys, values), strict=True):
            whole[:, :, before : self._seen] = part
        keys, values = (whole[:, :, : self._seen] for whole in self._parts)
        return keys, values


def normed(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis: RMSNorm without its weight."""
    return F.rms_norm(x, x.shape[-1:], None, eps)


@cache
def rotary(architecture: Architecture, first: int, count: int) -> Tensor:
    """exp(i angle) of the rotary angles of positions first, first + 1, …; complex, [count, head width / 2]."""
    width = architecture.head_width
    with torch.inference_mode(False):  # it is kept, and autograd may want it
        frequencies = architecture.rope_theta ** (-torch.arange(0, width, 2) / width)
        angles = torch.outer(torch.arange(first, first + count).float(), frequencies)
        return torch.polar(torch.ones_like(angles), angles)


@cache
def behind_each_other(read: int, samples: int, length: int) -> tuple[Tensor, Tensor]:
    """What each token sees where `samples` responses of `length` follow a prompt of `read` tokens, and its position.

    Returns:
        bool [n, n] and int64 [n], n being `read + samples * length`.
    """
    whose = torch.cat([torch.full((read,), -1), torch.arange(samples).repeat_interleave(length)])
    position = torch.cat([torch.arange(read), read + torch.arange(length).repeat(samples)])
    own = (whose == -1) | (whose == whose[:, None])
    return own & (position <= position[:, None]), position


def for_each_sample(past: Past, samples: int) -> Past:
    """The past of each prompt, once for each of its samples."""
    return [(keys.repeat_interleave(samples, 0), values.repeat_interleave(samples, 0)) for keys, values in past]


def sample(
    model: TinyLM, prompts: Tensor, samples: int, length: int, end: int, generator: torch.Generator | None
) -> Responses:
    """Draw `samples` responses to each of `prompts` [problems, prompt], of at most `length` tokens, at temperature 1.

    Without a generator the most likely token is taken instead of a random one. The generator is the CPU's.
    """
    with torch.inference_mode():  # an eighth quicker than without gradients alone
        columns = _drawn(model, prompts, samples, length, end, generator)
    return Responses(*(column.clone() for column in columns))  # tensors that autograd may keep


def _drawn(
    model: TinyLM, prompts: Tensor, samples: int, length: int, end: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, logprobs and mask of `sample`."""
    layers, (problems, read) = model.ready(), prompts.shape
    said, past = model(prompts, wanted=1, layers=layers)
    growing = [Growing(keys, values, samples * (length - 1)) for keys, values in past]
    hidden = said.expand(-1, samples, -1)
    # The samples of a prompt lie behind it, position by position: each sees the prompt and its own.
    own = torch.eye(samples, dtype=torch.bool, device=prompts.device)
    visible = torch.cat([own.new_ones(samples, read), own.repeat(1, length)], 1)
    tokens, logprobs, running = [], [], [torch.ones(problems * samples, dtype=torch.bool, device=prompts.device)]
    for position in range(length):
        logprob = model.logits(hidden).log_softmax(-1).flatten(0, 1)
        if generator is None:
            token = logprob.argmax(-1)
        else:
            # The first token at which the cumulative probability passes a random number between 0 and all of it.
            cumulative = logprob.exp().cumsum(-1)
            lot = torch.rand(len(logprob), 1, generator=generator).to(logprob.device) * cumulative[:, -1:]
            token = (cumulative <= lot).sum(-1).clamp(max=cumulative.shape[-1] - 1)
        token = token.where(running[-1], end)
        tokens.append(token)
        logprobs.append(logprob.gather(-1, token[:, None])[:, 0])
        running.append(running[-1] & (token != end))
        if not running[-1].any() or position == length - 1:
            break
        rotation = rotary(model.architecture, read + position, 1).to(prompts.device)
        seen = visible[:, : read + samples * (position + 1)]
        hidden, _ = model.read(layers, token.view(problems, samples), growing, rotation, seen)
    drawn, logprob, mask = (torch.stack(columns, 1).cpu() for columns in (tokens, logprobs, running[:-1]))
    return drawn, logprob, mask


def in_one_piece(model: nn.Module) -> nn.Parameter:
    """All parameters as one: what they hold and their gradients become parts of its own, which are never set to None.

    An optimizer, a norm and a copy then take a call each, not one a parameter.
    """
    parameters = list(model.parameters())
    whole = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    whole.grad = torch.zeros_like(whole)
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part, slope in zip(parameters, whole.detach().split(sizes), whole.grad.split(sizes), strict=True):
        parameter.data, parameter.grad = part.view_as(parameter), slope.view_as(parameter)
    return whole


class TinyPolicy(Policy):
    """A `TinyLM` with the vocabulary of its task."""

    ahead = 8  # at this size a call costs as much as its arithmetic: a step's rollouts take half the time

    def __init__(self, model: TinyLM, vocabulary: Vocabulary, device: str = "cpu") -> None:
        self.model, self.vocabulary, self.device = model.to(device), vocabulary, torch.device(device)
        self._whole = in_one_piece(self.model)

    def frozen(self) -> TinyPolicy:
        return TinyPolicy(deepcopy(self.model), self.vocabulary, str(self.device))

    def parameters(self) -> list[nn.Parameter]:
        return [self._whole]

    def weights(self) -> dict[str, Tensor]:
        return {"whole": self._whole.detach().clone()}

    @torch.no_grad()
    def take(self, weights: dict[str, Tensor]) -> None:
        self._whole.copy_(weights["whole"])

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
        different, which = told_apart(said, len(asked))
        logprobs = self.model.response_logits(asked, different).log_softmax(-1)
        logprob = logprobs.gather(-1, different[..., None])[..., 0].index_select(0, which)
        everywhere = logprobs.detach()
        entropies = -(everywhere.exp() * everywhere).sum(-1)[which]
        return Scores(logprob.cpu(), entropies[responses.mask.to(self.device)].mean().item())

    @torch.inference_mode()
    def scorer(self, prompts: Sequence[Tensor]) -> Callable[[Responses], Tensor]:
        layers = self.model.ready()
        read = self.model(torch.stack(list(prompts)).to(self.device), wanted=1, layers=layers)

        @torch.inference_mode()
        def logprob(responses: Responses) -> Tensor:
            said = responses.tokens.to(self.device)
            logprobs = self.model.logits_after(read, said, layers).log_softmax(-1)
            return logprobs.gather(-1, said[..., None])[..., 0].cpu()

        return logprob


def told_apart(responses: Tensor, prompts: int) -> tuple[Tensor, Tensor]:
    """The different ones among each prompt's responses: what a policy makes of two that are alike is computed once.

    Args:
        responses: [prompts * samples, response]; the samples of a prompt lie side by side.

    Returns:
        [prompts * most, response], `most` being how many the prompt with the most has (others repeat their first), and
        which of these each of `responses` is, int64 [prompts * samples].
    """
    said, samples = [tuple(row) for row in responses.tolist()], len(responses) // prompts
    groups = [said[first : first + samples] for first in range(0, len(said), samples)]
    most = max(len(set(group)) for group in groups)
    rows, which = [], []
    for prompt, group in enumerate(groups):
        own = list(dict.fromkeys(reversed(group)))  # another order would round sums otherwise than docs/arena's runs
        which += [len(rows) + own.index(response) for response in group]
        rows += [samples * prompt + group.index(response) for response in own + group[:1] * (most - len(own))]
    return responses[rows], torch.tensor(which, device=responses.device)
