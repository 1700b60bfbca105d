"""What people look at: the gallery, plots, tables."""
