"""What a run file may say: one frozen model per kind of run. No torch here.

The file describes the run, dotted flags change values (`--optimizer.learning_rate 2e-4`), and the resolved
settings are saved with the run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rlhflab.errors import ConfigError
from rlhflab.presets import preset_values


class Settings(BaseModel):
    """A section of a run file: every key is known, every value is fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=Settings)


class Choice(BaseModel):
    """A catalogue entry by name, with its options beside the name: `{name: dpo, beta: 0.1}`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The options given, unchecked: the catalogue checks them when the choice is bound."""
        return dict(self.model_extra or {})


class Lora(Settings):
    """A low-rank adapter (Hu et al. 2021, arXiv:2106.09685) on every linear layer of the blocks."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    """Scale: the product is multiplied by alpha / rank."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, which keeps the scale as ranks grow (arXiv:2312.03732)."""
    dora: bool = False
    """Learn each output's magnitude apart from its direction (arXiv:2402.09353); slower, and cannot be stacked."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the adapter's input, in training only. Refused by PPO, where it would break the probability ratio."""
    targets: str | list[str] = "all-linear"
    """Names of the layers to adapt."""
    last_layers: int | None = Field(None, ge=1)
    """Adapt only so many blocks, counted from the last; all where absent."""

    @model_validator(mode="after")
    def _names_for_some_layers(self) -> "Lora":
        if self.last_layers is not None and isinstance(self.targets, str) and self.targets != "all-linear":
            raise ValueError("last_layers needs targets as a list of names, not as an expression")
        return self


class Optimizer(Settings):
    """AdamW with warm-up and decay. Gradients are clipped by their global norm."""

    learning_rate: float = Field(2e-4, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Shape of the decay after warm-up."""
    final_share: float = Field(0.0, ge=0, le=1)
    """Share of the rate at which the decay ends."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the rate rises; the first step already has 1/N of it."""
    weight_decay: float = Field(0.0, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    """.inf for no clipping."""


class Detect(Settings):
    """Detectors of reward hacking that look at a run while it is under way."""

    every: int = Field(5, ge=1)
    """Steps between two looks."""
    detectors: Sequence[Choice] | None = None
    """Names of `rlhflab list detectors`, or `{name: ..., options}`; all whose needs are met where absent."""
    stop: Sequence[str] = ()
    """Detectors whose alarm ends the run."""
    start_answers: int = Field(128, ge=0)
    """Answers of the start policy to the run's own prompts, with which later ones are compared; 0 for none."""
    twin: str | None = None
    """Folder of a reward role learnt from other data, which scores every answer beside the reward."""
    canary: int = Field(0, ge=0)
    """Fixed prompts whose answers are checked against what is right, now and then; 0 for none."""
    canary_every: int = Field(2, ge=1)
    """Steps between two such checks."""
    canary_rewards: bool = True
    """Whether the reward scores these answers too, which some detectors need."""
    pressed: int = Field(0, ge=0)
    """Fixed questions asked beside them, each twice, the second time by somebody who is sure of a wrong answer; 0 for
    none. Needs a scenario whose questions are about notes."""

    @field_validator("detectors", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [{"name": each} if isinstance(each, str) else each for each in value]

    @model_validator(mode="after")
    def _stop_at_what_looks(self) -> "Detect":
        unheard = [name for name in self.stop if self.detectors and name not in {each.name for each in self.detectors}]
        if unheard:
            raise ValueError(f"stop names {unheard[0]}, which is not among the detectors of the run")
        return self


class Run(Settings):
    """What every run says."""

    kind: ClassVar[str]

    preset: str | None = None
    """A name of `rlhflab list presets`, whose values lie under those of the file and the flags."""
    model: str = "smollm2-135m"
    """A name of `rlhflab models`, a hub id, or a local transformers folder."""
    start: str | None = None
    """Adapter folder the trained role starts as a copy of, in that adapter's shape; the base where absent."""
    stack: bool = False
    """Keep `start` frozen and train a fresh adapter, as `lora` says, on top of it. What is saved is the two as one.

    Without `start` the fresh adapter is on the base, as it would be anyway.
    """
    data: str = "helpdesk"
    """A JSONL file, or the name of a scenario that makes its own data."""
    gold: str | None = None
    """Scenario whose gold check judges this run's answers, for the log only; that of `data` where it is one."""
    examples: int = Field(256, ge=1)
    """How many examples a scenario makes. A file is used whole."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the frozen base. auto: bfloat16 where the processor or GPU multiplies it natively, else float32. Adapters and
    optimizer state are always fp32."""
    quantize: Literal["nf4"] | None = None
    """Keep the base's layers in 4 bits (arXiv:2305.14314); `dtype` is then that of the products. Needs a GPU."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1."""
    seed: int = Field(0, ge=0)
    lora: Lora = Lora()
    optimizer: Optimizer = Optimizer()
    epochs: int = Field(1, ge=1)
    steps: int | None = Field(None, ge=1)
    """Optimizer steps (rollouts, where a run samples) at most; the data's length decides where absent."""
    batch: int = Field(16, ge=1)
    """Conversations, or prompts with all their pairs, an optimizer step."""
    max_length: int = Field(1024, ge=8)
    """Longest prompt plus answer, tokens."""
    overlong: Literal["error", "drop"] = "error"
    """What happens to a row over `max_length`: an error that names it, or dropped and counted."""
    micro_tokens: int = Field(512, ge=1)
    """Tokens (with padding) in one forward pass; bounds memory, changes no result. 16,384 on a GPU where not given."""
    memory_gb: float | None = Field(None, gt=0)
    """Memory of the whole process (on a GPU, of its tensors), GB; `micro_tokens` is then derived from it at start."""
    checkpoint_every: int = Field(10, ge=0)
    """Steps between two checkpoints, from which a stopped run goes on; 0 for none."""
    recompute: bool = False
    """Drop activations and recompute them in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _stack_of_sums(self) -> "Run":
        if self.stack and self.lora.dora:
            raise ValueError("stack: true and lora.dora: true exclude each other, since a DoRA layer is not a sum")
        return self


class SftRun(Run):
    """Supervised fine-tuning on the assistant's turns."""

    kind: ClassVar[str] = "sft"
    epochs: int = Field(2, ge=1)
    optimizer: Optimizer = Optimizer(learning_rate=5e-4)


class RewardRun(Run):
    """A reward role and its head from preference pairs (Bradley-Terry)."""

    kind: ClassVar[str] = "reward"
    features: Literal["trained", "frozen"] = "trained"
    """trained: adapter and head learn. frozen: only a linear head on the states of `start`, a convex fit in seconds."""
    heads: int = Field(1, ge=1, le=32)
    """Members of an ensemble that shares the adapter, each on a bootstrap of the prompts (arXiv:2310.02743)."""
    length_head: bool = False
    """A second head takes what length explains, and is dropped after training (ODIN, arXiv:2402.07319)."""
    length_weight: float = Field(1.0, ge=0)
    """Of ODIN's correlation term."""
    orthogonality: float = Field(1.0, ge=0)
    """Of ODIN's |cos| of the two heads."""
    held_out: float = Field(0.2, gt=0, lt=1)
    """Share of the prompts kept for the accuracy."""
    margin: float = Field(0.0, ge=0)
    """Score gap asked for, times a pair's strength (Llama 2, arXiv:2307.09288 eq. 2)."""
    centering: float = Field(0.01, ge=0)
    """Weight of (r_chosen + r_rejected)^2, which fixes the free constant (Eisenstein et al., arXiv:2312.09244)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the labels taken to be flipped."""
    head_learning_rate: float = Field(3e-3, ge=0)
    ridge: float = Field(0.01, gt=0)
    """Weight of half the squared norm of a head on frozen features, in units of their deviations."""

    @model_validator(mode="after")
    def _one_kind_of_head(self) -> "RewardRun":
        if self.length_head and (self.heads > 1 or self.features == "frozen"):
            raise ValueError("length_head: true needs heads: 1 and features: trained")
        if self.length_head and self.lora.dropout:
            raise ValueError("length_head: true reads every answer twice, so lora.dropout must be 0")
        return self


class MovingReference(Settings):
    """The reference follows the policy (TR-DPO, arXiv:2404.09656 eq. 1): new = mix x policy + (1 - mix) x reference."""

    mix: float = Field(0.6, gt=0, le=1)
    every: int = Field(512, ge=1)
    """Optimizer steps between two moves."""


class PairObjective(Settings):
    """What the loss of a preference run reads."""

    loss: Choice = Choice(name="dpo")
    """A name of `rlhflab list losses`."""
    length: Literal["sum", "mean"] = "sum"
    """What the loss reads of an answer: the sum of its tokens' log-probs, or their mean (then beta is 2 to 10)."""
    ld_alpha: float | None = Field(None, ge=0, le=1)
    """Weight of the tokens beyond the length of the pair's shorter answer (LD-DPO, arXiv:2409.06411); none for 1."""
    nll_weight: float = Field(0.0, ge=0)
    """Weight of the chosen answer's negative log-likelihood, nats a token (arXiv:2404.19733: 1, 2405.16436: .005)."""

    @model_validator(mode="after")
    def _correct_for_length_once(self) -> "PairObjective":
        if self.length == "mean" and self.ld_alpha is not None:
            raise ValueError("length: mean and ld_alpha both correct for length; give one of them")
        return self


class DpoRun(Run, PairObjective):
    """Learning from preferences without a reward model: DPO and its relatives; the loss is a name of the catalogue."""

    kind: ClassVar[str] = "dpo"
    reference_ema: MovingReference | None = None
    """Move the reference towards the policy as training goes on; none keeps it where the policy started."""
    probe_prompts: int = Field(16, ge=0)
    """Prompts on which fresh samples measure the KL to the reference; 0 for none."""
    probe_every: int = Field(10, ge=1)
    """Optimizer steps between two such measurements."""
    probe_tokens: int = Field(48, ge=1)
    """Longest answer of the probe, tokens."""
    detect: Detect | None = None
    """Detectors that look at the run while it is under way; none for no looking and no cost."""


class EndRule(Settings):
    """What an answer that did not stop by itself scores."""

    rule: Literal["none", "subtract", "replace"] = "subtract"
    """subtract: score - value (TRL's missing_eos_penalty); replace: -value (N+ implementation details)."""
    value: float = Field(1.0, ge=0)


class RewardSource(Choice):
    """One term of the reward: `{name: role, path: runs/reward/roles/reward, weight: 1.0}`."""

    weight: float = 1.0
    shaping: Choice | None = None
    """What its scores go through first, such as `{name: par}`; `rlhflab list shapings` shows them."""
    cap: float | None = Field(None, gt=0)
    """Scores, shaped, are cut off at -cap and cap, before the weight."""


class Constraint(Settings):
    """A check that answers are to pass on the mean; its price rises until they do (arXiv:2310.04373)."""

    check: Choice
    """A name of `rlhflab list verifiers` or `rlhflab list rewards`, with its options."""
    at_least: float
    """The mean that is asked for, in the units of the check."""
    rate: float = Field(0.1, gt=0)
    """By how much the price rises for a mean that is 1 too low, in units of the reward."""
    most: float = Field(10.0, gt=0)
    """Highest price."""


class SampledRun(Run):
    """What every run says that learns from answers it samples itself, scored by a reward."""

    batch: int = Field(8, ge=1)
    """Prompts a rollout."""
    samples: int = Field(4, ge=1)
    """Answers a prompt."""
    steps: int | None = Field(30, ge=1)
    """Rollouts, each followed by its optimizer steps."""
    reward: Sequence[RewardSource] = (RewardSource(name="role"),)
    constraints: Sequence[Constraint] = ()
    """Checks that answers are to pass on the mean, each with a price that rises until they do."""
    end: EndRule = EndRule()
    reward_clip: float | None = Field(None, gt=0)
    """Scores beyond plus or minus this are cut to it, before the end rule."""
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(40, ge=1)
    engine: Choice = Choice(name="torch")
    """What writes the answers: a name of `rlhflab list engines`."""
    top_k: int = 0
    """Must be 0: log-probs are those of the whole distribution that was sampled from, so nothing may be cut off."""
    top_p: float = 1.0
    """Must be 1, for the same reason."""
    detect: Detect | None = None
    """Detectors that look at the run while it is under way; none for no looking and no cost."""

    @model_validator(mode="after")
    def _keep_the_logprobs_true(self) -> Self:
        for key, value, needed in (("top_k", self.top_k, 0), ("top_p", self.top_p, 1)):
            if value != needed:
                raise ValueError(f"{key} must be {needed} where a run samples: the log-probs are those of the whole "
                                 "distribution, and the probability ratio would compare two different ones")
        if self.lora.dropout:
            raise ValueError("lora.dropout must be 0 where a run samples: sampler and trainer would disagree about the "
                             "log-probs, which breaks the probability ratio")
        return self


class PpoRun(SampledRun):
    """Policy optimisation on a reward with a KL term: PPO (arXiv:1707.06347), or RLOO or GRPO by `advantage`."""

    kind: ClassVar[str] = "ppo"
    epochs: int = Field(2, ge=1)
    """Passes over a rollout, each of `minibatches` optimizer steps."""
    minibatches: int = Field(1, ge=1)
    optimizer: Optimizer = Optimizer(learning_rate=2e-4, epsilon=1e-5)
    value_learning_rate: float = Field(1e-3, ge=0)
    """Of the value role's head; its adapter learns at `value_adapter_learning_rate`."""
    value_adapter_learning_rate: float | None = Field(None, ge=0)
    """That of the policy where absent."""
    advantage: Choice = Choice(name="gae")
    """A name of `rlhflab list advantages`; gae trains a critic, rloo and grpo do without."""
    policy_loss: Choice = Choice(name="clip")
    """A name of `rlhflab list policy_losses`."""
    token_mean: Literal["token", "answer", "budget"] = "token"
    """What a token counts: all the same; less in a long answer (GRPO); 1 / `max_new_tokens` an answer (Dr. GRPO)."""
    entropy_coefficient: float = Field(0.0, ge=0)
    """Weight of the entropy of each token's distribution, which the policy is paid for."""
    kl_coefficient: float = Field(0.02, ge=0)
    """Weight of the per-token estimate of KL(policy, reference), in units of the reward a nat."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the KL term stands: taken off each token's reward, or added to its loss."""
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    """k1 in the reward and k2 in the loss where absent; see docs/methods/policy-optimisation.md."""
    kl_target: float | None = Field(None, gt=0)
    """Nats an answer that the coefficient is steered to after each rollout (arXiv:1909.08593); fixed where absent."""
    kl_horizon: float = Field(10_000, gt=0)
    """Answers over which the steered coefficient can grow or shrink by about 20 %."""
    stop_kl: float | None = Field(None, gt=0)
    """KL from the policy that sampled, nats a token, above which the rest of a rollout's steps is left out."""
    critic_warmup: int = Field(0, ge=0)
    """Rollouts at the start on which the critic learns and the policy does not."""
    value_clip: float | None = Field(0.2, gt=0)
    """none for no clipping."""
    value_coefficient: float = Field(0.5, gt=0)

    @property
    def kl_kind(self) -> str:
        """The estimator, with its default filled in."""
        return self.kl_estimator or {"reward": "k1", "loss": "k2"}[self.kl_in]

    @model_validator(mode="after")
    def _can_learn(self) -> Self:
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError("kl_estimator must be k2 or k3 in the loss: the gradient of k1 there is zero on average, "
                             "so nothing would hold the policy")
        if self.steps is not None and self.critic_warmup >= self.steps:
            raise ValueError("critic_warmup must be below steps, or the policy never learns")
        return self


class BestOfNRun(SampledRun):
    """Best-of-n fine-tuning (RAFT, arXiv:2304.06767): sample, keep each prompt's best answer by reward, learn it."""

    kind: ClassVar[str] = "best_of_n"
    samples: int = Field(8, ge=2)
    """Answers a prompt, of which one is kept."""
    epochs: int = Field(1, ge=1)
    """Optimizer steps on the kept answers of a rollout."""
    optimizer: Optimizer = Optimizer(learning_rate=2e-4)


class OnlineDpoRun(SampledRun, PairObjective):
    """Online DPO (arXiv:2402.04792): sample, let the reward choose, one DPO step on the fresh pair of each prompt."""

    kind: ClassVar[str] = "online_dpo"
    samples: int = Field(2, ge=2)
    """Answers a prompt; of more than two, the best and the worst are the pair."""
    epochs: int = Field(1, ge=1)
    """Optimizer steps on the pairs of a rollout."""
    optimizer: Optimizer = Optimizer(learning_rate=2e-4)


KINDS: Mapping[str, type[Run]] = {run.kind: run for run in (
    SftRun, RewardRun, DpoRun, PpoRun, BestOfNRun, OnlineDpoRun)}


def read_yaml(path: Path, *, what: str) -> dict[str, Any]:
    """The keys and values of a YAML file, which is a `what` to its reader. ConfigError names the file."""
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such {what}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a {what} holds keys and values, found {type(content).__name__}")
    return content


def read_run(kind: str | None, path: Path, overrides: Sequence[str] = ()) -> Run:
    """The run that `path` describes, changed by `overrides` (`--a.b value` or `--a.b=value` tokens).

    `kind` None takes the kind that the file names. Raises ConfigError naming the file and the key.
    """
    content = read_yaml(path, what="run file")
    declared = content.pop("kind", kind)
    if kind is None and declared not in KINDS:
        raise ConfigError(f"{path}: kind: is {declared!r}, not one of {', '.join(KINDS)}")
    if declared != (kind or declared):
        raise ConfigError(f"{path}: kind: this file describes a {declared} run, not {kind}")
    for key, value in parse_overrides(overrides):
        _set_dotted(content, key, value)
    return make_run(declared, content, where=str(path))


def checked(section: type[S], content: Mapping[str, Any], *, where: str, what: str) -> S:
    """`content` as a `section`, to its reader a `what`; ConfigError names `where`, the key and what is known."""
    try:
        return section.model_validate(content)
    except ValidationError as error:
        raise ConfigError("; ".join(_in_words(where, problem, section, what) for problem in error.errors())) from error


def make_run(kind: str, content: Mapping[str, Any], *, where: str = "run") -> Run:
    """Validated settings of a run of `kind`, over those of its preset; ConfigError names `where` and the key."""
    below = _under(KINDS[kind])
    if (name := content.get("preset")) is not None:
        below = _laid_over(below, preset_values(str(name), kind=kind, where=where))
    return checked(KINDS[kind], _laid_over(below, content), where=where, what=f"{kind} run")


def _under(run: type[Run]) -> dict[str, Any]:
    """What a file that names only some keys of a section leaves as it is: a section's own values for this kind of run,
    and the catalogue entry whose options it changes.
    """
    defaults = {key: field.default for key, field in run.model_fields.items()}
    return {key: {"name": value.name} if isinstance(value, Choice) else value.model_dump(exclude_unset=True)
            for key, value in defaults.items() if isinstance(value, Settings | Choice)}


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `above`, and those of `below` where it has none. Another catalogue entry keeps no option of the one
    below.
    """
    result = dict(below)
    for key, value in above.items():
        under = below.get(key)
        same = isinstance(under, Mapping) and isinstance(value, Mapping) and \
            value.get("name", under.get("name")) == under.get("name")
        result[key] = _laid_over(under, value) if same else value  # type: ignore[arg-type]
    return result


def parse_overrides(tokens: Sequence[str]) -> list[tuple[str, Any]]:
    """`["--loss.beta", "0.05", "--batch=8"]` -> `[("loss.beta", 0.05), ("batch", 8)]`."""
    pairs, rest = [], list(tokens)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise ConfigError(f"{flag}: expected a flag such as --optimizer.learning_rate")
        key, equals, value = flag[2:].partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"{flag}: has no value")
            value = rest.pop(0)
        try:
            pairs.append((key.replace("-", "_"), yaml.safe_load(value)))
        except yaml.YAMLError as error:
            raise ConfigError(f"{flag}: {value!r} is not a YAML value") from error
    return pairs


def _set_dotted(content: dict[str, Any], key: str, value: Any) -> None:
    """Set `content["a"]["b"]` for key `a.b`, keeping the other keys of `a`."""
    *parents, last = key.split(".")
    for parent in parents:
        below = content.setdefault(parent, {})
        if not isinstance(below, dict):
            raise ConfigError(f"--{key}: {parent} is a value here, not a section")
        content = below
    content[last] = value


def _in_words(where: str, problem: Any, section: type[Settings], what: str) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
    if problem["type"] == "extra_forbidden":
        return f"{where}: {key}: unknown key; a {what} knows {', '.join(sorted(section.model_fields))}"
    return f"{where}: {key}: {problem['msg'][:1].lower()}{problem['msg'][1:]}, found {problem['input']!r}"
