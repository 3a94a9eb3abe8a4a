"""Configuration: what a model is (`Architecture`), how it is run (`ModelConfig` and its variants),
how it is trained (`TrainConfig`). Unknown names are refused with the nearest known one.
"""

from rfdetr.config.fields import *  # noqa: F403
from rfdetr.config.model import *  # noqa: F403
from rfdetr.config.training import *  # noqa: F403
from rfdetr.config.variants import *  # noqa: F403
