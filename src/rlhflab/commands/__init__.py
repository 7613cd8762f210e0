"""The commands: a signature, a docstring that is the help, and one call into the lab.

Whatever needs torch is imported inside the function, so that `--help` is quick. Results go to stdout, words on the
way to stderr; with --json, stdout holds one JSON value and nothing else.
"""

from collections.abc import Callable, Mapping

from rlhflab.commands import annotate, data, dials, drift, failures, labels, listing, registry, release, serve, training

COMMANDS: Mapping[str, Callable[..., int | None]] = {
    "demo": training.demo_command, "train": training.train_command, "sample": training.sample_command,
    "evaluate": release.evaluate_command, "compare": release.compare_command, "gate": release.gate_command,
    "experiment": failures.experiment_command, "experiment dials": dials.dials_command,
    "experiment dose-response": failures.dose_response_command,
    "detect": failures.detect_command, "report": failures.report_command,
    "report reward": failures.report_reward_command, "curves": failures.curves_command,
    "best-of-n": failures.best_of_n_command, "propose-labels": failures.propose_labels_command,
    "annotate": annotate.annotate_command, "store": annotate.store_command,
    "store import": annotate.store_import_command, "store export": annotate.store_export_command,
    "store correct": annotate.store_correct_command,
    "drift": drift.drift_command, "serve": serve.serve_command,
    "export": training.export_command, "average-roles": training.average_roles_command,
    "data convert": data.convert_command, "data check": data.check_command, "data split": data.split_command,
    "data agreement": labels.agreement_command, "data judge": labels.judge_command,
    "data select": labels.select_command,
    "registry init": registry.init_command, "registry add": registry.add_command,
    "registry list": registry.list_command, "registry show": registry.show_command,
    "registry diff": registry.diff_command, "registry promote": registry.promote_command,
    "registry rollback": registry.rollback_command, "registry verify": registry.verify_command,
    "registry log": registry.log_command, "registry export": registry.export_command,
    "registry index": registry.index_command,
    "models": listing.models_command, "list": listing.list_command,
}
"""In the order of the help; the second of two words is a command below the first."""
GROUPS: Mapping[str, str] = {"data": "Files of preferences, demonstrations and prompts: convert, check, split, judge.",
                              "registry": "LoRA adapters: what made them, what is active, and the way back."}
"""First words that are no command of their own, and their help."""
