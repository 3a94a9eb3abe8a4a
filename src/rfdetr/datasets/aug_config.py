"""`rfdetr.datasets.aug_configs` under the name it had before 1.11."""

from rfdetr.datasets.aug_configs import *  # noqa: F403
