"""`python -m simulator` is the console script `headway`."""

from simulator.cli import main

main()
