"""The network and nothing else: encoder, projector, proposals, decoder, segmentation, detector,
post-processing.
"""
