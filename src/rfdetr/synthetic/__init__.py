"""Synthetic scenes: labelled pictures of drawn objects, for the demo, tests and pre-training."""
