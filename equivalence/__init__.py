"""The testbed: claims about two trainers, the tests behind them, seeded faults, and the report. No torch in here."""
