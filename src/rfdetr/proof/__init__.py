"""What a model is worth outside of training: exports compared with their original, and speed."""
