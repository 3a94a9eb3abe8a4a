"""The dataset doctor: what is wrong with a labelled folder, and a corrected copy of it."""
