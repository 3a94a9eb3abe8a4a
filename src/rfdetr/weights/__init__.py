"""Files of weights: which are published, fetching, safe reading, names, fitting to another model,
atomic writing.
"""
