"""`python -m weighted_mtp …` is `weighted-mtp …`."""

import sys

from weighted_mtp.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
