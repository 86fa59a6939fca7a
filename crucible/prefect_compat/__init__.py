"""What Prefect and its integrations do not do yet: one file for each upstream fault."""
