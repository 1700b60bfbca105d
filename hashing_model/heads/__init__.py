"""Hash heads: how features become the bits of a segment, in closed form."""
