"""The earlier import path of `rfdetr.synthetic`."""

from rfdetr.synthetic.generate import DEMO_CLASSES, DEMO_DISTRACTORS, generate

__all__ = ["DEMO_CLASSES", "DEMO_DISTRACTORS", "generate"]
