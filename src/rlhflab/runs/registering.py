"""`rlhflab registry add` and what needs a model: facts of the base, greedy transcripts, and whether they come again.

Moving a deployment's pointer is not here: that loads nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rlhflab.data.formats import read_prompts, turn_rows
from rlhflab.data.types import Message, Prompt
from rlhflab.errors import ModelError, RegistryError
from rlhflab.model.adapters import refuse_unsupported
from rlhflab.model.load import known_models, model_folder, weights_digest
from rlhflab.progress import Progress
from rlhflab.registry.records import (
    CONFIG,
    HEAD,
    TRANSCRIPTS,
    Adapter,
    BaseFacts,
    Provenance,
    canonical,
    checked_name,
    read_object,
    sha256_of,
)
from rlhflab.registry.sources import Source, data_facts, look_at, provenance, template_of
from rlhflab.registry.store import Added, Registry
from rlhflab.registry.told import told_by
from rlhflab.rollout.sampling import sample
from rlhflab.runs.folder import environment
from rlhflab.runs.lab import Lab

ROLE = "registered"
MOST_PROMPTS = 32
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What whoever adds an adapter says of it; it goes before what its files say."""

    by: str
    name: str | None = None
    model: str | None = None
    parents: tuple[str, ...] = ()
    data: tuple[Path, ...] = ()
    annotators: str | None = None
    note: str | None = None
    evaluations: Mapping[str, Any] = field(default_factory=dict)
    """How it was measured, beside what its run says."""
    transcripts: Path | None = None
    """Prompts whose greedy answers are kept."""
    max_new_tokens: int = 32


def add_adapter(registry: Registry, path: Path, said: Said, *, role: str | None, progress: Progress) -> Added:
    """Take the adapter at `path` into the registry with all that is known of it. RegistryError says what is wrong."""
    source = look_at(path, role=role)
    base = base_facts(source, said.model)
    _warn_of_what_cannot_be_loaded(source, progress)
    made = _made(registry, source, said)
    files: dict[str, Path | bytes] = dict(source.files)
    if said.transcripts is not None:
        files[TRANSCRIPTS] = (canonical(transcripts(source, base, said, progress)) + "\n").encode()

    def describe(digest: str, digests: Any) -> Adapter:
        name = checked_name(said.name, flag="--name") if said.name else f"adapter-{digest[:12]}"
        return Adapter(digest=digest, name=name, files=digests, base=base, rank=source.rank,
                       alpha=source.config.get("lora_alpha"), head=HEAD in source.files, made=made, note=said.note)

    return registry.add(files, describe, by=said.by)


def _warn_of_what_cannot_be_loaded(source: Source, progress: Progress) -> None:
    """A registry keeps what servers load; a gate of this lab has to load it too."""
    try:
        refuse_unsupported(source.config, where=str(source.files[CONFIG]))
    except ModelError as error:
        progress.say(f"Kept as it is, but neither gate nor evaluate can load it here: {error}")


def base_facts(source: Source, model: str | None) -> BaseFacts:
    """The base by name and by digests, of the model named, or of the one the adapter names where that is here.

    RegistryError where the adapter was trained on other weights than the model's.
    """
    told = source.base
    name = model or (told.name if told.name and _is_here(told.name) else None)
    if name is None:
        return told
    found = facts_of_model(name)
    if told.digest not in (None, found.digest):
        raise RegistryError(f"--model: the adapter was trained on base weights {told.digest}, and {name} has "
                            f"{found.digest}")
    return replace(found, template=told.template or found.template, tokenizer=told.tokenizer or found.tokenizer)


def facts_of_model(name: str) -> BaseFacts:
    """A model by name and by the digests of its files."""
    folder, label = model_folder(name)
    files = {each: folder / each for each in TOKENIZER_FILES if (folder / each).is_file()}
    return BaseFacts(name=label, digest=weights_digest(folder), template=template_of(files),
                     tokenizer=sha256_of(files["tokenizer.json"]) if "tokenizer.json" in files else None)


def _is_here(name: str) -> bool:
    return Path(name).is_dir() or any(row["name"] == name and row["available"] and not row["how"]
                                      for row in known_models())


def _made(registry: Registry, source: Source, said: Said) -> Provenance:
    made = provenance(source.run) if source.run else Provenance(told=told_by(source.folder))
    if said.parents:
        state = registry.state()
        made = replace(made, parents=tuple(state.find(each).digest for each in said.parents))
    if said.data:
        missing = next((each for each in said.data if not each.is_file()), None)
        if missing:
            raise RegistryError(f"--data: {missing}: no such file")
        made = replace(made, data=tuple({"key": "data", "name": str(each), **data_facts(each)} for each in said.data))
    if said.evaluations:
        made = replace(made, evaluations={**(made.evaluations or {}), **said.evaluations})
    return replace(made, annotators=said.annotators or made.annotators)


def transcripts(source: Source, base: BaseFacts, said: Said, progress: Progress) -> dict[str, Any]:
    """Greedy answers of an adapter, as tokens, and what they depend on."""
    assert said.transcripts is not None
    if HEAD in source.files:
        raise RegistryError("--transcripts: the adapter has a head, so it scores answers and writes none")
    prompts = read_prompts(said.transcripts)
    if len(prompts) > MOST_PROMPTS:
        raise RegistryError(f"{said.transcripts}: holds {len(prompts)} prompts; at most {MOST_PROMPTS} are kept as "
                            "transcripts")
    lab = _lab(said.model or base.name, "float32", progress)
    answers = _greedy(lab, source.folder, prompts, said.max_new_tokens)
    return {"dtype": "float32", "max_new_tokens": said.max_new_tokens, "made_with": environment(),
            "base_digest": lab.model.base.digest, "rows": [
                {"messages": turn_rows(prompt.messages), "tokens": list(tokens), "text": text}
                for prompt, (tokens, text) in zip(prompts, answers, strict=True)]}


def check_transcripts(registry: Registry, adapter: Adapter, *, model: str | None, progress: Progress) -> dict[str, Any]:
    """Whether an adapter answers as it did when it was added, and whether the base is untouched by it.

    The base's logits are read before the adapter is loaded, and with it loaded and off after it answered; they have to
    agree in every bit. RegistryError where the adapter has no transcripts.
    """
    path = registry.path_of(adapter) / TRANSCRIPTS
    if TRANSCRIPTS not in adapter.files:
        raise RegistryError(f"{adapter.name}: has no transcripts; they are made by registry add --transcripts")
    kept = read_object(path)
    lab = _lab(model or adapter.base.name, kept["dtype"], progress)
    if lab.model.base.digest != kept["base_digest"]:
        raise RegistryError(f"--model: the transcripts were made on base weights {kept['base_digest']}, and "
                            f"{lab.model.base.name} has {lab.model.base.digest}")
    prompts = [Prompt(id=str(place), messages=tuple(Message(**turn) for turn in row["messages"]))
               for place, row in enumerate(kept["rows"])]
    before = _base_logits(lab, prompts)
    answers = _greedy(lab, registry.path_of(adapter), prompts, kept["max_new_tokens"])
    after = _base_logits(lab, prompts)
    equal = all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    failures = [] if equal else [{"path": "base logits, adapter off", "expected": "equal in every bit",
                                  "found": "others"}]
    for place, (row, (tokens, text)) in enumerate(zip(kept["rows"], answers, strict=True)):
        if row["tokens"] != list(tokens):
            failures.append({"path": f"{TRANSCRIPTS}:{place}", "expected": json.dumps(row["text"], ensure_ascii=False),
                             "found": json.dumps(text, ensure_ascii=False)})
    return {"reproduced": len(prompts) - len([each for each in failures if each["path"] != "base logits, adapter off"]),
            "n": len(prompts), "base_logits_equal": equal, "failures": failures,
            "same_versions": kept["made_with"]["versions"] == environment()["versions"]}


def _lab(name: str | None, dtype: str, progress: Progress) -> Lab:
    if name is None:
        raise ModelError("the adapter does not say which base it was trained on; name it with --model")
    progress.say(f"Loading {name} ...")
    return Lab.load(name, dtype=dtype, device="cpu", progress=progress)


def _greedy(lab: Lab, folder: Path, prompts: list[Prompt], most: int) -> list[tuple[tuple[int, ...], str]]:
    """(tokens, text) of the likeliest answer to each prompt; asked one by one, so that none depends on the others."""
    lab.model.load_role(ROLE, folder)
    answers = []
    with lab.progress.track("answering", len(prompts)) as bar:
        for prompt in prompts:
            [answer] = sample(lab.model, lab.chat, [prompt], role=ROLE, samples=0, greedy=True, max_new_tokens=most)
            answers.append((tuple(answer.token_ids), answer.text))
            bar.advance()
    return answers


def _base_logits(lab: Lab, prompts: list[Prompt]) -> list[torch.Tensor]:
    """Of the base alone, at every token of each prompt, whatever adapters are loaded; (t, v) each."""
    logits = []
    with lab.model.writing(None):
        for prompt in prompts:
            ids = torch.tensor([lab.chat.prompt(prompt)], device=lab.model.device)
            hidden = lab.model.decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
            logits.append(torch.nn.functional.linear(hidden, lab.model.unembedding))
    return logits
