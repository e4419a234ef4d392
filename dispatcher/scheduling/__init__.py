"""RQ proposes what may run and the ledger disposes: proposals are claimed, and RQ's copy is compared."""
