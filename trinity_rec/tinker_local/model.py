"""The model that is served: loaded once from a Hugging Face directory, checked, and copied for whoever needs one."""

import copy
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from trinity_rec.tinker_local.errors import RequestError, ServeError
from trinity_rec.tinker_local.logprobs import hidden_states, logits_of


@dataclass(frozen=True)
class ServedModel:
    """A causal language model with float32 weights, and what the server must know about it.

    Attributes:
        name: the directory as an absolute path; the name under which clients ask for the model.
        aliases: other spellings of it that clients may use (Trinity compares strings).
        base: the weights as loaded, on the CPU; never written to.
        bf16: compute the layers in bfloat16; the head and the optimizer stay in float32.
        context_length: tokens of prompt and response at most.
        cache_bytes_per_token: of keys and values, over all layers.
        stop_ids: tokens that end a response, from the generation config and the tokenizer.
    """

    name: str
    aliases: tuple[str, ...]
    base: nn.Module
    bf16: bool
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    context_length: int
    vocabulary: int
    cache_bytes_per_token: int
    stop_ids: tuple[int, ...]

    @property
    def attention_dtype(self) -> torch.dtype:
        """What keys and values are rounded to, if they are not yet."""
        return torch.bfloat16 if self.bf16 else torch.float32

    def copy(self, *, frozen: bool = False) -> nn.Module:
        """A model of its own on the device, with the base weights, in evaluation mode.

        Evaluation mode also for training: with dropout the trainer's logprobs would not be those of the sampler.

        Args:
            frozen: it is only sampled from, so that `bf16` may round its weights once and for all.
        """
        model = copy.deepcopy(self.base).to(self.device).eval()
        if self.bf16:
            _compute_in_bf16(model, self.device, frozen)
        return model

    def check_tokens(self, tokens: Tensor, what: str) -> None:
        """Raise RequestError unless every id is in the vocabulary."""
        if len(tokens) and (tokens.min() < 0 or tokens.max() >= self.vocabulary):
            raise RequestError(f"{what} has a token id outside the vocabulary of {self.vocabulary}")


def load(directory: Path, device: str, bf16: bool = False, alias: str | None = None) -> ServedModel:
    """Load and check a model directory; `alias` is one more name for it.

    Raises:
        ServeError: there is no model that can be served, or no such device; one line.
    """
    directory = Path(directory)
    path = directory.expanduser().resolve()
    if not path.is_dir():
        raise ServeError(f"no such model directory: {directory}")
    if not (path / "config.json").is_file():
        raise ServeError(f"not a Hugging Face model directory (no config.json): {directory}")
    target = _device(device)
    disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
        base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ServeError(f"cannot load a causal language model from {directory}: {reason}") from error
    cache_bytes = _check_supported(base, directory)

    # The SDK takes the tokenizer's name from the model's and cuts one with exactly two slashes ("/a/b" -> "/a").
    name = f"{path}/" if str(path).count("/") == 2 else str(path)
    spellings = {str(directory), str(path), f"{path}/", f"{directory}/", alias or name} - {name}
    ends = [*_end_tokens(path), config.eos_token_id, tokenizer.eos_token_id]
    return ServedModel(
        name=name,
        aliases=tuple(sorted(spellings)),
        base=base,
        bf16=bf16,
        tokenizer=tokenizer,
        device=target,
        context_length=getattr(config, "max_position_embeddings", 4096),
        vocabulary=base.get_output_embeddings().weight.shape[0],
        cache_bytes_per_token=cache_bytes,
        stop_ids=tuple(sorted({end for end in ends if isinstance(end, int)})),
    )


def _compute_in_bf16(model: nn.Module, device: torch.device, frozen: bool) -> None:
    """Run the layers under autocast, and give their output in float32 to the head."""
    body = model.base_model
    forward = body.forward

    def in_bf16(*args, **kwargs):
        with torch.autocast(device.type, torch.bfloat16):
            output = forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state.float()
        return output

    body.forward = in_bf16
    if frozen:  # without gradients autocast would round the weights anew at every token
        for layer in body.modules():
            if isinstance(layer, nn.Linear):
                layer.to(torch.bfloat16)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors by name, each stored tensor once (tied ones under their first name); not copies."""
    seen, unique = set(), {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            unique[name] = tensor
    return unique


@torch.no_grad()
def set_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy `weights`, made by `weights_of`, into the model in place.

    Raises:
        RequestError: names or shapes are not the model's.
    """
    own = weights_of(model)
    if {name: tensor.shape for name, tensor in own.items()} != {name: t.shape for name, t in weights.items()}:
        raise RequestError("the saved weights do not fit the served model")
    for name, tensor in own.items():
        tensor.copy_(weights[name])


def device_memory(device: torch.device) -> int:
    """Bytes of memory that the device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ServeError(f"device {name!r} is unknown to torch or not there") from error
    return device


def _end_tokens(path: Path) -> list[int]:
    if not (path / "generation_config.json").is_file():
        return []
    ends = GenerationConfig.from_pretrained(path).eos_token_id
    return ends if isinstance(ends, list) else [ends]


@torch.inference_mode()
def _check_supported(model: nn.Module, directory: Path) -> int:
    """Sampling and training here assume full causal attention with a cache of keys and values, and logits that are
    head(hidden states). See that it is so; returns the bytes of the cache that a token takes.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        raise ServeError(f"{directory}: only full attention is supported, not {', '.join(sorted(kinds))}")
    ids = torch.arange(8)[None] % config.vocab_size
    try:
        output = model(input_ids=ids, use_cache=True)
        same = torch.allclose(logits_of(model, hidden_states(model, ids)), output.logits, atol=1e-3)
        cached = [part for layer in output.past_key_values.layers for part in (layer.keys, layer.values)]
    except (AttributeError, TypeError, RuntimeError) as error:
        raise ServeError(f"{directory}: {type(model).__name__} is not supported: {error}") from error
    if not same:
        raise ServeError(f"{directory}: {type(model).__name__} is not supported: it transforms its logits")
    return sum(part.numel() * part.element_size() for part in cached) // ids.numel()
