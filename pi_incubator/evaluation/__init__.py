"""How good a policy is, measured and shown: statistics over whole episodes, tables, curves, videos."""
