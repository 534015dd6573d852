"""`python -m hsic_lab` is the command `hsic-lab`."""

from hsic_lab.cli import main

main()
