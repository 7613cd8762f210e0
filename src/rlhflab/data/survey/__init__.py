"""What a data file holds, row by row, as columns of numbers. No judgement of it and no interval: the checks do that."""
