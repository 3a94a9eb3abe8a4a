"""The earlier import path of `rfdetr.synthetic.generate`."""

from rfdetr.synthetic.generate import DEMO_CLASSES, DEMO_DISTRACTORS, PRETRAIN_CLASSES, generate

__all__ = ["DEMO_CLASSES", "DEMO_DISTRACTORS", "PRETRAIN_CLASSES", "generate"]
