"""Files of weights: published names, download, safe reading, fitting to a model, writing."""
