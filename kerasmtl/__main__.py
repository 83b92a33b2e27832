"""`python -m kerasmtl`: the command line."""

from kerasmtl.cli import main

main(prog_name="python -m kerasmtl")
