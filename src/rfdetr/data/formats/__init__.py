"""Readers: the annotation files of each format to the two tables of `rfdetr.data.records`.

`rfdetr.data.layout` finds out which format a folder has.
"""
