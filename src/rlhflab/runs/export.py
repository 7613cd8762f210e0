"""`rlhflab export`: a trained adapter for other tools, as it is or folded into the weights, and how exact that is."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from rlhflab.core.batch import pack
from rlhflab.errors import ModelError, RunError
from rlhflab.model.plain import plain_logprobs, plain_model
from rlhflab.model.shared import HEAD, SharedModel, adapter_digest, base_of
from rlhflab.progress import Progress
from rlhflab.runs.lab import Lab
from rlhflab.runs.probes import fixed_trees

ROLE = "exported"
LARGEST_DEVIATION = 1e-3
"""Nats a token, in fp32, where folding an adapter in changes nothing but rounding."""


def export_adapter(adapter: Path, *, out: Path, merge: bool, model: str | None, dtype: str, device: str = "auto",
                   progress: Progress) -> dict[str, Any]:
    """Write `adapter` to the new folder `out`, and `export.json` into it, which is returned.

    Without `merge` it is an adapter folder for plain PEFT, with it a whole model folder for plain transformers. Either
    is loaded again by those, and the deviation of its log-probs from the lab's is measured, nats a token.
    """
    if out.exists():
        raise RunError(f"{out}: exists already; give another --out, or remove it yourself")
    base = model or base_of(adapter)
    if merge and (adapter / HEAD).is_file():
        raise ModelError(f"{adapter}: has a head beside it, which a language model cannot hold; leave --merge out")
    progress.say(f"Loading {base} ...")
    lab = Lab.load(base, dtype=dtype, device=device, progress=progress)
    lab.model.load_role(ROLE, adapter, head="stored" if (adapter / HEAD).is_file() else "none")
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    try:
        if merge:
            _write_merged(lab.model, base, unfinished)
        else:
            lab.model.save_role(ROLE, unfinished)
        report = {
            "kind": "merged model" if merge else "adapter", "base": lab.model.base.name,
            "base_digest": lab.model.base.digest, "adapter_digest": adapter_digest(adapter), "dtype": dtype,
            "deviation": _deviation(lab, base, unfinished, merged=merge)}
        _refuse_deviation(report, out)
        (unfinished / "export.json").write_text(json.dumps(report, indent=2) + "\n")
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return report


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
