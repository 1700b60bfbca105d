"""`python -m grainhash`: the command line."""

import sys

from pipelines.cli.main import main

if __name__ == '__main__':
    sys.exit(main())
