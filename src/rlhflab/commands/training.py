"""Commands that train and sample: demo, train, sample, export, average-roles."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from rlhflab.commands.shared import (
    DEFAULT_MODEL,
    Count,
    Folder,
    Json,
    Override,
    Seed,
    finish,
    print_value,
    quietly,
    registry_folder,
)
from rlhflab.errors import ConfigError


def demo_command(*, model: str = DEFAULT_MODEL, scenario: str = "helpdesk", seed: Seed = 0, out: Path | None = None,
                 resume: Path | None = None, quick: bool = False, as_json: Json = False) -> None:
    """Run the whole story on an embedded scenario, from preference data to a report.

    SFT, a reward model, DPO and PPO, each measured before and after.

    Args:
        model: A name of `rlhflab models`, a hub id, or a local transformers folder.
        scenario: A name of `rlhflab list scenarios` that makes and checks the data.
        seed: Of data, sampling and training.
        out: The new folder; under runs/ where absent.
        resume: A folder of a demo that was stopped: goes on after its last finished part.
        quick: A small pass through every part, to see that it works here. Its numbers say nothing.
        as_json: Print the result as JSON.
    """
    from rlhflab.progress import Progress
    from rlhflab.runs.demo import run_demo

    if out is not None and resume is not None:
        raise ConfigError("--out and --resume: a demo is new or goes on, so give one of them")
    folder = quietly(lambda: run_demo(model=model, scenario=scenario, seed=seed, out=out, resume=resume,
                                       quick=quick, progress=Progress()))
    finish(folder, as_json, next_step=f"open {folder / 'report.html'} in a browser")


def train_command(kind: Literal["sft", "reward", "dpo", "ppo", "best_of_n", "online_dpo"] | None = None,
                  run: Path | None = None, /, *overrides: Override, out: Path | None = None,
                  resume: Path | None = None, dry_run: bool = False, as_json: Json = False) -> None:
    """Train one role as a run file says.

    Any key of the run file can be changed by a flag: `--optimizer.learning_rate 1e-4`, `--loss.beta 0.05`.
    `rlhflab list dpo` shows the keys of a run file of that kind.

    Args:
        kind: What to train.
        run: The run file, YAML.
        overrides: Flags that change a key of the run file, each with its value.
        out: The new folder; under runs/ where absent.
        resume: The folder of a stopped run, which goes on from its last checkpoint. Nothing else is given with it.
        dry_run: Print the resolved run and an estimate of memory and time, and stop.
        as_json: Print the result as JSON.
    """
    from rlhflab.config import read_run
    from rlhflab.progress import Progress

    if resume is not None:
        if kind is not None or out is not None or dry_run:
            raise ConfigError("--resume: goes on with a run as it was begun, so nothing else can be given with it")
        from rlhflab.runs.training import resume_training

        folder = quietly(lambda: resume_training(resume, progress=Progress()))
    else:
        if kind is None or run is None:
            raise ConfigError("train: needs a kind and a run file, such as rlhflab train dpo recipes/dpo.yaml")
        settings = read_run(kind, run, overrides)
        from rlhflab.runs.estimate import describe_run
        from rlhflab.runs.training import run_training

        if dry_run:
            print_value(quietly(lambda: describe_run(settings)), as_json)
            return
        folder = quietly(lambda: run_training(settings, out=out, progress=Progress()))
    finish(folder, as_json, next_step=f"open {folder / 'report.html'} in a browser")


def sample_command(*, model: str = DEFAULT_MODEL, adapter: Path | None = None, prompts: str | None = None,
                   prompt: str | None = None, n: Count = 4, samples: Count = 1,
                   temperature: Annotated[float, Parameter(validator=Number(gte=0))] = 1.0,
                   max_new_tokens: Count = 64, seed: Seed = 0, as_json: Json = False) -> None:
    """Sample answers and print them.

    Args:
        model: A name of `rlhflab models`, a hub id, or a local transformers folder.
        adapter: An adapter folder; the base answers where absent.
        prompts: A JSONL file of prompts, or the name of a scenario; helpdesk where absent.
        prompt: One prompt, instead of --prompts.
        n: How many prompts, at most.
        samples: Answers a prompt.
        temperature: 1 samples from the model as it is, less is more predictable, 0 takes the likeliest token.
        max_new_tokens: Longest answer, tokens.
        seed: Of the sampling.
        as_json: Print the answers as JSON.
    """
    from rlhflab.runs.inspecting import sample_answers

    if prompt is not None and prompts is not None:
        raise ConfigError("--prompt and --prompts: give one of them")
    with tempfile.TemporaryDirectory() as scratch:
        source = prompts or "helpdesk"
        if prompt is not None:
            source = str(_one_prompt(prompt, Path(scratch)))
        answers = quietly(lambda: sample_answers(
            model=model, adapter=adapter, prompts=source, n=n, samples=samples, temperature=temperature,
            max_new_tokens=max_new_tokens, seed=seed))
    print_value(answers, as_json)


def export_command(adapter: str, /, *, out: Path, to: Literal["peft", "merged", "gguf-lora", "vllm"] = "peft",
                   model: str | None = None, dtype: Literal["bfloat16", "float32"] = "float32",
                   converter: Path | None = None, registry: Folder = None, as_json: Json = False) -> None:
    """Write a trained adapter for other tools, and measure how exactly they repeat it.

    The result is loaded by plain transformers and PEFT, and its log-probs on a few texts are compared.

    Args:
        adapter: A folder of any trainer, such as runs/my-dpo/roles/policy, a name in the registry, or
            DEPLOYMENT@active.
        out: The new folder.
        to: peft, an adapter folder; merged, the adapter folded into a whole model folder, with tokenizer and chat
            template; gguf-lora, a file for llama.cpp, made by its own converter; vllm, an adapter folder and what
            starts vLLM with it.
        model: A name of `rlhflab models`, a hub id, or a local folder; the base the adapter names where absent.
        dtype: Of the weights. Merging in bfloat16 is lossy: it rounds small changes away.
        converter: llama.cpp's folder, or its convert_lora_to_gguf.py; $LLAMA_CPP where absent.
        registry: Where names of adapters are looked up; $RLHFLAB_REGISTRY, or registry here, where absent.
        as_json: Print the result as JSON.
    """
    from rlhflab.progress import Progress
    from rlhflab.runs.export import export_adapter
    from rlhflab.runs.targets import target_of

    target = target_of(adapter, model=model, registry=registry_folder(registry))
    report = quietly(lambda: export_adapter(target, out=out, to=to, dtype=dtype, converter=converter,
                                            progress=Progress()))
    if as_json:
        print_value({"folder": str(out), **report}, True)
        return
    gap = report["deviation"]
    lossy = " Merging in bfloat16 is lossy: float32 keeps the adapter exactly." if (
        to == "merged" and dtype == "bfloat16") else ""
    print(f"Wrote {out}. Its log-probs differ from the adapter's by at most {gap['max']:.2g}, on average "
          f"{gap['mean']:.2g} nats a token ({gap['tokens']} tokens, {dtype}).{lossy} {_how_to_load(out, to, report)}")


def _how_to_load(out: Path, to: str, report: Mapping[str, Any]) -> str:
    if to == "gguf-lora":
        found = report["gguf"]
        return (f"{found['file']} holds {found['layers']} layers for {found['architecture']}. Next: llama-cli -m "
                f"BASE.gguf --lora {out / found['file']}")
    if to == "vllm":
        found = report["vllm"]
        return (f"Rank {found['rank']} is served with --max-lora-rank {found['max_lora_rank']} (vLLM takes at most "
                f"512). Next: sh {out / 'serve.sh'}, and ask for the model {found['served_as']}")
    return f"Next: load it with {'AutoModelForCausalLM' if to == 'merged' else 'PeftModel'}.from_pretrained"


def average_roles_command(folders: list[Path], /, *, out: Path, as_json: Json = False) -> None:
    """Make one reward role out of several by averaging their weights (WARM).

    Args:
        folders: Folders of saved reward roles of one base, such as runs/a/roles/reward.
        out: The new folder.
        as_json: Print where it is as JSON.
    """
    from rlhflab.model.averaging import average_roles

    path = quietly(lambda: average_roles(folders, out))
    print_value({"role": str(path)}, True) if as_json else print(
        f"Wrote {path}. Next: reward with it, --reward '[{{\"name\": \"role\", \"path\": \"{path}\"}}]'")


def _one_prompt(text: str, folder: Path) -> Path:
    """A file of one prompt, so that there is one way in for prompts."""
    from rlhflab.data.formats import write_jsonl

    if not text.strip():
        raise ConfigError("--prompt: is empty")
    write_jsonl(folder / "prompt.jsonl", [{"prompt": text, "id": "prompt"}])
    return folder / "prompt.jsonl"
