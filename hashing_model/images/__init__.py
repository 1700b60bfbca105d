"""Image bytes to pixels: decoding, what a picture may cost, augmented views."""
