"""`rlhflab export`: a trained adapter for other tools, and how exactly they repeat it.

For plain PEFT, folded into the weights, for vLLM (`export_vllm.py`), or for llama.cpp (`export_gguf.py`).
"""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from rlhflab.core.batch import pack
from rlhflab.errors import ModelError, RunError
from rlhflab.model.plain import plain_logprobs, plain_model
from rlhflab.model.shared import HEAD, SharedModel, adapter_digest
from rlhflab.progress import Progress
from rlhflab.runs.export_gguf import converter_of, write_gguf
from rlhflab.runs.export_vllm import allowed_rank, write_preset
from rlhflab.runs.lab import Lab
from rlhflab.runs.probes import fixed_trees
from rlhflab.runs.targets import Target

ROLE = "exported"
LARGEST_DEVIATION = 1e-3
"""Nats a token, in fp32, where folding an adapter in changes nothing but rounding."""
Form = Literal["peft", "merged", "gguf-lora", "vllm"]
KINDS: dict[Form, str] = {"peft": "adapter", "merged": "merged model", "gguf-lora": "GGUF adapter",
                          "vllm": "adapter with a preset for vLLM"}


def export_adapter(target: Target, *, out: Path, to: Form, dtype: str, converter: Path | None = None,
                   device: str = "auto", progress: Progress) -> dict[str, Any]:
    """Write the adapter of `target` to the new folder `out` in one form, and `export.json` into it, which is returned.

    What was written is loaded again by plain transformers and PEFT, and the deviation of its log-probs from the lab's
    is measured, nats a token. Of a GGUF file that is done with what was converted, and its tensors are compared.
    """
    if out.exists():
        raise RunError(f"{out}: exists already; give another --out, or remove it yourself")
    if target.adapter is None:
        raise ModelError(f"{target.name}: is no adapter; export needs one")
    head = (target.adapter / HEAD).is_file()
    if head and to != "peft":
        raise ModelError(f"{target.adapter}: has a head beside it, which a language model cannot hold; leave --to out")
    script = converter_of(converter) if to == "gguf-lora" else None
    progress.say(f"Loading {target.model} ...")
    lab = Lab.load(target.model, dtype=dtype, device=device, progress=progress)
    lab.model.load_role(ROLE, target.adapter, head="stored" if head else "none")
    _refuse_form(lab.model, to)
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    try:
        more = _write(lab.model, target.model, unfinished, to=to, name=out.name, script=script, dtype=dtype)
        read = unfinished / "adapter" if to in ("gguf-lora", "vllm") else unfinished
        report = {
            "kind": KINDS[to], "base": lab.model.base.name, "base_digest": lab.model.base.digest,
            "adapter_digest": adapter_digest(target.adapter), "dtype": dtype,
            "deviation": _deviation(lab, target.model, read, merged=to == "merged"), **more}
        _refuse_deviation(report, out)
        if to == "gguf-lora":
            shutil.rmtree(read)
        (unfinished / "export.json").write_text(json.dumps(report, indent=2) + "\n")
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return report


def _refuse_form(model: SharedModel, to: Form) -> None:
    """ModelError for what the tool that reads the form cannot compute."""
    lora = model.lora_of(ROLE)
    if lora.dora and to in ("gguf-lora", "vllm"):
        raise ModelError(f"--to {to}: the adapter is DoRA, which {'llama.cpp' if to == 'gguf-lora' else 'vLLM'} cannot "
                         "apply; fold it into the weights: --to merged")
    if to == "vllm":
        allowed_rank(lora.rank)


def _write(model: SharedModel, base: str, folder: Path, *, to: Form, name: str, script: Path | None,
           dtype: str) -> dict[str, Any]:
    """Write the role to the new `folder`; what its form adds to the report."""
    if to == "merged":
        _write_merged(model, base, folder)
        return {}
    if to == "peft":
        model.save_role(ROLE, folder)
        return {}
    folder.mkdir()
    model.save_role(ROLE, folder / "adapter")
    if to == "vllm":
        return {"vllm": write_preset(folder, name=name, base=base, tokenizer=model.tokenizer,
                                     rank=model.lora_of(ROLE).rank)}
    assert script is not None
    return {"gguf": write_gguf(folder, lora=model.lora_of(ROLE), base=base, script=script, dtype=dtype)}


def _write_merged(model: SharedModel, base: str, folder: Path) -> None:
    """A transformers folder with the role folded into a second copy of the weights; that in memory stays as it is."""
    merged = plain_model(base, dtype=model.unembedding.dtype, device="cpu")
    left = merged.load_state_dict(model.merged_weights(ROLE), strict=False)
    assert not left.unexpected_keys, left.unexpected_keys
    merged.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def _deviation(lab: Lab, base: str, folder: Path, *, merged: bool) -> dict[str, float]:
    """Of log-probs by plain transformers and PEFT from those of the role, on a few texts, nats a token."""
    trees = fixed_trees(lab.chat)
    with torch.no_grad():
        ours = lab.model.logprobs(pack(trees).to(lab.model.device), ROLE).logprob
    load = {"dtype": lab.model.unembedding.dtype, "device": lab.model.device}
    plain = plain_model(str(folder), **load) if merged else plain_model(base, **load, adapter=folder)
    gap = (plain_logprobs(plain, trees) - ours).abs()
    return {"max": float(gap.max()), "mean": float(gap.mean()), "tokens": len(gap)}


def _refuse_deviation(report: dict[str, Any], out: Path) -> None:
    """In bf16 the deviation is only reported: it is what rounding the weights costs."""
    most = report["deviation"]["max"]
    if not most < float("inf") or (report["dtype"] == "float32" and most > LARGEST_DEVIATION):
        raise RunError(f"{out}: not written, since plain transformers gives other log-probs than the adapter (by up to "
                       f"{most:.3g} nats a token, at most {LARGEST_DEVIATION:g} is rounding)")
