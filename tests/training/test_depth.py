"""What `check` says of how much to train is what plan="auto" then does."""

import re
import subprocess
import sys

import pytest

from kerasmtl.training.plans import HEAD_ALONE, LAST_ALONE, LITTLE, advice, choose_plan

SIZES = [10_000, 2_500_000, 25_000_000, 350_000_000, 10**12]
KNOWN = [[0], [5, 5], [LITTLE - 1], [LITTLE], [3, 900, 900], [3, 3, 900], [1200] * 4, [60_000] * 14]


def promised(said, parameters):
    """The plan that the sentence promises for a backbone of so many weights."""
    if "the head alone" in said:
        return "head"
    everything, last = (int(n.replace(",", "")) for n in re.findall(r"at most ([\d,]+)", said))
    return (
        "gradual" if parameters <= everything else "last-layers" if parameters <= last else "head"
    )


@pytest.mark.parametrize("known", KNOWN, ids=str)
def test_the_advice_is_what_the_automatic_plan_does_for_every_backbone(known):
    edges = [rate * sum(known) + more for rate in (LAST_ALONE, HEAD_ALONE) for more in (0, 1)]
    for parameters in [*SIZES, *(edge for edge in edges if edge > 1)]:
        assert promised(advice(known), parameters) == choose_plan(900, known, parameters).name


def test_it_is_said_without_tensorflow():
    program = "import sys, kerasmtl.cli.check, kerasmtl.training.plans; print('tensorflow' in sys.modules)"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False"
