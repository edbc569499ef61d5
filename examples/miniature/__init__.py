"""The demo: the paper's experiment in miniature, on a toy CLIP and pictures that it draws itself."""
