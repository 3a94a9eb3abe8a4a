"""Steps of augmentation beyond the default recipe; `rfdetr.data.transforms` applies them.

`warp` moves pixels and objects, `effects` changes pixels alone, `mixing` shows several training
images in one. Random numbers are keyed by the sample, so a run resumes exactly.
"""
