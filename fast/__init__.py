"""The lazy trainer on torch: a row pays its owed noise when it is read. Same law as `samelaw.reference`."""
