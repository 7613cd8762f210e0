"""What a demo's numbers say, in plain words. A change whose interval holds 0 is called no change, not a trend."""

from collections.abc import Mapping, Sequence

from rlhflab.analysis.figures import POLICY_NAMES, short, spoken
from rlhflab.analysis.page import signed
from rlhflab.analysis.report_data import START_OF, Change, Point, ReportData, gold_change
from rlhflab.core.stats import Estimate

PROXY_GAIN = 0.5
"""Sigma of the learnt reward PPO must gain before a fall of gold is called a sign of reward hacking."""


def verdict(data: ReportData, changes: Sequence[Change], ppo: Mapping[str, Sequence[Point]]) -> list[str]:
    """Sentences of the first paragraph; none for a demo that has evaluated nothing."""
    sentences = [sentence for policy in START_OF if (sentence := on_gold(data, policy, changes))]
    if hacking := on_reward(ppo):
        sentences.append(hacking)
    if changes:
        sentences.append(on_losses(changes))
    return sentences


def on_gold(data: ReportData, policy: str, changes: Sequence[Change]) -> str:
    """Whether a stage raised gold."""
    name, start = POLICY_NAMES[policy], POLICY_NAMES[START_OF[policy]]
    change = gold_change(policy, changes)
    if change is not None:
        return moved(name, start, change)
    mean = data.estimate(policy, "sampled", "gold") or data.estimate(policy, "greedy", "gold")
    return f"{name} reached gold {spoken(mean)}; no paired comparison with {start} was made." if mean else ""


def moved(name: str, start: str, change: Estimate) -> str:
    """Say how gold moved: `SFT raised gold over Base: +0.310 [0.262, 0.358], n = 128`."""
    if change.low > 0:
        return f"{name} raised gold over {start}: {signed(change)}."
    if change.high < 0:
        return f"{name} lowered gold below {start}: {signed(change)}."
    return f"{name} shows no clear change of gold from {start}: {signed(change)}, an interval that includes 0."


def on_reward(ppo: Mapping[str, Sequence[Point]]) -> str:
    """Whether the reward rose while gold fell during PPO, on means of its first and last steps."""
    proxy, gold = ppo.get("proxy", ()), ppo.get("gold", ())
    width = min(5, len(proxy) // 2, len(gold) // 2)
    if width == 0:
        return ""
    gain, shift = (ends(points, width) for points in (proxy, gold))
    says = (f"Over PPO the learnt reward moved by {plus(gain)} sigma and gold on the same rollouts by {plus(shift)} "
            f"(first against last {width} steps, no interval)")
    hacked = gain >= PROXY_GAIN and shift < 0
    return says + (": the reward rose while gold fell, the mark of reward hacking." if hacked else ".")


def ends(points: Sequence[Point], width: int) -> float:
    """Mean of the last `width` values less the mean of the first."""
    return sum(p.value for p in points[-width:]) / width - sum(p.value for p in points[:width]) / width


def on_losses(changes: Sequence[Change]) -> str:
    """What got worse."""
    worse = [f"{POLICY_NAMES[found.policy]} {found.measure.name.replace('_', ' ')} {signed(found.change)}"
             for found in changes if found.direction == "worse" and found.measure.name != "gold"]
    if not worse:
        return "No part of gold got worse with an interval clear of 0."
    return f"What got worse, with an interval clear of 0: {'; '.join(worse)}."


def plus(value: float) -> str:
    """A difference with its sign."""
    return ("+" if value > 0 else "") + short(value)
