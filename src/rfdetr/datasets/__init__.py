"""Import paths of the published package."""
