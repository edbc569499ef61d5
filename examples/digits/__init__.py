"""The demo: train a small CLIP image tower on four tasks made of digits, and merge it with every rule."""
