"""Gen4Gen (Yeh et al. 2024): cut out, lay out, compose, repaint, recaption, and the dataset that comes of
it."""
