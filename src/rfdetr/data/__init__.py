"""Data: labelled folders in COCO or YOLO layout, indexed once, decoded and augmented on the fly, batched as uint8."""
