"""What training minimises: `matcher` assigns targets to candidates, `criterion` computes the terms.

`masks` has the costs and terms of masks. Letters of shapes are those of `rfdetr.models`; words
(candidate, block, matching cost, target score, ...) are explained in docs/glossary.md.
"""
