"""COCO figures, F1 over confidence, confusion matrix, results.json, plots, drawn pictures."""
