"""`transformers.generate` on the same rows: `python -m peers.hf_generate job.json result.json`, environment `trl`.

Each row stops, by a criterion, at the length of our answer to it. Our answers are then read back token by token.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from peers.job import Facts, Job, Result, Stopwatch, read_rows, serve
from peers.sums import digest
from peers.theirs import logprob_sums, padded, policy_model, tokenizer_of


class Lengths(StoppingCriteria):
    """Every row ends at its own length."""

    def __init__(self, limits: list[int], prompt: int) -> None:
        self.limits, self.prompt = torch.tensor(limits), prompt
        self.lengths = torch.zeros_like(self.limits)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        written = input_ids.shape[1] - self.prompt
        self.lengths = torch.where((self.lengths == 0) & (written >= self.limits), written, self.lengths)
        return self.lengths > 0


def write(job: Job) -> Result:
    """Sampled answers of the model with its adapter merged, which is its faster way."""
    tokenizer = tokenizer_of(job)
    model = policy_model(job, trainable=False).merge_and_unload().eval()
    model.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id)  # nothing else ends an answer
    watch = Stopwatch()
    prompts = [tokenizer(row["prompt"]).input_ids for row in read_rows(job.rows)]
    answers = json.loads(Path(job.answers).read_text())
    ids, mask = padded(prompts, left=True, pad=tokenizer.pad_token_id)
    ends = Lengths([len(answer) for answer in answers], ids.shape[1])
    torch.manual_seed(0)
    with watch, torch.no_grad():
        model.generate(input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                       max_new_tokens=job.new_tokens, stopping_criteria=StoppingCriteriaList([ends]))
    lengths = ends.lengths.tolist()
    facts = Facts(exact={"prompt token ids": digest(prompts), "new tokens": sum(lengths),
                         "new tokens of each row": digest(lengths)},
                  rounded={"summed log-prob of an answer of ours": logprob_sums(model, prompts, answers)}
                  if job.check else {})
    return watch.result(sum(lengths), facts=facts)


if __name__ == "__main__":
    serve({"generate": write})
