"""`rfdetr.utilities.box_ops` under the name it had before 1.9."""

from rfdetr.utilities.box_ops import *  # noqa: F403
