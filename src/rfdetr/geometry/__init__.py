"""Boxes, outlines and run lengths as plain array functions; no network here."""
