"""From a CSV with missing labels to a served model: transfer and multi-task learning on Keras 3.

Names are imported on first use, so that `import kerasmtl` and the command line start without
TensorFlow. Packages of public names are in `_PACKAGES`; the other namespaces are listed here.
"""

from kerasmtl._version import __version__
from kerasmtl.utils.lazy import lazy_names, namespace
from kerasmtl.utils.registration import register_when_keras_is_imported

_HOMES = {
    "HubLayer": "kerasmtl.models.hub_layer",
    "Manifest": "kerasmtl.data.manifest",
    "Project": "kerasmtl.project",
    "Task": "kerasmtl.tasks",
    "build_model": "kerasmtl.models.build",
    "compare": "kerasmtl.advice.compare",
    "evaluate": "kerasmtl.evaluation.evaluate",
    "export_saved_model": "kerasmtl.export.saved_model",
    "fine_tune": "kerasmtl.training.fine_tune",
    "freeze": "kerasmtl.models.layer_groups",
    "load_backbone": "kerasmtl.models.backbones",
    "load_model": "kerasmtl.models.build",
    "make_dataset": "kerasmtl.data.dataset",
    "quiet_tensorflow": "kerasmtl.utils.tf",
    "save_model": "kerasmtl.training.callbacks",
    "tune": "kerasmtl.advice.tune",
    "unfreeze": "kerasmtl.models.layer_groups",
}
_PACKAGES = ("advice", "data", "export", "losses", "metrics")

backbones = namespace(
    "kerasmtl.backbones",
    "Backbones, and what is known of them.",
    {
        "backbone_layers": "kerasmtl.models.backbones",
        "columns": "kerasmtl.models.mlp",
        "default_image_size": "kerasmtl.models.backbones",
        "layer_groups": "kerasmtl.models.layer_groups",
        "mlp": "kerasmtl.models.mlp",
        "summary": "kerasmtl.models.inspection",
    },
)
calibration = namespace(
    "kerasmtl.calibration",
    "Decision thresholds and temperatures, fitted on known labels.",
    {
        "fit_decisions": "kerasmtl.evaluation.calibration",
        "fit_temperatures": "kerasmtl.evaluation.calibration",
        "fit_thresholds": "kerasmtl.evaluation.calibration",
    },
)
callbacks = namespace(
    "kerasmtl.callbacks",
    "Callbacks for `model.fit`.",
    {
        "BestEpoch": "kerasmtl.training.callbacks",
        "Checkpoint": "kerasmtl.training.callbacks",
        "LargeLossSchedule": "kerasmtl.losses.large_loss",
        "Resume": "kerasmtl.training.resume",
        "TrainableGuard": "kerasmtl.training.callbacks",
    },
)
features = namespace(
    "kerasmtl.features",
    "Features of a frozen backbone, computed once.",
    {
        "cache_features": "kerasmtl.training.feature_cache",
        "fit_head": "kerasmtl.training.heads",
        "split_model": "kerasmtl.training.features",
    },
)
optimizers = namespace(
    "kerasmtl.optimizers",
    "Learning rates by layer, and how to find one.",
    {
        "LayerwiseDecay": "kerasmtl.training.optimizers",
        "LearningRateCurve": "kerasmtl.training.lr_finder",
        "find_learning_rate": "kerasmtl.training.lr_finder",
        "layerwise_factors": "kerasmtl.training.optimizers",
    },
)
plans = namespace(
    "kerasmtl.plans",
    "What is trained, stage by stage.",
    {
        "Plan": "kerasmtl.training.plans",
        "keep_better": "kerasmtl.training.auto",
        "Stage": "kerasmtl.training.plans",
        "make_plan": "kerasmtl.training.plans",
        "plan_for": "kerasmtl.training.plans",
        "reset_run": "kerasmtl.training.resume",
    },
)
reports = namespace(
    "kerasmtl.reports",
    "Reports as HTML, and labels that are likely wrong.",
    {
        "likely_wrong_labels": "kerasmtl.evaluation.explain",
        "render_comparison": "kerasmtl.evaluation.html_report",
    },
)

__all__ = [
    "__version__",
    "backbones",
    "calibration",
    "callbacks",
    "features",
    "optimizers",
    "plans",
    "reports",
    *_HOMES,
    *_PACKAGES,
]

register_when_keras_is_imported()

_name, __dir__ = lazy_names(__name__, _HOMES)


def __getattr__(name: str) -> object:
    if name in _PACKAGES:
        import importlib

        return importlib.import_module(f"kerasmtl.{name}")
    return _name(name)
