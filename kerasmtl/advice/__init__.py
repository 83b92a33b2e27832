"""Questions of transfer and multi-task learning, answered on one's own data.

transferability  which features suit the labels, before anything is trained
advise           counts, probes and the plan: the free part, `kerasmtl advise`
compare          `kt.compare`: transfer, tasks or size, measured within a time budget
transfer         its cells of `transfer`: from scratch, frozen, the plan
networks         its cells of `tasks` and `size`: heads on features that are computed once
statistics       paired bootstrap intervals and power laws
tune             `kt.tune`: settings of project.toml, searched by training
rows             parts, features and network of a project, as `train.py` has them
"""

from kerasmtl.utils.lazy import lazy_names

__all__ = ["Comparison", "logme", "ridge_probe"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Comparison": "kerasmtl.advice.compare",
        "logme": "kerasmtl.advice.transferability",
        "ridge_probe": "kerasmtl.advice.transferability",
    },
)
