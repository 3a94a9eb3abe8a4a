"""Configuration: what a model is (`Architecture`), how it is run (`ModelConfig` and its variants),
how it is trained (`TrainConfig`).

What follows from other fields is computed, not stored. Unknown names are refused with the nearest
known one. The public names are those of each file's `__all__`.
"""

from rfdetr.config.fields import *  # noqa: F403
from rfdetr.config.model import *  # noqa: F403
from rfdetr.config.training import *  # noqa: F403
from rfdetr.config.variants import *  # noqa: F403
