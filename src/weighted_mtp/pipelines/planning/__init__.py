"""Memory of a training, by arithmetic, before anything is built."""
