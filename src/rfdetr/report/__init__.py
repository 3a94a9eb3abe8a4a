"""What a run has learned, for the person who trained it: report.html, report.json, label hints."""
