"""What experiments are made of: scales and arms, claims and verdicts, the ledger."""
