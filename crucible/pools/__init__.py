"""The work pools: for each its worker, its template, and what its failures mean."""
