"""Examples of a data set: how hard each is, which are forgotten, and which a training is given."""
