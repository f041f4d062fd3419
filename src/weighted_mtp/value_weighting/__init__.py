"""Which tokens matter: weights from temporal differences, from Rho-1, and the controls of both."""
