"""A path of the published package; importing it tells what is in its place."""

from rfdetr.moved import gone

raise gone(__name__)
