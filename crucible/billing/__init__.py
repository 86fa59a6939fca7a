"""What was spent, at which price, and the budgets that limit it."""
