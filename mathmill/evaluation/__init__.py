"""What a run's solutions say of a model: metrics, intervals, tests in pairs, a judge's opinion, tables and a report."""
