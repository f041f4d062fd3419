"""Judge programs by running them; metrics of models, heads and critics."""
