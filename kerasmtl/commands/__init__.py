"""The commands of the command line, by what they are about."""

from kerasmtl.commands.serving import client, deploy

__all__ = ["client", "deploy"]
