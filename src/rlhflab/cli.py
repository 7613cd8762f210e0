"""The command line: what becomes of arguments and of errors. The commands themselves are in `commands/`.

A mistake of the user's is one sentence on stderr and exit code 2; RLHFLAB_DEBUG=1 shows the traceback instead.
"""

import errno
import os
import signal
import sys
import threading
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from rlhflab import __version__, commands
from rlhflab.errors import LabError

REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
"""What the system says of a path that the user named and the program may not use as it was asked to."""

app = App(
    name="rlhflab",
    help="Preference data to reward model to DPO and PPO to evidence, on one CPU or one GPU.",
    version=__version__,
    default_parameter=Parameter(negative=()),
    help_formatter="plain",
    suppress_keyboard_interrupt=False,
)
for place, (name, command) in enumerate(commands.COMMANDS.items()):
    group, _, last = name.rpartition(" ")
    if group in commands.GROUPS and group not in app:
        app.command(App(name=group, help=commands.GROUPS[group], sort_key=place))
    (app[group] if group else app).command(command, name=last, sort_key=place)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 a mistake in what was asked, 130 stopped (Ctrl-C or SIGTERM).

    `detect --fail-on-alarm` and `drift --fail-on-drift` also have 3, an alarm.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # systemd, docker and job queues stop a run by it
    if os.environ.get("RLHFLAB_DEBUG"):
        return _run(arguments)
    try:
        return _run(arguments)
    except LabError as error:
        return _fail(str(error))
    except CycloptsError as error:
        return _fail(f"{' '.join(str(error).split()).removesuffix('.')}; see rlhflab --help")
    except KeyboardInterrupt:
        print("\nStopped. What was finished is kept.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, `head` say, has enough; Python's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _fail(f"the disk is full{f' at {error.filename}' if error.filename else ''}; "
                         "free some space and run the command again")
        if error.errno not in REFUSED or not error.filename:
            raise
        return _fail(f"{error.filename}: cannot be used: {error.strerror}")
    return 0


def _run(arguments: Sequence[str] | None) -> int:
    code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    sys.stdout.flush()  # Here, so that a reader who left is noticed where it can be handled.
    return code if isinstance(code, int) else 0


def _fail(sentence: str) -> int:
    print(f"rlhflab: {sentence}", file=sys.stderr)
    return 2
