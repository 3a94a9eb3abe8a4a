"""Configuration: what a model is (`Architecture`), how it is run (`ModelConfig` and its variants),
how it is trained (`TrainConfig`), exported (`ExportConfig`) and served (`ServeConfig`). Unknown
names are refused with the nearest known one.
"""

from typing import TYPE_CHECKING, Any

from rfdetr.config.export import *  # noqa: F403
from rfdetr.config.fields import *  # noqa: F403
from rfdetr.config.model import *  # noqa: F403
from rfdetr.config.serving import *  # noqa: F403
from rfdetr.config.training import *  # noqa: F403
from rfdetr.config.variants import *  # noqa: F403
from rfdetr.moved import missing

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise missing(__name__, name)
