"""Many trainings: the rows of the paper, launching them, statistics, and the tables of their results."""
