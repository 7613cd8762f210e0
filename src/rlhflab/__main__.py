"""`python -m rlhflab` is `rlhflab`."""

import sys

from rlhflab.cli import main

sys.exit(main())
