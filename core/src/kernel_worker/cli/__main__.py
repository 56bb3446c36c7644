"""`python -m kernel_worker.cli` is `kw`."""

import sys

from . import main

sys.exit(main())
