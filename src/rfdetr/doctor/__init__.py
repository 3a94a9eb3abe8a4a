"""The dataset doctor: what is wrong with a labelled folder, and a corrected copy of it."""

from rfdetr.doctor.check import Report, check

__all__ = ["Report", "check"]
