"""Synthetic scenes: labelled pictures of drawn objects, for the demo, tests and pre-training."""

from rfdetr.synthetic.generate import DEMO_CLASSES, DEMO_DISTRACTORS, generate

__all__ = ["DEMO_CLASSES", "DEMO_DISTRACTORS", "generate"]
