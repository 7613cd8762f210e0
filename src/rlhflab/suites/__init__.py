"""Behaviour suites and gate policies: what a model is asked, what its answers are checked for, what blocks a release.

Reading only: no model answers here, and no check is done.
"""

from rlhflab.suites.policy import GatePolicy as GatePolicy
from rlhflab.suites.policy import PolicyRow as PolicyRow
from rlhflab.suites.policy import read_policy as read_policy
from rlhflab.suites.suite import Metric as Metric
from rlhflab.suites.suite import Suite as Suite
from rlhflab.suites.suite import SuiteFile as SuiteFile
from rlhflab.suites.suite import shipped as shipped
from rlhflab.suites.suite import suite_named as suite_named
