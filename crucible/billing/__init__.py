"""What was spent, and the budgets it is held against."""
