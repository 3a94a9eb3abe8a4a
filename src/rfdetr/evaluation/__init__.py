"""How good the detections are: COCO figures, F1 over confidence, confusion matrix, results.json and
plots.
"""
