"""`rlhflab sample`: look at a policy without training it."""

from pathlib import Path
from typing import Any

from rlhflab.config import make_run
from rlhflab.data.formats import read_prompts
from rlhflab.progress import Progress
from rlhflab.rollout.sampling import sample
from rlhflab.runs.lab import Lab
from rlhflab.scenarios import names
from rlhflab.scenarios import scenario as scenario_named


def sample_answers(*, model: str, adapter: Path | None, prompts: str, n: int, samples: int, temperature: float,
                   max_new_tokens: int, seed: int) -> list[dict[str, Any]]:
    """Answers to the first `n` prompts of a file or a scenario, as rows. Temperature 0: the most likely answer."""
    asked = scenario_named(prompts).prompts("evaluation", n, seed=seed) if prompts in names() else \
        read_prompts(Path(prompts))[:n]
    lab, role = _with_policy(model, adapter)
    greedy = temperature == 0
    rollouts = sample(lab.model, lab.chat, asked, role=role, samples=0 if greedy else samples, greedy=greedy,
                      max_new_tokens=max_new_tokens, temperature=temperature or 1.0, seed=seed)
    return [{"prompt_id": r.prompt.id, "prompt": r.prompt.messages[-1].content, "answer": r.text, "finish": r.finish,
             "tokens": len(r.token_ids), "seed": r.seed} for r in rollouts]


def _with_policy(model: str, adapter: Path | None) -> tuple[Lab, str | None]:
    lab = Lab.load(model, progress=Progress())
    if adapter is None:
        return lab, None
    lab.start_role("policy", make_run("sft", {"model": model, "start": str(adapter)}))
    return lab, "policy"
