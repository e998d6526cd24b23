"""`python -m iopfl.cli`."""

import sys

from iopfl.cli.commands import main

sys.exit(main())
