"""What every other room may lean on: types, errors, recipes, logging."""
