"""Models judged by the programs they write, and experiments made of such evaluations."""
