"""What a person reads of a run or an evaluation: one page, and its values."""

PAGE, VALUES, HINTS = "report.html", "report.json", "label_hints.json"
FILES = (PAGE, VALUES, HINTS)
"""What a report leaves in its folder."""
