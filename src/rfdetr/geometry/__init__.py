"""Boxes, masks and padded batches as plain tensor functions; no network here."""
