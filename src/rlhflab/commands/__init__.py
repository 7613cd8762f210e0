"""The commands: a signature, a docstring that is the help, and one call into the lab.

Whatever needs torch is imported inside the function, so that `--help` is quick. Results go to stdout, words on the
way to stderr; with --json, stdout holds one JSON value and nothing else.
"""

from collections.abc import Callable, Mapping

from rlhflab.commands import data, failures, labels, listing, release, training

COMMANDS: Mapping[str, Callable[..., int | None]] = {
    "demo": training.demo_command, "train": training.train_command, "sample": training.sample_command,
    "evaluate": release.evaluate_command, "compare": release.compare_command, "gate": release.gate_command,
    "experiment": failures.experiment_command,
    "detect": failures.detect_command, "report": failures.report_command,
    "report reward": failures.report_reward_command, "curves": failures.curves_command,
    "best-of-n": failures.best_of_n_command, "propose-labels": failures.propose_labels_command,
    "export": training.export_command, "average-roles": training.average_roles_command,
    "data convert": data.convert_command, "data agreement": labels.agreement_command,
    "data judge": labels.judge_command, "data select": labels.select_command,
    "models": listing.models_command, "list": listing.list_command,
}
"""In the order of the help; the second of two words is a command below the first."""
GROUPS: Mapping[str, str] = {"data": "Files of preferences, demonstrations and prompts, in any format."}
"""First words that are no command of their own, and their help."""
