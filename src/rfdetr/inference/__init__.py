"""From images in any form to detections: sources, batching, and the optimised network."""
