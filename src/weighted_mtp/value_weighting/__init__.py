"""Token weights from temporal differences and from Rho-1, and the controls of both."""
