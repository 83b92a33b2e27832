"""`python -m kerasmtl`: the command line."""

from kerasmtl.cli import main

if __name__ == "__main__":
    main(prog_name="python -m kerasmtl")
